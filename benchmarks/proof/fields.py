"""On which puzzles the comparison is made: endless ones, few ones that come many times, and ones with wrong answers.

How few, and how many wrong ones, was decided by plain fine-tuning alone, on the validation split, before any other arm
had seen a finite set or a wrong answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.proof.grid import PARTS, Tuning
from benchmarks.proof.settings import Settings


@dataclass(frozen=True)
class Field:
    """One field of comparison.

    Attributes:
        title: heading in the report.
        settings: the fixed half of its runs.
        tuning: the budget that every arm gets for its learning rate there.
        parts: of the grid that are run there.
    """

    title: str
    settings: Settings
    tuning: Tuning
    parts: tuple[str, ...]


ENDLESS = Field("Endless puzzles", Settings(), Tuning(rates=(5e-4, 1e-3, 2e-3, 4e-3), seeds=(901,)), PARTS)
FEW = Field(
    "64 puzzles, again and again",
    replace(Settings(), records=64, test_seed=1),
    Tuning(rates=(2.5e-4, 5e-4, 1e-3, 2e-3), seeds=(901, 904)),
    ("main",),
)
NOISY = Field(
    "Endless puzzles, 20 % of the answers wrong",
    replace(Settings(), wrong=0.2, test_seed=2),
    ENDLESS.tuning,
    ("main",),
)
#: The interaction for all steps: added after a trial had shown what the reinforcement does with wrong answers.
UNREINFORCED = Field(
    "20 % of the answers wrong, and no reinforcement",
    replace(NOISY.settings, interaction_steps=150, reinforcement_steps=0, test_seed=3),
    NOISY.tuning,
    ("main",),
)
FIELDS = {"endless": ENDLESS, "few": FEW, "noisy": NOISY, "unreinforced": UNREINFORCED}

Line = Mapping[str, Any]
Scores = dict[int | None, dict[float, float]]
#: The trials that the number of puzzles was chosen from, by the question they were made for.
QUESTION = (
    "Finite data, to be chosen by SFT alone: the largest size at which SFT at its best rate ends at least 5 points "
    "below SFT on endless puzzles"
)
#: The trials that the share of wrong answers was chosen from. Those without any are among the trials above.
NOISE_QUESTION = (
    "Wrong answers, to be chosen by SFT alone: the smallest share of 0.2, 0.3 and 0.4 at which SFT at its best rate "
    "ends at least 5 points below SFT on endless puzzles"
)
#: Points that SFT must fall behind SFT on endless puzzles.
CLEARLY = 5.0


def scores_by_size(trials: Sequence[Line]) -> Scores:
    """Records (None: no end) -> learning rate -> mean accuracy of SFT in %, larger sizes first."""
    found = _scores(trials, (QUESTION,), "records")
    order = sorted(found, key=lambda size: -size if size is not None else -float("inf"))
    return {size: found[size] for size in order}


def scores_by_share(trials: Sequence[Line]) -> dict[float, dict[float, float]]:
    """Share of wrong answers -> learning rate -> mean accuracy of SFT in % on endless puzzles, smaller shares first."""
    endless = [line for line in trials if line["settings"]["records"] is None]
    found = _scores(endless, (QUESTION, NOISE_QUESTION), "wrong")
    return {share: found[share] for share in sorted(found)}


def _scores(trials: Sequence[Line], questions: Sequence[str], setting: str) -> dict[Any, dict[float, float]]:
    """Value of a setting -> learning rate -> mean accuracy of SFT in %, of the trials made for some questions."""
    usual = Settings().to_json()[setting]
    found: dict[Any, dict[float, list[float]]] = {}
    for line in trials:
        if line["question"] in questions and line["arm"] == "SFT":
            of_value = found.setdefault(line["settings"].get(setting, usual), {})
            of_value.setdefault(line["run"]["rate"], []).append(100 * line["result"]["accuracy"])
    return {
        value: {rate: sum(each) / len(each) for rate, each in sorted(of_value.items())}
        for value, of_value in found.items()
    }


def chosen_size(scores: Scores) -> int | None:
    """The largest number of records at which SFT lags clearly; None where none does."""
    return max((size for size in _lagging(scores, None) if size is not None), default=None)


def chosen_share(scores: Mapping[float, Mapping[float, float]]) -> float | None:
    """The smallest share of wrong answers at which SFT lags clearly; None where none does."""
    return min(_lagging(scores, 0.0), default=None)


def _lagging(scores: Mapping[Any, Mapping[float, float]], best: Any) -> list[Any]:
    """The values at which SFT at its best rate lags clearly behind SFT at the value ``best``."""
    if best not in scores:
        return []
    limit = max(scores[best].values()) - CLEARLY
    return [value for value, each in scores.items() if value != best and max(each.values()) <= limit]
