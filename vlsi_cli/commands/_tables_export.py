"""How an export and its check look in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType

from vlsi_cli.commands._progress import percent
from vlsi_cli.commands._tables import new_table, size

if TYPE_CHECKING:
    from vlsi_cli.engine.runs.export import ExportReport


def export_parts(report: ExportReport, *, what: str = "exported") -> Iterator[RenderableType]:
    """The comparison, the files, and where they are; ``what`` was done."""
    check = report.check
    table = new_table("onnxruntime against torch", "prompt", "rows", "tokens", "logits differ by", "of at most",
                      "equal tokens", "of", "equal from the start")  # fmt: skip
    for case in check.cases:
        table.add_row(
            case.name,
            str(case.rows),
            str(case.tokens),
            f"{case.logit_difference:.2g}",
            f"{case.largest_logit:.1f}",
            percent(case.equal_tokens),
            str(case.rows * check.steps),
            str(case.equal_prefix),
        )
    yield table
    if (asked := check.accuracy) is not None:
        yield (
            f"{asked.questions} puzzles: torch {percent(asked.torch)}, {check.precision} {percent(asked.onnx)} "
            f"(change {100 * (asked.onnx - asked.torch):+.1f} points, standard error {100 * asked.error:.1f}); "
            f"{percent(asked.same_answers)} of the answers are the same text"
        )
    files = new_table(
        f"{report.layout}, {report.precision}, opset {report.opset}", "file", "size", figures=slice(1, None)
    )
    for name, length in report.files.items():
        files.add_row(name, size(length))
    yield files
    yield f"{what}: {report.folder}"
