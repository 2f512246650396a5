"""Whether one stored model is no worse than another: the rules of `vlsi eval compare --no-worse`.

Our choice, and the usual one. Where every question has a score of its own, the 95 % interval of the paired difference
decides: without a margin a model is worse when the whole interval lies below zero; with a margin (non-inferiority) it
is no worse only when the whole interval lies above minus the margin. The normal interval has no width where two models
answer alike, however few the questions; for a margin it reaches at least as far as losses that so many questions need
not show (the rule of three, at 97.5 %). Where a score is no mean over questions (F1, MME's sum) there is no interval,
and the figures themselves are compared, on the same questions only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vlsi_cli.config.benchmarks import table
from vlsi_cli.engine.evaluation.scores import Paired, Result, Sample, paired
from vlsi_cli.engine.runs.evaluation_report import interval, signed
from vlsi_cli.errors import ConfigError

FEW = 30
"""Questions below which the normal interval is too rough to be relied upon."""
UNSEEN = -math.log(0.025)
"""Of any number of questions, how many a model may lose though none shows it: (1 - x / n)^n > 0.025 for x < 3.7."""
_ROUNDING = 1e-9  # of sums of quotients

Rule = Literal["interval", "margin", "figures", "none"]


@dataclass(frozen=True)
class Stored:
    """What one model reached on one benchmark, as it lies in a folder.

    Attributes:
        name: the folder.
        result: the figures.
        samples: the questions.
    """

    name: str
    result: Result
    samples: list[Sample]

    @property
    def label(self) -> str:
        """Folder and model."""
        return f"{self.name}: {self.result.model}"


@dataclass(frozen=True)
class NoWorse:
    """Whether a model is no worse than another on a benchmark.

    Attributes:
        benchmark: its name.
        first: the model that it is held against, behind its folder.
        second: the model in question, behind its folder.
        rule: what decided. `interval`: whether the whole 95 % interval of the difference lies below zero; `margin`:
            whether the whole of it lies above minus the margin; `figures`: the two scores, since there is no interval;
            `none`: they cannot be compared.
        margin: points that it may be worse by; None where none was given.
        difference: second minus first, by that rule; None where they cannot be compared.
        low, high: ends of the interval; None where there is none. With a margin never nearer to the difference than
            3.7 / n of the scale.
        n: questions that were compared.
        met: whether it is no worse; what cannot be compared is not.
        sentence: all of this in words.
    """

    benchmark: str
    first: str
    second: str
    rule: Rule
    margin: float | None
    difference: float | None
    low: float | None
    high: float | None
    n: int
    met: bool
    sentence: str


def no_worse(a: Stored, b: Stored, margin: float | None) -> NoWorse:
    """Hold ``b`` against ``a`` on their benchmark.

    Raises:
        ConfigError: a margin as wide as the whole scale of the scores.
    """
    name = a.result.benchmark
    if reason := _incomparable(a, b):
        return _unknown(name, a.label, b.label, margin, reason)
    _check_margin(a.result, b.result, margin)
    theirs = {(sample.id, sample.digest): sample.score for sample in b.samples}
    both = [
        (sample.score, theirs[key]) for sample in a.samples if (key := (sample.id, sample.digest)) in theirs
    ]
    if not both:
        return _unknown(name, a.label, b.label, margin, "they were asked no question in common")
    if all(score is not None and other is not None for score, other in both):
        return _by_interval(a, b, margin)
    return _by_figures(a, b, margin, same=len(both) == len(a.samples) == len(b.samples))


def absent(benchmark: str, first: str, second: str, margin: float | None, which: str) -> NoWorse:
    """What is said where ``which`` of both was not asked at all."""
    return _unknown(benchmark, first, second, margin, f"{which} was not asked")


def _by_interval(a: Stored, b: Stored, margin: float | None) -> NoWorse:
    name = a.result.benchmark
    found = paired(name, a.label, b.label, a.samples, b.samples)
    if found is None or found.low is None or found.high is None:
        return _unknown(name, a.label, b.label, margin, "a single question in common tells nothing")
    if margin is not None:
        found = _widened(found, found.low, found.high, _span([*a.samples, *b.samples], name))
    assert found.low is not None
    assert found.high is not None
    shown = (
        f"{signed(found.difference)}, 95 % interval {interval(found)}, on {found.n} questions{_falling(a)}"
    )
    worst, best = (found.low, found.high) if _rising(a.result) else (-found.high, -found.low)
    if margin is None:
        met = best >= -_ROUNDING
        said = "is better than" if worst > 0 else "is not shown to be worse than" if met else "is worse than"
    else:
        met = worst >= -margin - _ROUNDING
        sure = best < -margin
        said = "is not worse than" if met else "is worse than" if sure else "may be worse than"
    rule: Rule = "interval" if margin is None else "margin"
    ends = found.difference, found.low, found.high, found.n
    return NoWorse(
        name, a.label, b.label, rule, margin, *ends, met, _sentence(name, a, b, said, margin, shown)
    )


def _widened(found: Paired, low: float, high: float, span: float) -> Paired:
    """An interval that reaches as far to each side as what so many questions need not show."""
    unseen = UNSEEN / found.n * span
    return replace(found, low=min(low, found.difference - unseen), high=max(high, found.difference + unseen))


def _span(samples: Sequence[Sample], benchmark: str) -> float:
    """How much one question can change: the scale of a known benchmark, else what the scores show of theirs."""
    if benchmark in table():
        return table()[benchmark].best
    scores = [sample.score for sample in samples if sample.score is not None]
    return (max(scores) - min(scores)) or max(map(abs, scores)) or 1.0


def _by_figures(a: Stored, b: Stored, margin: float | None, *, same: bool) -> NoWorse:
    name = a.result.benchmark
    if not same:
        reason = "its score is no mean over questions, and they were not asked the same ones"
        return _unknown(name, a.label, b.label, margin, reason)
    assert a.result.score is not None
    assert b.result.score is not None
    difference = b.result.score - a.result.score
    gain = difference if _rising(a.result) else -difference
    met = gain >= -(margin or 0.0) - _ROUNDING
    said = "is not worse than" if met else "is worse than"
    shown = (
        f"{signed(difference)}; this score has no interval, so the figures alone are compared{_falling(a)}"
    )
    ends = difference, None, None, len(a.samples)
    return NoWorse(
        name, a.label, b.label, "figures", margin, *ends, met, _sentence(name, a, b, said, margin, shown)
    )


def _rising(result: Result) -> bool | None:
    """Whether a higher score is better: always in the table, else as the task says; None where it does not."""
    return True if result.benchmark in table() else result.higher_is_better


def _falling(stored: Stored) -> str:
    return "" if _rising(stored.result) else "; lower is better"


def _sentence(name: str, a: Stored, b: Stored, said: str, margin: float | None, shown: str) -> str:
    by = f" by more than {margin:g}" if margin else ""
    return f"{name}: {b.label} {said} {a.label}{by} ({shown})"


def _unknown(benchmark: str, first: str, second: str, margin: float | None, reason: str) -> NoWorse:
    told = f"{benchmark}: {second} cannot be held against {first}: {reason}"
    return NoWorse(benchmark, first, second, "none", margin, None, None, None, 0, met=False, sentence=told)


def _incomparable(a: Stored, b: Stored) -> str:
    """Why two figures of one benchmark say nothing about each other; "" where they do."""
    for stored in (a, b):
        if stored.result.score is None:
            return f"{stored.label} has no score ({stored.result.missing})"
    if _rising(a.result) is None or _rising(b.result) != _rising(a.result):
        return "nothing that is stored says whether a higher score is better; evaluate again, which asks nothing anew"
    if a.result.settings.get("versions") != b.result.settings.get("versions"):
        return "the task's versions differ"
    judges = [each.result.judge["answers as"] if each.result.judge else None for each in (a, b)]
    if judges[0] != judges[1]:
        return f"their judges differ ({judges[0]} and {judges[1]})"
    return ""


def _check_margin(a: Result, b: Result, margin: float | None) -> None:
    """Scores of a task that the table does not know are often shares of 1, which any margin in points would pass.

    Raises:
        ConfigError: so it is.
    """
    if margin is None or margin < 1 or a.benchmark in table():
        return
    scores = [result.score for result in (a, b) if result.score is not None]
    if all(abs(score) <= 1 for score in scores):
        shown = " and ".join(f"{score:.3g}" for score in scores)
        raise ConfigError(
            f"--margin {margin:g} is the whole scale of '{a.benchmark}', whose scores ({shown}) are shown as the "
            "harness gives them",
            hint=f"compare it by itself, with a margin on its scale: -b {a.benchmark} --margin {margin / 100:g}",
        )
