"""Benchmarks, evaluations and comparisons as tables. Makes them; ``_output`` prints them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table

from vlsi_cli.commands._tables import new_table
from vlsi_cli.config.benchmarks import Benchmark, paper

if TYPE_CHECKING:
    from vlsi_cli.engine.runs.compare import Comparison
    from vlsi_cli.engine.runs.evaluate import EvaluationReport
    from vlsi_cli.engine.runs.no_worse import NoWorse

_WORD = {True: "yes", False: "no"}
_JUDGES = {"none": "no", "fallback": "yes, for some answers", "required": "yes"}


def benchmark_row(benchmark: Benchmark) -> dict[str, Any]:
    """A benchmark as data."""
    return {
        "name": benchmark.name,
        "aliases": list(benchmark.aliases),
        "title": benchmark.title,
        "tasks": list(benchmark.tasks),
        "split": benchmark.split,
        "data": benchmark.data,
        "questions": benchmark.questions,
        "metrics": list(benchmark.metrics),
        "judge": benchmark.judge if benchmark.known else None,
        "in_paper": any(benchmark.name in row for row in paper().values()),
    }


def benchmarks_table(rows: Sequence[Benchmark]) -> Table:
    """Every benchmark and what it needs."""
    table = new_table("Benchmarks", "name", "about", "task", "split", "questions", "judge", "data")
    for row in rows:
        names = ", ".join((row.name, *row.aliases))
        task = row.tasks[0] if len(row.tasks) == 1 else f"{len(row.tasks)} tasks"
        count = "?" if row.questions is None else str(row.questions)
        judge = _JUDGES[row.judge] if row.known else "?"
        table.add_row(names, row.title, task, row.split or "-", count, judge, row.data or "built in")
    return table


def report_parts(report: EvaluationReport) -> Iterator[RenderableType]:
    """Scores of each model, differences between them, and where the files are."""
    from vlsi_cli.engine.runs import evaluation_report as shown
    from vlsi_cli.engine.runs.requirements import apart

    for model in dict.fromkeys(result.model for result in report.results):
        table = new_table(model, "benchmark", "n", "score", "std. error", "paper", "difference", "remarks")
        for r in (result for result in report.results if result.model == model):
            figures = (shown.figure(r.score), shown.figure(r.error, 2), shown.paper_figures(r))
            table.add_row(r.title, str(r.n), *figures, shown.signed(r.difference), shown.remarks(r))
        yield table
    if report.pairs:
        table = new_table("Differences on the same questions", "benchmark", "from", "to", "n", "difference")
        table.add_column("95 % interval")
        for p in report.pairs:
            names = (shown.title(p.benchmark), p.first, p.second)
            table.add_row(*names, str(p.n), shown.signed(p.difference), shown.interval(p))
        yield table
    if report.requirements:
        table = new_table("What was required", "model", "benchmark", "score", "required", "met", "remarks")
        for one in report.requirements:
            score = "-" if one.score is None else apart(one.score, one.bound)
            required = f"{one.relation} {one.bound:g}"
            near = "within 1.96 standard errors of the bound" if one.close else ""
            table.add_row(one.model, shown.title(one.benchmark), score, required, _WORD[one.met], near)
        yield table
    if any(result.paper for result in report.results):
        yield f"note: {shown.PAPER}"
    yield f"report: {report.output / 'report.md'}"


def comparison_parts(report: Comparison) -> Iterator[RenderableType]:
    """Both evaluations side by side, and the differences question by question."""
    from vlsi_cli.engine.runs import evaluation_report as shown

    columns = [f"{folder}: {model}" for folder, model in report.columns]
    table = new_table("Scores", "benchmark", *columns)
    for row in report.rows:
        table.add_row(shown.title(row.benchmark), *(shown.figure(score) for score in row.scores))
    yield table
    if report.pairs:
        table = new_table("Differences on the same questions", "benchmark", "from", "to", "n", "difference")
        table.add_column("95 % interval")
        for p in report.pairs:
            names = (shown.title(p.benchmark), p.first, p.second)
            table.add_row(*names, str(p.n), shown.signed(p.difference), shown.interval(p))
        yield table
    if report.no_worse:
        table = new_table("No worse", "benchmark", "than", "is", "by", "no worse")
        for one in report.no_worse:
            table.add_row(shown.title(one.benchmark), one.first, one.second, _rule(one), _WORD[one.met])
        yield table
    for note in report.notes:
        yield f"note: {note}"


def _rule(one: NoWorse) -> str:
    """What decided whether a model is no worse."""
    within = "" if not one.margin else f", margin {one.margin:g}"
    if one.rule == "none":
        return "cannot be compared"
    return ("figures alone" if one.rule == "figures" else "95 % interval") + within
