"""Scores against what was asked of them, and one stored model against another."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation import needs_harness
from vlsi_cli.config.requirements import Requirement
from vlsi_cli.engine.evaluation.scores import Result, Sample
from vlsi_cli.engine.runs import compare
from vlsi_cli.engine.runs.no_worse import Stored, no_worse
from vlsi_cli.engine.runs.requirements import apart, hold
from vlsi_cli.errors import ConfigError


def result(score: float | None, bench: str = "mmmu", **more: Any) -> Result:
    return Result(bench, bench, "m", score, n=100, **more)


def held(
    bound: float, score: float | None, relation: Any = ">=", bench: str = "mmmu", **more: Any
) -> tuple[bool, Any, str]:
    (one,) = hold([Requirement("m", bench, relation, bound)], [result(score, bench, **more)])
    return one.met, one.close, one.sentence


def test_a_score_and_how_sure_it_is() -> None:
    assert held(50, 53, error=1.0) == (True, False, "mmmu of m is 53.0, at least 50")
    assert held(50, 51, error=1.0) == (
        True,
        True,
        "mmmu of m is 51.0, at least 50; the standard error is 1, so other questions could have decided otherwise",
    )
    assert held(50, 49.96) == (False, None, "mmmu of m is 49.96, and should be at least 50")
    assert held(50, 51, "<=", settings={"limit": 8}) == (
        False,
        None,
        "mmmu of m is 51.0, and should be at most 50 (the first 8 questions only)",
    )


def test_a_missing_score_meets_nothing() -> None:
    told = "mmmu of m should be at most 50, and has no score: no sample was scored"
    assert held(50, None, "<=", missing="no sample was scored") == (False, None, told)


def test_a_bound_of_points_on_a_score_of_shares_is_told() -> None:
    assert held(50, 0.0, error=0.0) == (False, None, "mmmu of m is 0.0, and should be at least 50")
    met, _, told = held(50, 0.83, bench="colours")
    assert not met
    assert told.endswith("shown as the harness gives them, and may be shares of 1")


@pytest.mark.parametrize(
    ("score", "text"), [(49.96, "49.96"), (49.2, "49.2"), (100 * 0.5, "50.0"), (0.8333333, "0.833")]
)
def test_as_many_digits_as_tell_it_from_the_bound(score: float, text: str) -> None:
    assert apart(score, 50) == text


# ---------------------------------------------------------------- one model against another


def stored(name: str, scores: list[float | None], bench: str = "mmmu", **more: Any) -> Stored:
    known = [score for score in scores if score is not None]
    more.setdefault("score", sum(known) / len(known) if known else 80.0)
    samples = [Sample(f"t:{number}", f"d{number}", "", "", score) for number, score in enumerate(scores)]
    return Stored(name, result(bench=bench, **more), samples)


def changed(lost: int, won: int, n: int = 100) -> tuple[Stored, Stored]:
    """Two models that differ on the first questions: so many lost, then so many won."""
    before = [100.0] * lost + [0.0] * won + [100.0] * (n - lost - won)
    after = [0.0] * lost + [100.0] * won + [100.0] * (n - lost - won)
    return stored("a", list(before)), stored("b", list(after))


def test_worse_is_an_interval_wholly_below_zero() -> None:
    """By hand: 12 lost and 2 won of 100 differ by -10 on average; squares sum to 14 x 100^2."""
    a, b = changed(12, 2)
    error = sqrt((14 * 100**2 - 100 * 10**2) / 99 / 100)
    found = no_worse(a, b, None)
    assert (found.met, found.rule, found.n, found.difference) == (False, "interval", 100, -10)
    assert found.high == pytest.approx(-10 + 1.959963984540054 * error)
    assert found.low == pytest.approx(-10 - 1.959963984540054 * error)
    assert found.sentence == (
        "mmmu: b: m is worse than a: m (-10.0, 95 % interval -17.1 to -2.9, on 100 questions)"
    )


def test_noise_is_not_worse_and_is_not_sure_to_be_within_a_margin() -> None:
    a, b = changed(6, 4)
    assert no_worse(a, b, None).met
    assert "is not shown to be worse than" in no_worse(a, b, None).sentence
    strict = no_worse(a, b, 1.0)
    assert (strict.met, strict.rule) == (False, "margin")
    assert "b: m may be worse than a: m by more than 1 (" in strict.sentence
    assert no_worse(a, b, 9.0).met
    assert no_worse(*changed(40, 0), 5.0).sentence.startswith(
        "mmmu: b: m is worse than a: m by more than 5 ("
    )
    assert "is better than" in no_worse(*changed(0, 40), None).sentence


def test_the_same_answers_tell_as_much_as_there_are_questions() -> None:
    """If 3.69 of 100 questions were lost, one in forty drawings of a hundred would not show it."""
    a, b = changed(0, 0)
    assert no_worse(a, b, None).met
    found = no_worse(a, b, 3.69)
    assert (found.met, found.low, found.high) == (
        True,
        pytest.approx(-3.689, abs=1e-3),
        pytest.approx(3.689, abs=1e-3),
    )
    assert not no_worse(a, b, 3.68).met
    assert no_worse(*changed(0, 40), 0.0).met, "better than a margin of nothing"
    shares = [stored(name, [1.0, 0.0] * 50, "colours", higher_is_better=True) for name in "ab"]
    assert no_worse(*shares, 0.0369).met
    assert not no_worse(*shares, 0.0368).met


def test_a_score_that_is_no_mean_is_compared_as_it_is() -> None:
    blank: list[float | None] = [None] * 9
    a, b = stored("a", blank, "pope", score=86.0), stored("b", blank, "pope", score=85.5)
    found = no_worse(a, b, None)
    assert (found.met, found.rule, found.low, found.difference) == (False, "figures", None, -0.5)
    assert "this score has no interval, so the figures alone are compared" in found.sentence
    assert no_worse(a, b, 0.5).met
    assert no_worse(b, a, None).met
    fewer = stored("b", blank[:8], "pope", score=90.0)
    assert no_worse(a, fewer, None).rule == "none", "figures of other questions say nothing"


def test_lower_is_better_where_the_task_says_so() -> None:
    a, b = changed(12, 2)
    for each in (a, b):
        each.result.benchmark, each.result.higher_is_better = "wer", False
    assert "b: m is better than a: m (-10.0, 95 %" in no_worse(a, b, None).sentence
    back = no_worse(b, a, None)
    assert (back.met, back.difference) == (False, 10)
    assert back.sentence.endswith(
        "is worse than b: m (+10.0, 95 % interval +2.9 to +17.1, on 100 questions; lower is better)"
    )
    assert no_worse(b, a, 17.2).met
    assert not no_worse(b, a, 17.1).met
    blank: list[float | None] = [None] * 9
    low, high = (
        stored(name, blank, "wer", score=score, higher_is_better=False)
        for name, score in (("a", 3.0), ("b", 4.0))
    )
    assert no_worse(high, low, None).met
    assert not no_worse(low, high, None).met
    a.result.higher_is_better = None
    assert "nothing that is stored says whether a higher score is better" in no_worse(a, b, None).sentence


def test_a_part_of_the_questions_with_scores_is_not_taken_for_all_of_them() -> None:
    a = stored("a", [100.0, None, 100.0], score=50.0)
    assert no_worse(a, stored("b", [100.0, None, 100.0], score=40.0), None).rule == "figures"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (
            {"score": None, "missing": "the judge answered prose"},
            "b: m has no score (the judge answered prose)",
        ),
        ({"settings": {"versions": {"t": "2"}}}, "the task's versions differ"),
        ({"judge": {"answers as": "other"}}, "their judges differ (None and other)"),
    ],
)
def test_what_cannot_be_compared_is_not_no_worse(more: dict[str, Any], reason: str) -> None:
    found = no_worse(stored("a", [100.0] * 40), stored("b", [100.0] * 40, **more), None)
    assert (found.met, found.rule, found.difference) == (False, "none", None)
    assert found.sentence == f"mmmu: b: m cannot be held against a: m: {reason}"


def test_other_questions_or_a_single_one_tell_nothing() -> None:
    a, b = stored("a", [100.0] * 40), stored("b", [100.0] * 40)
    for sample in b.samples[1:]:
        sample.digest = "other"
    assert "a single question in common tells nothing" in no_worse(a, b, None).sentence
    b.samples[0].digest = "other"
    assert "they were asked no question in common" in no_worse(a, b, None).sentence


def test_a_margin_as_wide_as_the_scale_is_refused() -> None:
    a, b = (stored(name, [1.0, 0.0], "colours", higher_is_better=True) for name in "ab")
    with pytest.raises(ConfigError, match="--margin 1 is the whole scale of 'colours'") as raised:
        no_worse(a, b, 1.0)
    assert "--margin 0.01" in (raised.value.hint or "")
    assert no_worse(a, b, 0.75).rule == "margin"


@needs_harness
def test_an_answer_may_hold_any_sign(tmp_path: Path) -> None:
    """Python's own splitting of lines also cuts at U+2028, which JSON need not escape."""
    from vlsi_cli.engine.evaluation import running  # imports the harness

    told = [Sample("t:0", "d", "one\u2028two\x85three", "", 1.0), Sample("t:1", "e", "", "", 0.0)]
    running._write(tmp_path / "mmmu", result(50.0), told)
    assert compare._samples({"m": tmp_path}, "m", "mmmu") == told
