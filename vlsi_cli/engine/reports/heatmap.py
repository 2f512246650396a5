"""Heat maps of small layers (rows) against large layers (columns), as PNG, SVG or text for a page.

    draw_matches(path, shares, small_layers, large_layers, small="demo/small", large="demo/large")

draws how often each pair of layers was matched; :func:`figure` draws any number of such maps together.
matplotlib is imported when something is drawn, without pyplot and without a display: no global state is touched.

The colours are cividis, which reads the same with and without red-green colour blindness and in grey. Bright always
means "belongs together": a low divergence, a high share.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vlsi_cli.engine.files import new_file
from vlsi_cli.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg")
_BEST = "#D55E00"  # vermilion of the Okabe-Ito palette: apart from blue and yellow for every kind of sight
_WIDTH, _CELLS = 12.0, (0.2, 0.75)  # inches: what the cells of a row may take together, and one alone
_NUMBERS_FROM = 0.4  # inches: in a smaller cell a number cannot be read


@dataclass(frozen=True)
class Panel:
    """One heat map.

    Attributes:
        title: what its numbers are, in a line.
        values: one row a small layer, one number a large layer: nats for ``divergence``, 0..1 for ``share``.
        rows, columns: decoder-layer numbers of the small and of the large layers.
        kind: decides scale, colours and how numbers are written.
        best: for each row the *layer number* of the large layer to be outlined; empty: none.
    """

    title: str
    values: Sequence[Sequence[float]]
    rows: Sequence[int]
    columns: Sequence[int]
    kind: Literal["divergence", "share"]
    best: Sequence[int] = ()


def draw_matches(
    path: Path,
    shares: Sequence[Sequence[float]],
    small_layers: Sequence[int],
    large_layers: Sequence[int],
    *,
    small: str,
    large: str,
    title: str = "Share of draws in which a small layer was matched with a large one",
    best: Sequence[int] = (),
) -> None:
    """Write a picture of how often layers were matched.

    Args:
        path: ends in ``.png`` or ``.svg``; an existing file is replaced.
        shares: one row a small layer, one share 0..1 a large layer.
        small_layers, large_layers: their decoder-layer numbers.
        small, large: what the two models are called on the axes.
        title: line above the map.
        best: a large layer number for each small layer, to be outlined.

    Raises:
        ConfigError: another ending.
        OutputError: the file cannot be written.
    """
    panel = Panel(title, shares, small_layers, large_layers, "share", best)
    save(figure([panel], small=small, large=large), path)


def figure(panels: Sequence[Panel], *, small: str, large: str, title: str = "") -> Figure:
    """Heat maps in reading order, two abreast where they are narrow, their axes named after the two models.

    Args:
        panels: at least one; each has its own scale and colour bar.
        small, large: names of the models; long ones are cut at their start.
        title: above all of them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(len(panel.columns) for panel in panels)
    cell = min(max(_WIDTH / columns, _CELLS[0]), _CELLS[1])
    across = min(len(panels), max(1, int(_WIDTH // (columns * cell + 2.0))))
    lines = [panels[first : first + across] for first in range(0, len(panels), across)]
    rows = [max(len(panel.rows) for panel in line) for line in lines]
    width = across * (columns * cell + 2.3)
    height = sum(rows) * cell + 1.25 * len(lines) + (0.35 if title else 0.0)
    drawn = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(drawn)
    if title:
        drawn.suptitle(fill(title, max(40, int(10 * width))), fontsize=12, fontweight="bold")
    axes = drawn.subplots(len(lines), across, squeeze=False, height_ratios=rows)
    letters = max(36, int(13 * columns * cell))  # of a title, in the width of the cells
    for place in axes.flat[len(panels) :]:
        place.set_visible(False)
    for place, panel in zip(axes.flat, panels, strict=False):
        place.set_title(fill(panel.title, letters), fontsize=10, loc="left")
        _draw(place, panel, numbers=cell >= _NUMBERS_FROM)
        place.set_xlabel(f"decoder layer of the large model, {_short(large)}", fontsize=9)
        place.set_ylabel(f"small model,\n{_short(small, 24)}", fontsize=9)
    return drawn


def save(drawn: Figure, path: Path) -> None:
    """Write a figure as its path's ending says, whole or not at all.

    Raises:
        ConfigError: the ending is none of :data:`PICTURES`.
        OutputError: the file cannot be written.
    """
    require_picture(path)
    with new_file(path) as part:
        part.write_bytes(_encode(drawn, path.suffix.lower().removeprefix(".")))


def svg(drawn: Figure) -> str:
    """The figure as an ``<svg>`` element to be put into a page: no XML declaration, no document type."""
    text = _encode(drawn, "svg").decode("utf-8")
    return text[text.index("<svg") :]


def require_picture(path: Path, ending: str | None = None) -> None:
    """Refuse a name whose ending is no picture that can be written, or is not ``ending``.

    Raises:
        ConfigError: it is not.
    """
    allowed = PICTURES if ending is None else (ending,)
    if path.suffix.lower() not in allowed:
        raise ConfigError(
            f"{path} ends in '{path.suffix}', and this picture is written as {' or '.join(allowed)}",
            hint=f"name it {path.with_suffix(allowed[0]).name}" if path.name.strip(".") else None,
        )


def _encode(drawn: Figure, kind: str) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    # A fixed salt and no date: the same numbers give the same bytes. Letters stay letters, to be found and read aloud.
    with rc_context({"svg.hashsalt": "vlsi", "svg.fonttype": "none"}):
        drawn.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _draw(place: Axes, panel: Panel, *, numbers: bool) -> None:
    share = panel.kind == "share"
    values = np.asarray(panel.values, dtype=float)
    low, high = (0.0, 1.0) if share else (values.min(), values.max())
    # Squares rather than an image: a picture that is enlarged stays sharp.
    rows, columns = (np.arange(count + 1) - 0.5 for count in values.shape)
    image = place.pcolormesh(
        columns,
        rows,
        values,
        cmap="cividis" if share else "cividis_r",
        vmin=low,
        vmax=high if high > low else low + 1.0,
        edgecolors="white",
        linewidth=0.4,
    )
    place.set_aspect("equal")
    place.invert_yaxis()
    place.set_xticks(range(len(panel.columns)), [str(layer) for layer in panel.columns], fontsize=8)
    place.set_yticks(range(len(panel.rows)), [str(layer) for layer in panel.rows], fontsize=8)
    place.tick_params(length=0)
    for side in place.spines.values():
        side.set_visible(False)
    if numbers:
        light = image.to_rgba(values)[..., :3] @ (0.299, 0.587, 0.114) > 0.5
        for (r, c), value in np.ndenumerate(values):
            ink = "black" if light[r, c] else "white"
            place.text(c, r, written(value, panel.kind), ha="center", va="center", color=ink, fontsize=8)
    _outline(place, panel)
    bar: Any = place.figure.colorbar(image, ax=place, fraction=0.03, pad=0.015)
    bar.set_label("share of draws" if share else "nats a token", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)


def _outline(place: Axes, panel: Panel) -> None:
    """A frame around each best cell, and a line from frame to frame that leaves the numbers free."""
    from matplotlib.patches import Rectangle

    spots = [(list(panel.columns).index(layer), row) for row, layer in enumerate(panel.best)]
    for column, row in spots:
        frame = Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=_BEST, linewidth=2.2)
        place.add_patch(frame)
    for (c1, r1), (c2, r2) in pairwise(spots):
        across, down = c2 - c1, r2 - r1
        part = 0.46 / max(abs(across), abs(down))
        xs, ys = (c1 + part * across, c2 - part * across), (r1 + part * down, r2 - part * down)
        place.plot(xs, ys, color=_BEST, linewidth=1.6, solid_capstyle="round")


def written(value: float, kind: Literal["divergence", "share"]) -> str:
    """A cell's number: whole per cents (nothing for none), or nats with three digits at most."""
    if kind == "share":
        return f"{100 * value:.0f}%".removeprefix("0%")
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _short(name: str, longest: int = 48) -> str:
    """A model's name as it is, or its last part, or the end of that."""
    last = name if len(name) <= longest else name.rstrip("/").rsplit("/", 1)[-1]
    return last if len(last) <= longest else "…" + last[1 - longest :]
