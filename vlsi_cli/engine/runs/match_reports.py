"""What ``vlsi match-layers`` finds, as plain values, and the pictures that are drawn of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlsi_cli.engine.places import require_writable
from vlsi_cli.engine.reports import heatmap
from vlsi_cli.engine.reports.page import write_page
from vlsi_cli.engine.runs.match_history import History
from vlsi_cli.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class SideReport:
    """One model as it was read.

    Attributes:
        id: hub id or folder.
        layers: the target layers, as decoder-layer numbers; ``depth`` is how many decoder layers there are.
        reading: ``logit lens ...``, or which verbalizers.
        state: what weights these are, where they are not simply those of ``id``.
    """

    id: str
    layers: tuple[int, ...]
    depth: int
    reading: str
    state: str = ""


@dataclass(frozen=True)
class Survey:
    """How far the layers of two models are from one another over a sample. A matrix is ``[n_small][n_large]``.

    Attributes:
        data: the sources; ``records`` and response ``tokens`` were read from them, ``skipped`` could not be used.
        batches: of ``batch_size`` records; the last may be smaller.
        matching: how matches are drawn.
        divergence: mean KL(large || small) a response token, nats.
        spread: standard deviation of the batches' means around it, weighted by their tokens.
        temperature: for each small layer, of the draw in its widest window; empty where no divergence is drawn by.
        probabilities: of that draw, 0 outside the window; empty likewise.
        expected: exact probability of every match when matches are drawn from ``divergence``.
        best: for each small layer the *layer number* of its large one in the ascending assignment of least total
            divergence; ``best_divergence`` is the mean over the small layers.
        drawn: share of each match when every batch draws by its own divergences, ``draws`` times.
    """

    data: tuple[str, ...]
    records: int
    skipped: int
    tokens: int
    batches: int
    batch_size: int
    matching: str
    divergence: Matrix
    spread: Matrix
    temperature: tuple[float, ...]
    probabilities: Matrix
    expected: Matrix
    best: tuple[int, ...]
    best_divergence: float
    drawn: Matrix
    draws: int


@dataclass(frozen=True)
class MatchReport:
    """A survey of two models (with both sides), the history of a run, or all of it.

    Attributes:
        small, large: the models as they were read; None where none was.
        survey: divergences over a sample; None without one.
        history: the matches of a run; None without one.
        seconds: wall-clock time.
    """

    small: SideReport | None
    large: SideReport | None
    survey: Survey | None
    history: History | None
    seconds: float


def check_pictures(png: Path | None, svg: Path | None, html: Path | None) -> None:
    """Refuse, before anything is computed, names that cannot be written at the end.

    Raises:
        ConfigError: an ending that is not the option's.
        OutputError: a place where nothing can be written.
    """
    for path, ending in ((png, ".png"), (svg, ".svg")):
        if path is not None:
            heatmap.require_picture(path, ending)
    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{html} ends in '{html.suffix}', and a page is written as .html")
    for path in (png, svg, html):
        if path is not None:
            require_writable(path)


def write_pictures(report: MatchReport, png: Path | None, svg: Path | None, html: Path | None) -> None:
    """Write the picture as PNG, as SVG, and the page, each whole or not at all.

    Raises:
        OutputError: one of them cannot be written.
    """
    for path in (png, svg):
        if path is not None:
            heatmap.save(picture(report), path)
    if html is not None:
        drawn = {name: heatmap.svg(_figure(report, [panel])) for name, panel in panels(report).items()}
        write_page(html, "match_layers", title="Matched layers", report=report, drawn=drawn)


def picture(report: MatchReport) -> Figure:
    """Every heat map of the report in one picture."""
    return _figure(report, list(panels(report).values()))


def panels(report: MatchReport) -> dict[str, heatmap.Panel]:
    """The heat maps of a report by name: ``divergence``, ``expected``, ``drawn``, ``start``, ``end``."""
    found: dict[str, heatmap.Panel] = {}
    if report.survey is not None and report.small is not None and report.large is not None:
        survey, sides = report.survey, (report.small.layers, report.large.layers)
        title = f"Divergence KL(large || small), mean of {survey.tokens} tokens; framed: best assignment"
        found["divergence"] = heatmap.Panel(title, survey.divergence, *sides, "divergence", survey.best)
        title = "Expected matches: exact, from the mean divergences"
        found["expected"] = heatmap.Panel(title, survey.expected, *sides, "share", survey.best)
        title = (
            f"Drawn matches: {survey.batches} batches, each by its own divergences, {survey.draws} draws each"
        )
        found["drawn"] = heatmap.Panel(title, survey.drawn, *sides, "share", survey.best)
    if report.history is not None:
        past = report.history
        for name, period in (("start", past.start), ("end", past.end)):
            title = f"The run's matches at its {name}: steps {period.first} to {period.last}, {period.draws} draws"
            found[name] = heatmap.Panel(title, period.shares, past.small_layers, past.large_layers, "share")
    return found


def _figure(report: MatchReport, shown: list[heatmap.Panel]) -> Figure:
    past = report.history
    small = report.small.id if report.small is not None else past.small if past is not None else ""
    large = report.large.id if report.large is not None else past.large if past is not None else ""
    return heatmap.figure(shown, small=small, large=large)
