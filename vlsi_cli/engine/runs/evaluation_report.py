"""The report of an evaluation as JSON and as Markdown, and stored reports read back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vlsi_cli.config.benchmarks import table
from vlsi_cli.engine.evaluation.scores import Paired, Result
from vlsi_cli.engine.files import new_file, write_json

if TYPE_CHECKING:
    from vlsi_cli.engine.runs.evaluate import EvaluationReport


def write(report: EvaluationReport) -> None:
    """Write `report.json` and `report.md` into the report's folder.

    Raises:
        OutputError: they cannot be written.
    """
    document = {
        "results": [asdict(result) for result in report.results],
        "pairs": [asdict(pair) for pair in report.pairs],
        "skipped": list(report.skipped),
        "settings": report.settings,
        "requirements": [asdict(outcome) for outcome in report.requirements],
    }
    write_json(report.output / "report.json", document)
    with new_file(report.output / "report.md") as part:
        part.write_text("\n".join(_markdown(report)) + "\n", encoding="utf-8")


def _markdown(report: EvaluationReport) -> Iterator[str]:
    yield "# Evaluation\n"
    yield from results_markdown(report.results)
    if report.requirements:
        yield "\n## What was required\n"
        yield from (f"- {'met' if one.met else 'not met'}: {one.sentence}" for one in report.requirements)
    if report.pairs:
        yield "\n## Differences between the models on the same questions\n"
        yield from pairs_markdown(report.pairs)
    if report.skipped:
        yield f"\nLeft out for want of a judge: {', '.join(report.skipped)}."
    if notes := list(dict.fromkeys(f"{r.title}: {note}" for r in report.results for note in r.notes)):
        yield "\n## Notes\n"
        yield from (f"- {note}" for note in notes)
    if any(result.paper for result in report.results):
        yield "\n" + PAPER
    settings = report.settings
    yield "\n## Settings\n"
    yield f"- {settings['harness']}, {settings['decoding']} decoding, {settings['precision']} on {settings['device']}"
    for name, version in settings["environment"].get("packages", {}).items():
        yield f"- {name} {version}"
    for id, facts in settings["models"].items():
        yield f"- {id}: identity {facts['identity']}"
    for judge in {
        str(r.judge["answers as"]) + " at " + r.judge["address"] for r in report.results if r.judge
    }:
        yield f"- judge {judge}"


PAPER = (
    "The paper's figures are what it prints, reached with its own settings; they were not reproduced here. Its "
    "training data hold material of ChartQA, AI2D, TextbookQA and MathVision, so a model trained on them has seen "
    "questions like those of ChartQA, AI2D and MathVista."
)


def results_markdown(results: Sequence[Result]) -> Iterator[str]:
    """A table of results."""
    yield "| model | benchmark | n | score | standard error | paper | difference | remarks |"
    yield "|---|---|--:|--:|--:|--:|--:|---|"
    for r in results:
        row = (
            r.model,
            r.title,
            str(r.n),
            figure(r.score),
            figure(r.error, 2),
            paper_figures(r),
            signed(r.difference),
        )
        yield f"| {' | '.join(row)} | {remarks(r)} |"


def pairs_markdown(pairs: Sequence[Paired]) -> Iterator[str]:
    """A table of paired differences."""
    yield "| benchmark | from | to | n | difference | 95 % interval |"
    yield "|---|---|---|--:|--:|--:|"
    for p in pairs:
        yield f"| {title(p.benchmark)} | {p.first} | {p.second} | {p.n} | {signed(p.difference)} | {interval(p)} |"


def title(benchmark: str) -> str:
    """A benchmark's title, or its name where it has none."""
    row = table().get(benchmark)
    return row.title if row else benchmark


def figure(value: float | None, digits: int = 1) -> str:
    """A score; a dash when it is missing. Small figures of unscaled metrics keep their digits."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if abs(value) >= 2 or value == 0 else f"{value:.{max(digits, 3)}f}"


def signed(value: float | None) -> str:
    """A difference with its sign."""
    return "-" if value is None else f"{value:+.1f}" if abs(value) >= 2 or value == 0 else f"{value:+.2f}"


def interval(pair: Paired) -> str:
    """Both ends of an interval."""
    return "-" if pair.low is None or pair.high is None else f"{signed(pair.low)} to {signed(pair.high)}"


def paper_figures(result: Result) -> str:
    """What the paper prints: one figure, or both."""
    return " / ".join(f"{value:g}" for value in result.paper) or "-"


def remarks(result: Result) -> str:
    """What is to be known of one figure, in short."""
    said = []
    if result.missing:
        said.append(f"no score: {result.missing}")
    if result.filled:
        said.append(f"{result.filled} unreadable answers replaced by chance")
    if result.cut:
        said.append(f"{result.cut} answers cut at their length")
    if result.judge:
        said.append(f"judged by {result.judge['answers as']}")
    if result.settings.get("limit"):
        said.append(f"first {result.settings['limit']} only")
    return "; ".join(said)


def read_results(path: Path) -> list[Result]:
    """The results of a stored `report.json`.

    Raises:
        ValueError, KeyError, TypeError: it is not one.
        OSError: it cannot be read.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    return [Result(**result) for result in document["results"]]
