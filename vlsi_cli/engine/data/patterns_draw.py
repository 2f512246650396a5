"""Pictures of the built-in puzzles: what is on them, and how it is painted.

Two kinds of picture exist, both on a white ground and both without anti-aliasing, so that every pixel has one
of a few named colours and a test can read a picture back without trusting the code that drew it:

* a **row** (64 x 16 pixels): four cells of 16 x 16 pixels. One to four grey ticks along a cell's upper edge
  number it. A cell shows one coloured shape, or a grey dashed box where a picture is missing;
* a **chart** (32 x 32 pixels): four bars, 8 pixels apart, each a stack of one to seven blocks of 4 pixels.

Sizes are multiples of 8 pixels, the merged patch of the demo pair (patch 4, merge 2), so the image processor never
resizes them, a cell is 2 x 2 image tokens and either picture is 16 image tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (30, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (240, 200, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")
CELLS = 4
"""Cells in a row, and bars in a chart."""
MAX_HEIGHT = 7
"""Blocks in the tallest bar a chart can hold."""

WHITE = (255, 255, 255)
GREY = (150, 150, 150)
CELL_PIXELS = 16
SHAPE_PIXELS = 11
CHART_PIXELS = 32
BLOCK_PIXELS = 4
BAR_PIXELS = 6


@dataclass(frozen=True)
class Item:
    """One coloured shape; as a phrase it reads "red circle"."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Row:
    """Four items from left to right; `missing` is the index (0-3) of the one that is not drawn, or None.

    The hidden item is part of the content: two pictures of one complete row always land in the same split.
    """

    items: tuple[Item, ...]
    missing: int | None = None

    @property
    def key(self) -> str:
        """The content that decides the split: all four items, whichever of them is hidden."""
        return "row: " + ", ".join(map(str, self.items))

    @property
    def visible(self) -> tuple[int, ...]:
        """Indices of the cells that show an item."""
        return tuple(i for i in range(CELLS) if i != self.missing)

    def __str__(self) -> str:
        return ", ".join("missing" if i == self.missing else str(item) for i, item in enumerate(self.items))


@dataclass(frozen=True)
class Chart:
    """Four bars from left to right: (colour, height in blocks), every colour once."""

    bars: tuple[tuple[str, int], ...]

    @property
    def key(self) -> str:
        """The content that decides the split: colours and heights in their order."""
        return "chart: " + ", ".join(f"{colour} {height}" for colour, height in self.bars)


Content = Row | Chart


def split_of(content: Content) -> str:
    """The only split this content may appear in: "train" (80 %), "validation" (10 %) or "test" (10 %).

    Decided by a hash of the content alone, so no seed, size or order of drawing can move a picture across splits.
    """
    bucket = int.from_bytes(hashlib.sha256(content.key.encode()).digest()[:8], "big") % 10
    return {8: "validation", 9: "test"}.get(bucket, "train")


def _circle(x: int, y: int) -> bool:
    return (x - 5) ** 2 + (y - 5) ** 2 <= 29


def _square(x: int, y: int) -> bool:
    return True


def _triangle(x: int, y: int) -> bool:
    return abs(x - 5) * 2 <= y + 1


def _cross(x: int, y: int) -> bool:
    return abs(x - 5) <= 1 or abs(y - 5) <= 1


STENCILS: dict[str, Callable[[int, int], bool]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
}
"""For each shape, whether pixel (x, y) of its 11 x 11 box is painted."""


def draw(content: Content) -> Image.Image:
    """Paint a row (64 x 16 RGB) or a chart (32 x 32 RGB)."""
    return _draw_row(content) if isinstance(content, Row) else _draw_chart(content)


def _draw_row(row: Row) -> Image.Image:
    image = Image.new("RGB", (CELLS * CELL_PIXELS, CELL_PIXELS), WHITE)
    for index, item in enumerate(row.items):
        left = index * CELL_PIXELS
        for tick in range(index + 1):
            image.paste(GREY, (left + 2 + 3 * tick, 0, left + 4 + 3 * tick, 2))
        missing = index == row.missing
        for x, y in _box(SHAPE_PIXELS):
            painted = _dashed(x, y) if missing else STENCILS[item.shape](x, y)
            if painted:
                image.putpixel((left + 2 + x, 4 + y), GREY if missing else COLOURS[item.colour])
    return image


def _dashed(x: int, y: int) -> bool:
    """The outline of an 11 x 11 box, every third pixel left out."""
    edge = x in (0, SHAPE_PIXELS - 1) or y in (0, SHAPE_PIXELS - 1)
    return edge and (x + y) % 3 != 2


def _box(size: int) -> Iterator[tuple[int, int]]:
    return ((x, y) for y in range(size) for x in range(size))


def _draw_chart(chart: Chart) -> Image.Image:
    image = Image.new("RGB", (CHART_PIXELS, CHART_PIXELS), WHITE)
    for index, (colour, height) in enumerate(chart.bars):
        left = index * (CHART_PIXELS // CELLS) + 1
        for block in range(height):
            bottom = CHART_PIXELS - block * BLOCK_PIXELS
            # The top line of every block stays white, so that blocks can be counted.
            image.paste(COLOURS[colour], (left, bottom - BLOCK_PIXELS + 1, left + BAR_PIXELS, bottom))
    return image
