"""``docs/language.md`` from the stored results, and from nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.language.text import DRAWS, HEAD, LAYERS, LIMITS, READING, TABLE
from benchmarks.proof.arms import untrained
from benchmarks.proof.estimates import Interval, paired, t_interval
from benchmarks.proof.results import Store
from benchmarks.proof.settings import Run
from benchmarks.proof.tables import seconds_of
from benchmarks.proof.text import table_lines
from vlsi_cli.engine.files import new_file

DOCUMENT = "docs/language.md"
_ROOT = Path(__file__).parents[2]
#: Rows that all others are held against.
_HELD_AGAINST = ("SFT", "last-layer KLD", "last-layer KLD, no reinforcement")
#: Seed -> what came out.
Results = Mapping[int, Mapping[str, Any]]


def write_report(store: Store, rows: Mapping[str, Sequence[Run]], trials: Sequence[Run]) -> None:
    """Write the document, whole."""
    with new_file(_ROOT / DOCUMENT) as partial:
        partial.write_text(report(store, rows, trials), encoding="utf-8")


def report(store: Store, rows: Mapping[str, Sequence[Run]], trials: Sequence[Run]) -> str:
    """The document.

    Args:
        store: the results.
        rows: of the table, by label; a run a seed.
        trials: of the learning rate.
    """
    done = store.load()
    found = {label: {run.seed: done[run] for run in runs if run in done} for label, runs in rows.items()}
    parts = [HEAD, TABLE, *_table(found)]
    for side in ("small", "large"):
        if (run := untrained(side)) in done:
            parts.append(f"The {side} model as it is: {done[run]['loss']:.3f}.")
    tried = ", ".join(f"{done[run]['loss']:.3f} at {run.rate:g}" for run in trials if run in done)
    parts.append(f"SFT on the validation records, by learning rate: {tried}.")
    parts += [READING, *_layers(found["VLsI"]), *_draws(found["VLsI"]), LIMITS]
    return "\n\n".join(filter(None, parts)) + "\n"


def _table(found: Mapping[str, Results]) -> Iterator[str]:
    """A row an arm: loss, paired differences from others, seeds, seconds."""
    losses = {
        label: {seed: each["loss"] for seed, each in results.items()} for label, results in found.items()
    }
    lines = []
    for label, results in found.items():
        if not results:
            continue
        apart = [
            "" if label == other else _signed(paired(losses[label], losses[other])) for other in _HELD_AGAINST
        ]
        mean = t_interval(list(losses[label].values())).mean
        lines.append([label, f"{mean:.3f}", *apart, str(len(results)), f"{seconds_of(results):.0f}"])
    apart = [f"minus {label}" for label in _HELD_AGAINST]
    yield table_lines(["", "loss", *apart, "seeds", "seconds"], lines)


def _signed(difference: Interval | None) -> str:
    if difference is None:
        return ""
    half = "" if difference.half is None else f" ± {difference.half:.3f}"
    return f"{difference.mean:+.3f}{half}"


def _layers(results: Results) -> Iterator[str]:
    """What the verbalizers' losses are at the end of step 1, by depth."""
    said = next((each["verbalizers"] for each in results.values()), None)
    if said is None:
        return
    yield LAYERS
    for side in ("large", "small"):
        losses = dict(sorted(said[side]["losses"].items(), key=lambda item: int(item[0])))
        yield table_lines(
            [f"{side} layer", *losses], [["loss", *(f"{loss:.2f}" for loss in losses.values())]]
        )


def _draws(results: Results) -> Iterator[str]:
    """How far layers are apart before and after the interaction, and how the draws fall."""
    seen = next((each["draws"] for each in results.values()), None)
    if seen is None:
        return
    yield DRAWS
    rows = [
        [step, f"{place + 1} of {len(rows)}"]
        + [_number(row[name], 2) for name in ("nearest", "farthest", "likeliest", "evenness")]
        for step, rows in seen.items()
        for place, row in enumerate(rows)
    ]
    yield table_lines(["steps done", "small layer", "nearest", "farthest", "likeliest", "evenness"], rows)


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
