"""Scores and verdicts: what is true, what is missing, and by how much two models differ."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from vlsi_cli.config.benchmarks import Benchmark, table
from vlsi_cli.engine.evaluation.journal import Journal
from vlsi_cli.engine.evaluation.scores import Sample, Unscored, combine, paired, read_task, standard_error
from vlsi_cli.engine.evaluation.verdicts import FORMATS
from vlsi_cli.errors import OutputError


def raw(name: str, metrics: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    made = [
        {"doc_id": n, "doc_hash": f"h{n}", "target": "t", "resps": [["a"]], **row}
        for n, row in enumerate(rows)
    ]
    return {"results": {name: {"alias": name, **metrics}}, "samples": {name: made}}


def score(
    benchmark: Benchmark, document: dict[str, Any], *, limited: bool = False
) -> tuple[float, float | None]:
    name = benchmark.tasks[0]
    task = read_task(benchmark, name, document, {}, limited=limited)
    value, error, _ = combine(benchmark, [task])
    return value, error


def test_scales_are_the_papers() -> None:
    rows = [{"relaxed_overall": 1.0}, {"relaxed_overall": 0.0}]
    assert score(table()["chartqa"], raw("chartqa", {"relaxed_overall,none": 0.5}, rows)) == (50.0, 50.0)
    both = {"mme_perception_score,none": 1500.5, "mme_cognition_score,none": 400}
    assert score(table()["mme"], raw("mme", both, rows)) == (1900.5, None)
    judged = [{"gpt_eval_score": {"score": 0.5}}, {"gpt_eval_score": {"score": 0.25}}]
    value, error = score(table()["mmvet"], raw("mmvet", {"gpt_eval_score,none": 37.5}, judged))
    assert value == 37.5
    assert error == pytest.approx(12.5)  # two values 25 apart: 25 / sqrt(2) / sqrt(2)


@pytest.mark.parametrize("value", [[], None, float("nan"), "0.5", {}])
def test_a_figure_that_is_none_is_an_error(value: Any) -> None:
    document = raw("mmmu_val", {"mmmu_acc,none": value}, [{"mmmu_acc": 1.0}])
    with pytest.raises(Unscored, match=r"the metric 'mmmu_acc,none' is .*, not a number"):
        score(table()["mmmu"], document)


def test_a_missing_figure_and_no_samples_are_errors() -> None:
    with pytest.raises(Unscored, match="is not among the harness's figures"):
        score(table()["mmmu"], raw("mmmu_val", {}, [{}]))
    with pytest.raises(Unscored, match="no sample was scored"):
        score(table()["mmmu"], raw("mmmu_val", {"mmmu_acc,none": 0.5}, []))
    with pytest.raises(Unscored, match="not on the scale from 0 to 100"):
        score(table()["mmmu"], raw("mmmu_val", {"mmmu_acc,none": 1.5}, [{}]))


def test_mathvista_says_nothing_right_by_none() -> None:
    wrong = [{"llm_as_judge_eval": {"true_false": False}}] * 2
    name = table()["mathvista"].tasks[0]
    assert score(table()["mathvista"], raw(name, {"llm_as_judge_eval,none": None}, wrong)) == (0.0, 0.0)
    right = [{"llm_as_judge_eval": {"true_false": True}}]
    with pytest.raises(Unscored):
        score(table()["mathvista"], raw(name, {"llm_as_judge_eval,none": None}, right))


def test_under_a_limit_one_half_of_mme_may_be_empty() -> None:
    document = raw("mme", {"mme_perception_score,none": 200.0}, [{}, {}])
    assert score(table()["mme"], document, limited=True) == (200.0, None)
    with pytest.raises(Unscored):
        score(table()["mme"], document)


def test_a_score_that_is_no_mean_has_no_error() -> None:
    """MMStar averages its finer categories; F1 is no mean at all."""
    rows = [{"average": {"score": 1.0}}, {"average": {"score": 0.0}}, {"average": {"score": 0.0}}]
    assert score(table()["mmstar"], raw("mmstar", {"average,none": 0.5}, rows)) == (50.0, None)


def test_several_tasks_weigh_by_their_questions() -> None:
    blink = table()["blink"]
    one = read_task(blink, "a", raw("a", {"blink_acc,none": 1.0}, [{"blink_acc": 1.0}]), {}, limited=False)
    three = [{"blink_acc": value} for value in (1.0, 0.0, 0.0)]
    other = read_task(blink, "b", raw("b", {"blink_acc,none": 1 / 3}, three), {}, limited=False)
    value, error, samples = combine(blink, [one, other])
    assert value == pytest.approx(50.0)
    assert error == pytest.approx(100 * math.sqrt(0.25 / 3))
    assert len(samples) == 4


def test_paired_differences_by_hand() -> None:
    def side(*scores: float | None) -> list[Sample]:
        return [Sample(f"t:{n}", "h", "a", "t", value) for n, value in enumerate(scores)]

    found = paired("b", "x", "y", side(0, 1, 0, 1, 1), side(1, 1, 0, 0, None))
    assert found is not None
    assert (found.n, found.difference) == (4, 0.0)  # +1, 0, 0, -1
    half = 1.959963984540054 * math.sqrt(2 / 3 / 4)
    assert (found.low, found.high) == (pytest.approx(-half), pytest.approx(half))
    assert paired("b", "x", "y", side(1), [Sample("t:0", "other data", "a", "t", 1)]) is None
    assert standard_error([1.0]) is None


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        ("unit", ["0", "1.0", "0.5 since"], ["10", "-0.1", "about 0.5", "", "nan"]),
        ("pair", ["10 8", "10, 7.5\nbecause"], ["10", "10 11", "0 5", "ten eight", "10 8 7"]),
        ("correctness", ["Correct", "incorrect.", "Unclear"], ["yes", "correct or incorrect", ""]),
        ("letter", ["A", "(B)", "C.", "D. a cat", "E"], ["F", "cat", "A or B", "I cannot say"]),
        ("extraction", ["14", "(A) cat"], ["", "x" * 300, "a\nb"]),
        ("any", ["x"], ["", " "]),
    ],
)
def test_verdicts(form: str, good: list[str], bad: list[str]) -> None:
    reads = FORMATS[form].reads
    assert [text for text in good if not reads(text)] == []
    assert [text for text in bad if reads(text)] == []
    assert reads(FORMATS[form].stand_in)


def test_a_journal_survives_being_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a" / "answers.jsonl"
    with Journal(path) as journal:
        for n in range(3):
            journal.add(f"k{n}", {"text": f"größe\n{n}"})
    whole = path.read_bytes()
    for length in range(len(whole), 0, -7):
        path.write_bytes(whole[:length])
        journal = Journal(path)
        assert list(journal.lines) == [f"k{n}" for n in range(whole[:length].count(b"\n"))]
        journal.add("new", {"text": "x"})
        journal.close()
        assert [json.loads(line)["key"] for line in path.read_text("utf-8").splitlines()][-1] == "new"
        assert "new" in Journal(path)


def test_a_journal_takes_over_the_files_of_others(tmp_path: Path) -> None:
    """Of a process that was killed while it wrote, and of one killed after it had taken over, but before it removed."""
    with Journal(tmp_path / "answers.jsonl") as journal:
        journal.add("a", {"text": "mine"})
    (tmp_path / "answers.1.jsonl").write_text(
        '{"key": "a", "text": "theirs"}\n{"key": "b", "text": "x"}\n{"key": "c', "utf-8"
    )
    (tmp_path / "answers.2.jsonl").write_text("", "utf-8")
    with Journal(tmp_path / "answers.jsonl") as journal:
        journal.absorb(tmp_path.glob("answers.[0-9]*.jsonl"))
        assert {key: line["text"] for key, line in journal.lines.items()} == {"a": "mine", "b": "x"}
    assert Journal(tmp_path / "answers.jsonl").lines == journal.lines
    assert [file.name for file in tmp_path.iterdir()] == ["answers.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_in_one_sentence() -> None:
    """Closing the file meets the full disk once more."""
    with (
        pytest.raises(OutputError, match="/dev/full cannot be written: no space is left on the disk"),
        Journal(Path("/dev/full")) as journal,
    ):
        journal.add("a", {"text": "an answer"})
