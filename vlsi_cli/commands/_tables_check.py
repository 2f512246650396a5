"""Checked data as tables. Makes them; ``_output`` prints them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table

from vlsi_cli.commands._progress import duration
from vlsi_cli.commands._tables import counted, new_table

if TYPE_CHECKING:
    from vlsi_cli.engine.runs.data_check_reports import CheckReport

#: Records named for each reason; the JSON document names more.
_SHOWN = 3


def check_parts(report: CheckReport) -> Iterator[RenderableType]:
    """How many records can be used, how long they are, and why others cannot, with the first of each reason."""
    yield _records(report)
    if report.usable:
        yield _lengths(report)
    if report.unusable:
        yield _reasons(report)
    hints: dict[str, str] = {}
    for source in report.sources:
        for reason, found in source.reasons.items():
            for each in found.examples[:_SHOWN]:
                named = (
                    f"{each.record} in {each.where}" if each.record not in ("", each.where) else each.where
                )
                yield f"{reason}: {named}" + (f": {each.detail}" if each.detail else "")
            if found.hint is not None:
                hints[reason] = found.hint
    for reason, hint in hints.items():
        yield f"hint for {reason}: {hint}"
    if written := sum(source.written_images for source in report.sources):
        yield f"note: the text of {counted(written, 'record')} holds <img>...</img>, which is trained on as words"
    if report.bad is not None:
        yield f"{report.bad}: {counted(report.unusable, 'record')} that cannot be used"
    bounds = {report.max_length: f"{report.max_length:,} tokens"}
    for source in report.sources:
        bounds.setdefault(source.max_length, f"{source.max_length:,} of the held-out data")
    yield (
        f"{report.usable:,} of {counted(report.records, 'record')} can be used, as {report.model} sees them in at most "
        f"{', '.join(bounds.values())}; read in {duration(report.seconds)}"
    )


def complaint(report: CheckReport) -> str:
    """That records cannot be used, in a sentence."""
    return f"{report.unusable:,} of {counted(report.records, 'record')} cannot be used; the report says why"


def _records(report: CheckReport) -> Table:
    names = ("records", "usable", "unusable", "with pictures")
    table = new_table("Records", "source", *names, figures=slice(1, None))
    for number, source in enumerate(report.sources):
        figures = (source.records, source.usable, source.unusable, source.with_images)
        name = f"{number}: {source.source}" if len(report.sources) > 1 else source.source
        if source.held_out:
            name += ", held out"
        table.add_row(name, *(f"{figure:,}" for figure in figures))
    return table


def _lengths(report: CheckReport) -> Table:
    names = ("min", "median", "95 %", "max")
    table = new_table("Tokens of usable records", "tokens", *names, figures=slice(1, None))
    for number, source in enumerate(report.sources):
        found = {
            "all": source.tokens, "of pictures": source.image_tokens, "trained": source.trained_tokens,
        }  # fmt: skip
        for what, lengths in found.items():
            if lengths is not None:
                name = f"{number}: {what}" if len(report.sources) > 1 else what
                table.add_row(name, *(f"{figure:,}" for figure in astuple(lengths)))
    return table


def _reasons(report: CheckReport) -> Table:
    table = new_table("Unusable records", "reason", "records", "meaning", figures=slice(1, 2))
    for number, source in enumerate(report.sources):
        for reason, found in source.reasons.items():
            name = f"{number}: {reason}" if len(report.sources) > 1 else reason
            table.add_row(name, f"{found.count:,}", found.meaning)
    return table
