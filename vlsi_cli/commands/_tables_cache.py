"""Teacher caches as tables. Makes them; ``_output`` prints them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table

from vlsi_cli.commands._progress import duration
from vlsi_cli.commands._tables import counted, new_table, size

if TYPE_CHECKING:
    from vlsi_cli.engine.runs.cache_reports import CacheReport, VerifyReport


def cache_parts(report: CacheReport) -> Iterator[RenderableType]:
    """What a cache is of, how large it is (or will be), and the data that it was built from."""
    yield _facts(report)
    sources = new_table("Data", "source", "records", "what")
    for number, source in enumerate(report.about["sources"]):
        what = ", ".join(
            f"{key} {value}" for key, value in source.items() if key != "records" and value is not None
        )
        sources.add_row(str(number), f"{source['records']:,}", what)
    yield sources


def verify_parts(report: VerifyReport) -> Iterator[RenderableType]:
    """Every problem of a cache, or that there is none."""
    yield from report.problems
    if not report.problems:
        yield f"{report.path}: {counted(report.shards, 'shard')}, {size(report.bytes)}, every byte as it was written"


def _facts(report: CacheReport) -> Table:
    about, expected = report.about, report.size
    table = new_table("Teacher cache", "", "")
    top_k = about["kind"] == "top-k"
    kept = f"top {about['k']} tokens and tail mass" if top_k else f"states, {about['dtype']}"
    layers = ", ".join(map(str, about["targets"]))
    last = "the last layer alone"
    rounded = "" if about["quantization"] == "none" else f", layers in {about['quantization']},"
    rows = {
        "folder": str(report.path),
        "large model": about["model"] + (f" at {about['revision']}" if about["revision"] else ""),
        "weights": about["weights_sha256"][:12] or "not on this machine",
        "keeps": kept,
        "layers": f"{layers} and the last ({about['content']})" if layers else last,
        "verbalizers": (about["verbalizers_sha256"] or "none")[:12],
        "computed in": f"{about['precision']}{rounded} on {report.versions.get('device', '?')}",
    }
    built = {
        "complete": "yes" if report.complete else f"no: {report.records:,} records of {report.draws:,}",
        "records": f"{report.records:,}",
        "response tokens": f"{report.tokens:,}",
        "on the disk": f"{size(report.bytes)} in {counted(report.shards, 'shard')}",
    }
    if report.shards or expected is None:  # a dry run has built nothing
        rows |= built
    if expected is not None:
        how = (
            ""
            if expected.sampled == expected.draws
            else f", estimated from {counted(expected.sampled, 'record')}"
        )
        rows["size when complete"] = (
            f"{size(expected.bytes)} ({expected.tokens:,} response tokens x {expected.token_bytes:,} bytes{how})"
        )
    if report.skipped:
        rows["skipped"] = ", ".join(f"{reason} {count}" for reason, count in report.skipped.items())
    if report.seconds:
        rows["built in"] = duration(report.seconds)
    for name, value in rows.items():
        table.add_row(name, value)
    return table
