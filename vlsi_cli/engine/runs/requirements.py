"""Whether the scores of an evaluation are what was asked of them, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlsi_cli.config.benchmarks import table
from vlsi_cli.config.requirements import Relation, Requirement
from vlsi_cli.engine.evaluation.scores import Z95, Result

_DIGITS = 6  # more than any harness gives


@dataclass(frozen=True)
class RequirementOutcome:
    """One requirement and the score it was held against.

    Attributes:
        model: its id.
        benchmark: its name.
        relation: what the score must be to the bound.
        bound: on the scale of the score.
        score: unrounded, as it is compared; None when it is missing.
        error: standard error of the score; None where there is none.
        n: questions.
        met: whether the score itself, without regard to its error, is what was asked; a missing one is not.
        close: whether the bound lies within the 95 % interval of the score, so that another drawing of questions could
            have decided otherwise; None where there is no standard error, or where it is zero, since all answers scored
            alike, and so says nothing.
        sentence: all of this in words.
    """

    model: str
    benchmark: str
    relation: Relation
    bound: float
    score: float | None
    error: float | None
    n: int
    met: bool
    close: bool | None
    sentence: str


def hold(requirements: Sequence[Requirement], results: Sequence[Result]) -> Iterator[RequirementOutcome]:
    """Hold scores against what was asked of them, in the order in which it was asked."""
    by_name = {(result.model, result.benchmark): result for result in results}
    for asked in requirements:
        result = by_name[asked.model, asked.benchmark]
        met = asked.holds(result.score)
        close = None
        if result.score is not None and result.error:
            close = abs(result.score - asked.bound) <= Z95 * result.error
        yield RequirementOutcome(
            asked.model,
            asked.benchmark,
            asked.relation,
            asked.bound,
            result.score,
            result.error,
            result.n,
            met,
            close,
            _sentence(asked, result, met, close),
        )


def _sentence(asked: Requirement, result: Result, met: bool, close: bool | None) -> str:
    wanted = f"{'at least' if asked.relation == '>=' else 'at most'} {asked.bound:g}"
    who = f"{asked.benchmark} of {asked.model}"
    if result.score is None:
        return f"{who} should be {wanted}, and has no score: {result.missing}"
    told = f"{who} is {apart(result.score, asked.bound)}, " + (wanted if met else f"and should be {wanted}")
    if extent := extent_of(result):
        told += f" ({extent})"
    if close:
        told += f"; the standard error is {result.error:.2g}, so other questions could have decided otherwise"
    elif not met and abs(result.score) <= 1 < asked.bound and asked.benchmark not in table():
        told += "; scores of this task are shown as the harness gives them, and may be shares of 1"
    return told


def extent_of(result: Result) -> str:
    """That only a part of the questions was asked, if so."""
    limit = result.settings.get("limit")
    return f"the first {limit} questions only" if limit else ""


def apart(score: float, bound: float) -> str:
    """A score with as many digits as tell it from the bound, and as many as are shown elsewhere at least."""
    fewest = 1 if abs(score) >= 2 or score == 0 else 3
    texts = [f"{score:.{digits}f}" for digits in range(fewest, _DIGITS + 1)]
    return next((text for text in texts if float(text) != bound), texts[0])
