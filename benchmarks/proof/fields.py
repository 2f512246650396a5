"""On which puzzles the comparison is made: endless ones, and few ones that come many times.

How few was decided by plain fine-tuning alone, on the validation split, before any other arm had seen a finite set.
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
FIELDS = {"endless": ENDLESS, "few": FEW}

Line = Mapping[str, Any]
Scores = dict[int | None, dict[float, float]]
#: The trials that the number of puzzles was chosen from, by the question they were made for.
QUESTION = (
    "Finite data, to be chosen by SFT alone: the largest size at which SFT at its best rate ends at least 5 points "
    "below SFT on endless puzzles"
)
#: Points that SFT must fall behind SFT on endless puzzles.
CLEARLY = 5.0


def scores_by_size(trials: Sequence[Line]) -> Scores:
    """Records (None: no end) -> learning rate -> mean accuracy of SFT in %, larger sizes first."""
    found: dict[int | None, dict[float, list[float]]] = {}
    for line in trials:
        if line["question"] == QUESTION and line["arm"] == "SFT":
            of_size = found.setdefault(line["settings"]["records"], {})
            of_size.setdefault(line["run"]["rate"], []).append(100 * line["result"]["accuracy"])
    order = sorted(found, key=lambda size: -size if size is not None else -float("inf"))
    return {
        size: {rate: sum(each) / len(each) for rate, each in sorted(found[size].items())} for size in order
    }


def chosen_size(scores: Scores) -> int | None:
    """The largest number of records at which SFT lags clearly; None where none does."""
    if None not in scores:
        return None
    endless = max(scores[None].values())
    sizes = [s for s, each in scores.items() if s is not None and max(each.values()) <= endless - CLEARLY]
    return max(sizes, default=None)
