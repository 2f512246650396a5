"""Pictures of the built-in puzzles: what is on them, and how it is painted.

Two kinds of picture exist, both without anti-aliasing, so that every pixel has one of a few named colours and a test
can read a picture back without trusting the code that drew it:

* a **row** (32 x 8 pixels): four cells of 8 x 8 pixels. Their number is drawn twice, as the length of a black bar on
  the upper edge and as the shade of the ground, from white to dark grey. Below the bar a cell shows one coloured
  shape, or a black dashed box where a picture is missing;
* a **chart** (32 x 32 pixels): four bars, 8 pixels apart, each a stack of one to seven blocks of 4 pixels.

Sizes are multiples of 8 pixels, the merged patch of the demo pair (patch 4, merge 2), so the image processor never
resizes them. A cell is one image token: a row has 4 of them, a chart 16. (Cells of 16 pixels, four tokens each, were
tried: a model of this size learned to describe such rows but not, in the same time, to find and compare cells. So were
small grey ticks for numbers: they were 0.2 % of what the vision tower passed on, and a cell was hardly ever found.)
"""

from __future__ import annotations

import hashlib
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
BLACK = (0, 0, 0)
SHADES = (255, 210, 165, 120)
"""Grey of the ground of cells one to four: a number that fills the cell, not a mark that a small model overlooks."""
CELL_PIXELS = 8
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


STENCILS: dict[str, tuple[str, ...]] = {
    "circle": ("..###..", ".#####.", "#######", "#######", ".#####.", "..###.."),
    "square": ("#######", "#######", "#######", "#######", "#######", "#######"),
    "triangle": ("...#...", "..###..", "..###..", ".#####.", ".#####.", "#######"),
    "cross": ("..###..", "..###..", "#######", "#######", "..###..", "..###.."),
    "missing": ("#.#.#.#", "#.....#", ".......", ".......", "#.....#", "#.#.#.#"),
}
"""The 7 x 6 pixels that a shape paints in its cell, from the third line of pixels down; "missing" is painted black."""


def draw(content: Content) -> Image.Image:
    """Paint a row (32 x 8 RGB) or a chart (32 x 32 RGB)."""
    return _draw_row(content) if isinstance(content, Row) else _draw_chart(content)


def _draw_row(row: Row) -> Image.Image:
    image = Image.new("RGB", (CELLS * CELL_PIXELS, CELL_PIXELS), WHITE)
    for index, item in enumerate(row.items):
        left = index * CELL_PIXELS
        image.paste((SHADES[index],) * 3, (left, 0, left + CELL_PIXELS, CELL_PIXELS))
        image.paste(BLACK, (left, 0, left + 2 * (index + 1), 1))
        hidden = index == row.missing
        for y, line in enumerate(STENCILS["missing" if hidden else item.shape], start=2):
            for x, mark in enumerate(line):
                if mark == "#":
                    image.putpixel((left + x, y), BLACK if hidden else COLOURS[item.colour])
    return image


def _draw_chart(chart: Chart) -> Image.Image:
    image = Image.new("RGB", (CHART_PIXELS, CHART_PIXELS), WHITE)
    for index, (colour, height) in enumerate(chart.bars):
        left = index * (CHART_PIXELS // CELLS) + 1
        for block in range(height):
            bottom = CHART_PIXELS - block * BLOCK_PIXELS
            # The top line of every block stays white, so that blocks can be counted.
            image.paste(COLOURS[colour], (left, bottom - BLOCK_PIXELS + 1, left + BAR_PIXELS, bottom))
    return image
