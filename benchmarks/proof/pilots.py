"""The trials before and beside the grid, as sections of the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.proof.arms import ARMS
from benchmarks.proof.settings import Settings
from benchmarks.proof.text import table_lines

Line = Mapping[str, Any]
#: Fields of a run that have a column, or that follow from the settings.
_SHOWN = {"rate", "seed", "split", "model", "interaction_steps", "reinforcement_steps"}
#: Settings that an SFT run must share with a trial to stand beside it.
_SAME = ("large", "small", "kinds", "turns", "records", "batch_size", "max_length", "asked")


def pilot_sections(trials: Sequence[Line], grid: Sequence[Line]) -> Iterator[str]:
    """One section a question, in the order in which they were asked.

    Args:
        trials: their stored lines.
        grid: lines of grids; their tuning runs of SFT stand beside the trials.
    """
    if not trials:
        return
    yield "## What else was tried"
    yield (
        "Trials on the validation split, made to find out what the comparison should look like, and then why it came "
        "out as it did. Every one is shown. Settings that are not named are those of the endless puzzles; weights are "
        "named by the first digits of the large model's. Beside each trial stands SFT as it did with the same weights, "
        "training seed and number of optimizer steps, at the best rate tried there."
    )
    known = [*trials, *(line | {"arm": "SFT"} for line in grid if _is_fine_tuning(line))]
    for question in dict.fromkeys(line["question"] for line in trials):
        rows = []
        for line in (line for line in trials if line["question"] == question):
            result, before = line["result"], line["before"]
            kinds = ", ".join(f"{kind} {100 * share:.0f}" for kind, share in result["by_kind"].items())
            rows.append(
                [line["arm"], _changes(line), f"{line['run']['rate']:g}", str(line["run"]["seed"])]
                + [f"{100 * before[who]['accuracy']:.1f}" for who in ("small", "large")]
                + [f"{100 * result['accuracy']:.1f}", _beside(line, known), kinds]
            )
        head = [
            "",
            "settings",
            "rate",
            "seed",
            "small before, %",
            "large, %",
            "after, %",
            "SFT, %",
            "by kind, %",
        ]
        yield f"### {question}"
        yield table_lines(head, rows)


def _is_fine_tuning(line: Line) -> bool:
    run = line["run"]
    alone = (run["intermediate"], run["last"]) == ("none", "none")
    return alone and run["split"] == "validation" and run["reinforcement_steps"] > 0


def _steps(line: Line) -> int:
    """Optimizer steps of the student."""
    steps: int = line["run"]["interaction_steps"] + line["run"]["reinforcement_steps"]
    return steps


def _beside(line: Line, known: Sequence[Line]) -> str:
    """The best SFT score on the terms of a trial; nothing beside SFT itself, or where there is none."""
    if line["arm"] == "SFT":
        return ""
    scores = [
        other["result"]["accuracy"]
        for other in known
        if other["arm"] == "SFT"
        and other["pair"] == line["pair"]
        and other["run"]["seed"] == line["run"]["seed"]
        and _steps(other) == _steps(line)
        and all(other["settings"].get(name) == line["settings"].get(name) for name in _SAME)
    ]
    return f"{100 * max(scores):.1f}" if scores else ""


def _changes(line: Line) -> str:
    """What a trial does differently from the settings of the grid and from its arm, and with which weights."""
    settings = Settings()
    usual, arm = settings.to_json(), ARMS[line["arm"]](settings).to_json()
    told = [
        f"{k} {_plain(k, v)}"
        for k, v in line["settings"].items()
        if usual.get(k) != v and k != "test_seed"  # trials are asked the validation split
    ]
    told += [f"{k} {v}" for k, v in line["run"].items() if k not in _SHOWN and arm[k] != v]
    return "; ".join([*told, f"large {line['pair']['large'][:6]}"])


def _plain(name: str, value: Any) -> str:
    if value is None:
        return "no limit" if name == "records" else "all"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
