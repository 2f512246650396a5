"""Matched layers in a terminal: heat maps that can be read without colours and fit into 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vlsi_cli.commands._tables import counted, new_table

if TYPE_CHECKING:
    from vlsi_cli.engine.runs.match_history import History
    from vlsi_cli.engine.runs.match_reports import MatchReport, SideReport, Survey

# matplotlib's cividis in nine steps, as in the pictures: the same for every kind of colour vision, bright is near.
_CIVIDIS = ("#00224e", "#1a386f", "#434e6c", "#61656f", "#7d7c78", "#9b9476", "#bcae6c", "#dec958", "#fee838")
_FIRST_BRIGHT = 4  # from here on black letters are easier to read


def report_parts(report: MatchReport, *, width: int) -> Iterator[RenderableType]:
    """Everything that is shown of a report, part by part.

    Args:
        report: what was found.
        width: columns that a heat map may take; wider ones are continued below.
    """
    if report.survey is not None and report.small is not None and report.large is not None:
        yield from _survey_parts(report.small, report.large, report.survey, width)
    if report.history is not None:
        yield from _history_parts(report.history, width)


def _survey_parts(
    small: SideReport, large: SideReport, survey: Survey, width: int
) -> Iterator[RenderableType]:
    for name, side in (("large", large), ("small", small)):
        state = f" {side.state}" if side.state else ""
        yield f"{name}: {side.id}{state}, layers {_list(side.layers)} of {side.depth}"
        yield f"       read through {side.reading}"
    skipped = f"; {survey.skipped} could not be used" if survey.skipped else ""
    yield (
        f"sample: {counted(survey.records, 'record')}, {counted(survey.tokens, 'response token')}, "
        f"of {', '.join(survey.data)}; batches of {survey.batch_size}{skipped}"
    )
    yield f"matching: {survey.matching}"
    rows, columns = small.layers, large.layers
    written = [[_nats(value) for value in row] for row in survey.divergence]
    flat = [value for row in survey.divergence for value in row]
    low, span = min(flat), (max(flat) - min(flat)) or 1.0
    shades = [[1 - (value - low) / span for value in row] for row in survey.divergence]
    title = "Divergence KL(large || small), nats a token; in [ ]: the best assignment"
    yield _heat_map(title, written, shades, rows, columns, survey.best, width)
    yield _shares(
        "Expected matches, exact from these divergences", survey.expected, rows, columns, survey.best, width
    )
    title = f"Drawn matches: {survey.batches} batches by their own divergences, {survey.draws} draws each"
    yield _shares(title, survey.drawn, rows, columns, survey.best, width)
    yield _summary(rows, columns, survey)
    yield "expected, drawn: mean layer of the large model; T: temperature of the draw in the widest window"
    yield f"best assignment: {survey.best_divergence:.3f} nats a layer"


def _summary(rows: Sequence[int], columns: Sequence[int], survey: Survey) -> Table:
    names = ("nearest", "best", "expected", "drawn", "KL of best", "+- between batches", "T")
    table = new_table("\nBy small layer", "small", *names, figures=slice(None))
    for place, layer in enumerate(rows):
        divergences = survey.divergence[place]
        best = columns.index(survey.best[place])
        table.add_row(
            str(layer),
            str(columns[divergences.index(min(divergences))]),
            str(survey.best[place]),
            f"{_mean(survey.expected[place], columns):.2f}",
            f"{_mean(survey.drawn[place], columns):.2f}",
            f"{divergences[best]:.3f}",
            f"{survey.spread[place][best]:.3f}",
            f"{survey.temperature[place]:.3g}" if survey.temperature else "-",
        )
    return table


def _history_parts(past: History, width: int) -> Iterator[RenderableType]:
    yield f"run: {past.run} ({past.large} to {past.small}), {past.steps} interaction steps"
    for name, period in (("start", past.start), ("end", past.end)):
        title = f"Its matches at its {name}: steps {period.first} to {period.last}, {period.draws} draws"
        yield _shares(title, period.shares, past.small_layers, past.large_layers, (), width)
    spans = [f"steps {period.first}-{period.last}" for period in (past.start, past.end)]
    title = "\nHow its matches moved: mean large layer"
    table = new_table(title, "small", *spans, "moved", figures=slice(None))
    for place, layer in enumerate(past.small_layers):
        before, after = past.start.mean[place], past.end.mean[place]
        table.add_row(str(layer), f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}")
    yield table


def _shares(
    title: str,
    shares: Sequence[Sequence[float]],
    rows: Sequence[int],
    columns: Sequence[int],
    best: Sequence[int],
    width: int,
) -> Text:
    written = [[f"{100 * value:.0f}%".removeprefix("0%") or "." for value in row] for row in shares]
    return _heat_map(title, written, shares, rows, columns, best, width)


def _heat_map(
    title: str,
    written: Sequence[Sequence[str]],
    shades: Sequence[Sequence[float]],
    rows: Sequence[int],
    columns: Sequence[int],
    best: Sequence[int],
    width: int,
) -> Text:
    """A line a small layer, a cell a large one; more columns than fit are continued in further blocks."""
    cell = max(2 + max(len(word) for row in written for word in row), 2 + len(str(columns[-1])))
    label = len(f"small {rows[-1]} ")
    fitting = max(1, (width - label) // cell)
    text = Text(f"\n{title}\n", style="bold")
    for first in range(0, len(columns), fitting):
        chosen = range(first, min(first + fitting, len(columns)))
        heads = "".join(str(columns[c]).center(cell) for c in chosen)
        text.append(f"{'large'.ljust(label)}{heads.rstrip()}\n", "not bold dim")
        for r, layer in enumerate(rows):
            text.append(f"small {layer}".ljust(label), "not bold dim")
            for c in chosen:
                marked = bool(best) and best[r] == columns[c]
                word = f"[{written[r][c]}]" if marked else written[r][c]
                text.append(word.center(cell), _style(shades[r][c], marked))
            text.append("\n")
    text.right_crop(1)
    return text


def _style(shade: float, marked: bool) -> str:
    step = min(int(shade * len(_CIVIDIS)), len(_CIVIDIS) - 1)
    ink = "black" if step >= _FIRST_BRIGHT else "white"
    return f"{'bold' if marked else 'not bold'} {ink} on {_CIVIDIS[step]}"


def _nats(value: float) -> str:
    return f"{value:.2f}" if value < 99.95 else f"{value:.0f}"


def _mean(shares: Sequence[float], layers: Sequence[int]) -> float:
    return sum(share * layer for share, layer in zip(shares, layers, strict=True))


def _list(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
