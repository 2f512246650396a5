"""On which puzzles the comparison is made: chosen by plain fine-tuning alone, on the validation split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.proof.text import FIELD, table_lines

Line = Mapping[str, Any]
#: The trials that the choice is made from, by the question they were made for.
QUESTION = (
    "Finite data, to be chosen by SFT alone: the largest size at which SFT at its best rate ends at least 5 points "
    "below SFT on endless puzzles"
)
#: Points that SFT must fall behind SFT on endless puzzles.
CLEARLY = 5.0
Scores = dict[int | None, dict[float, float]]


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


def field_section(trials: Sequence[Line]) -> Iterator[str]:
    """How the puzzles were chosen, with the scores that chose them."""
    scores = scores_by_size(trials)
    if not scores:
        return
    yield FIELD
    rates = sorted({rate for each in scores.values() for rate in each})
    lines = [
        [
            "no end" if size is None else str(size),
            *(f"{each[rate]:.1f}" if rate in each else "" for rate in rates),
        ]
        for size, each in scores.items()
    ]
    yield "SFT on the validation split, mean of two training seeds, accuracy in %, by learning rate:"
    yield table_lines(["training puzzles", *(f"{rate:g}" for rate in rates)], lines)
    yield f"So the comparison is made with {chosen_size(scores)} training puzzles, other ones for every seed."
