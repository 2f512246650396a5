"""Tables of the comparison beside the paper's numbers, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.proof.arms import ARMS
from benchmarks.proof.estimates import Interval, paired, spearman, t_interval
from benchmarks.proof.grid import ABLATION_SEEDS, SEEDS, Row, Table, seeded
from benchmarks.proof.settings import Run
from benchmarks.proof.text import table_lines

PAPER = json.loads((Path(__file__).parent / "paper.json").read_text("utf-8"))
#: Run -> what came out.
Done = Mapping[Run, Mapping[str, Any]]


def rows_of(
    table: Table, done: Done, rates: Mapping[str, float] | None
) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Label -> seed -> result, of what is done. An untrained model's one result counts for every seed.

    An ablation shows its own seeds even of rows that the main table has more of, so that all its means compare.
    """
    if rates is None:
        return {row.label: {} for row in table.rows}
    seeds = SEEDS if table.part == "main" else ABLATION_SEEDS
    return {row.label: _of_row(row, done, rates, seeds) for row in table.rows}


def _of_row(
    row: Row, done: Done, rates: Mapping[str, float], seeds: Sequence[int]
) -> dict[int, Mapping[str, Any]]:
    runs = {seed: seeded(row, rates, seed) for seed in seeds}
    return {seed: done[run] for seed, run in runs.items() if run in done}


def scores_of(results: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    """Seed -> accuracy in %."""
    return {seed: 100 * result["accuracy"] for seed, result in results.items()}


def table_text(table: Table, done: Done, rates: Mapping[str, float] | None) -> list[str]:
    """One table beside the paper's numbers, and how the two orders agree."""
    found = rows_of(table, done, rates)
    paper = PAPER["tables"][table.key]
    printed = {label: sum(scores) / len(scores) for label, scores in paper["rows"].items()}
    against = scores_of(found[table.against])
    lines, ours, theirs = [], [], []
    apart: dict[str, Interval] = {}
    for row in table.rows:
        results = found[row.label]
        if not results:
            lines.append([row.label, "not run yet", "", "0", "", f"{printed[row.label]:.1f}"])
            continue
        scores = scores_of(results)
        difference = None if row.label == table.against else paired(scores, against)
        seeds = "any" if row.run.untrained else str(len(scores))
        mean = t_interval(list(scores.values())).mean
        cells = [f"{mean:.1f}", _signed(difference), seeds, f"{seconds_of(results):.0f}"]
        lines.append([row.label, *cells, f"{printed[row.label]:.1f}"])
        if difference is not None:
            apart[row.label] = difference
        if row.label == table.against or difference is not None:
            ours.append(difference.mean if difference is not None else 0.0)
            theirs.append(printed[row.label])
    head = ["", "accuracy, %", f"minus {table.against}", "seeds", "seconds", "paper"]
    text = [table_lines(head, lines)]
    text.append(f"paper: mean of what {PAPER['source'].split(',')[0]} prints in its {paper['printed']}.")
    agreement = spearman(ours, theirs) if len(ours) > 2 else None
    if agreement is not None:
        many = "all" if len(ours) == len(table.rows) else f"the {len(ours)} done of"
        text[-1] += (
            f" Rank correlation with it (Spearman, {many} {len(table.rows)} rows): {agreement + 0.0:+.2f}."
        )
    if table.part != "main" and apart:
        text.append(_apart(apart, table.against))
    return text


def _apart(differences: Mapping[str, Interval], against: str) -> str:
    """Which rows the intervals set apart, in words."""
    ahead = [label for label, each in differences.items() if each.low > 0]
    behind = [label for label, each in differences.items() if each.high < 0]
    if not ahead and not behind:
        return f"No row differs from {against} beyond its interval."
    words = [
        f"{word}: {', '.join(labels)}" for word, labels in (("ahead", ahead), ("behind", behind)) if labels
    ]
    return f"Beyond their intervals {' and '.join(words)}; no other row differs so from {against}."


def _signed(difference: Interval | None) -> str:
    if difference is None:
        return ""
    mean = f"{round(difference.mean, 1) + 0.0:+.1f}"  # no minus before a zero
    return mean if difference.half is None else f"{mean} ± {difference.half:.1f}"


def seconds_of(results: Mapping[int, Mapping[str, Any]]) -> float:
    """Mean processor seconds that the student's training took, the large model's part included."""
    counted = ("interaction", "large", "reinforcement")
    each = [sum(result["seconds"].get(name, 0.0) for name in counted) for result in results.values()]
    return sum(each) / len(each)


def verdicts(found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> Iterator[str]:
    """Who is ahead of whom, in words that the intervals allow."""
    ours = scores_of(found["VLsI"])
    for label in ARMS:
        difference = paired(ours, scores_of(found[label])) if label != "VLsI" else None
        if difference is None:
            continue
        if difference.low > 0:
            word = "VLsI is ahead"
        elif difference.high < 0:
            word = "VLsI is behind"
        else:
            word = "undecided: the interval holds zero"
        half = (
            f"[{difference.low:+.1f}, {difference.high:+.1f}]" if difference.half is not None else "one seed"
        )
        yield f"- VLsI minus {label}: {difference.mean:+.1f} points, 95 % interval {half} - **{word}**."
