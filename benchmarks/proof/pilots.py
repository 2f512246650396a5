"""The trials before the grid, as sections of the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.proof.settings import Run, Settings
from benchmarks.proof.text import table_lines

#: Fields of a run that a trial's row shows in columns of their own, or that every arm sets.
_ARM = {
    "rate",
    "seed",
    "split",
    "intermediate",
    "last",
    "features",
    "interaction_steps",
    "reinforcement_steps",
}


def pilot_sections(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One section a question, in the order in which they were asked."""
    if not lines:
        return
    yield "## What was tried before"
    yield (
        "Trials on the validation split, made to find out what the comparison should look like. Every one is shown. "
        "Settings that are not named are those above; a trial with other weights names them."
    )
    for question in dict.fromkeys(line["question"] for line in lines):
        asked = [line for line in lines if line["question"] == question]
        yield f"### {question}"
        rows = []
        for line in asked:
            result, before = line["result"], line["before"]
            kinds = ", ".join(f"{kind} {100 * share:.0f}" for kind, share in result["by_kind"].items())
            rows.append(
                [line["arm"], f"{line['run']['rate']:g}", str(line["run"]["seed"]), _changes(line)]
                + [f"{100 * before[who]['accuracy']:.1f}" for who in ("small", "large")]
                + [f"{100 * result['accuracy']:.1f}", f"{result['loss']:.3f}", kinds]
            )
        head = [
            "",
            "rate",
            "seed",
            "settings",
            "small before, %",
            "large, %",
            "after, %",
            "loss",
            "by kind, %",
        ]
        yield table_lines(head, rows)


def _changes(line: Mapping[str, Any]) -> str:
    """What a trial does differently from the settings of the grid and of its arm, and with which weights."""
    usual, run = Settings().to_json(), Run().to_json()
    told = [f"{k} {_plain(v)}" for k, v in line["settings"].items() if usual.get(k) != v]
    told += [f"{k} {v}" for k, v in line["run"].items() if k not in _ARM and run[k] != v]
    return "; ".join([*told, f"large {line['pair']['large'][:6]}"])


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else "all" if value is None else str(value)
