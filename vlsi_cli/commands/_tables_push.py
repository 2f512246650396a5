"""A push as text. Makes it; ``_output`` prints it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType

from vlsi_cli.commands._tables import counted, new_table, size

if TYPE_CHECKING:
    from vlsi_cli.engine.runs.push import PushReport


def push_parts(report: PushReport) -> Iterator[RenderableType]:
    """What was sent and where it is; in a dry run every file and the card."""
    total = f"{counted(len(report.files), 'file')}, {size(report.size)}"
    if report.dry_run:
        table = new_table(f"Files for {report.repo}", "file", "size", figures=slice(1, None))
        for file in report.files:
            table.add_row(file.path, size(file.size))
        yield table
        yield f"{total}; nothing was sent"
        yield f"\n{report.card.rstrip()}"
        return
    for name in report.removed:
        yield f"removed: {name} (weights of an earlier push)"
    yield f"{'sent' if report.changed else 'already there'}: {total}"
    yield f"commit: {report.commit}"
    yield f"page: {report.url}"
