"""Answered records as a table. Makes it; ``_output`` prints it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table

from vlsi_cli.commands._progress import duration
from vlsi_cli.commands._tables import new_table

if TYPE_CHECKING:
    from vlsi_cli.engine.runs.answer_reports import AnswerPlan, AnswerReport


def report_parts(report: AnswerReport) -> Iterator[RenderableType]:
    """How many records there are, why others are not, and how to train on them."""
    why = {"answered": report.answered, "had answers": report.kept, **report.left_out, **report.unusable}
    yield _table(why)
    yield from _examples(report.examples)
    yield from _passed_over(report.passed_over)
    before = f", {report.reused:,} from before" if report.reused else ""
    yield (
        f"{report.output}: {report.records:,} records; {report.generated:,} answers of {report.tokens:,} tokens "
        f"generated in {duration(report.seconds)}{before}"
    )
    root = ""
    if report.image_root is not None:
        root = f" --set data.sources.0.image_root={shlex.quote(str(report.image_root))}"
    yield f"to train on them: vlsi distill --data {shlex.quote(str(report.output))}{root}"


def plan_parts(plan: AnswerPlan) -> Iterator[RenderableType]:
    """How many records would be answered, and why others would not."""
    yield _table({"to be answered": plan.answerable, "have answers": plan.kept, **plan.unusable})
    yield from _examples(plan.examples)
    yield from _passed_over(plan.passed_over)
    yield f"{plan.model} would answer into {plan.output}"


def missing(report: AnswerReport) -> str:
    """That records are not in the file, in a sentence."""
    lacking = sum(report.left_out.values()) + sum(report.unusable.values())
    more = ""
    if cut := report.left_out.get("answer-cut"):
        bound = report.settings["max_new_tokens"]
        many = f"{cut:,} answers" if cut > 1 else "an answer"
        more = f"; {many} did not end within {bound} tokens: a larger --max-new-tokens asks for what did not"
    return f"{lacking:,} records are not in the file, and the report says why{more}"


def _table(rows: dict[str, int]) -> Table:
    table = new_table("Answers", "", "records", figures=slice(1, None))
    for name, found in rows.items():
        table.add_row(name, f"{found:,}")
    return table


def _examples(examples: dict[str, list[str]]) -> Iterator[str]:
    for reason, some in examples.items():
        for each in some:
            yield f"{reason}: {each}"


def _passed_over(others: dict[str, int]) -> Iterator[str]:
    if others:
        yield "no pictures, and passed over: " + ", ".join(
            f"{kind} {count:,}" for kind, count in others.items()
        )
