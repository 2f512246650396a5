"""Tables that stay readable in any terminal.

rich makes a table fit by narrowing its columns until words are cut into pieces, which nobody can read. Here a column is
never narrower than its longest word; a table that would still be too wide is turned on its side, as many of its rows
beside each other as there is room for.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

#: Blanks between two columns.
_GAP = 2


class FittingTable(Table):
    """A plain table under a title, whose cells are text.

    Args:
        title: what stands above it; "" for nothing.
        columns: their names.
    """

    def __init__(self, title: str, *columns: str) -> None:
        super().__init__(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_header=any(columns))
        self.heading = title
        for column in columns:
            self.add_column(column, overflow="fold")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.heading:
            yield Text(self.heading, style="bold")
        names = [str(column.header) for column in self.columns]
        cells = [[str(cell) for cell in column.cells] for column in self.columns]
        room = options.max_width
        least, most = _widths(
            console, options, [[name, *own] for name, own in zip(names, cells, strict=True)]
        )
        if _together(most) > room >= _together(least):
            for column, width in zip(self.columns, _shared(least, most, room), strict=True):
                column.width = width
        if _together(least) <= room or not cells or not cells[0]:
            yield from super().__rich_console__(console, options)
            return
        rows = list(zip(*cells, strict=True))
        while rows:
            beside = len(rows)
            while beside > 1 and _together(_widths(console, options, [names, *rows[:beside]])[0]) > room:
                beside -= 1
            yield _turned(console, options, names, rows[:beside])
            rows = rows[beside:]
            if rows:
                yield Text()


def _turned(
    console: Console, options: ConsoleOptions, names: list[str], rows: list[tuple[str, ...]]
) -> Table:
    """Rows as columns, behind a column of names."""
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_header=False)
    least, most = _widths(console, options, [names, *rows])
    widths: list[int] | list[None] = [None] * len(least)
    if _together(most) > options.max_width >= _together(least):
        widths = _shared(least, most, options.max_width)
    for place, width in enumerate(widths):
        table.add_column(overflow="fold", width=width, style="" if place else "bold")
    for name, *values in zip(names, *rows, strict=True):
        table.add_row(name, *values)
    return table


def _widths(
    console: Console, options: ConsoleOptions, columns: Sequence[Sequence[str]]
) -> tuple[list[int], list[int]]:
    """Of each column the width of its longest word, and that of its longest cell."""
    free = options.update_width(10_000)
    found = [[Measurement.get(console, free, Text(cell)) for cell in cells] for cells in columns]
    least = [max((each.minimum for each in own), default=0) for own in found]
    return least, [max((each.maximum for each in own), default=0) for own in found]


def _together(widths: list[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _shared(least: list[int], most: list[int], room: int) -> list[int]:
    """Widths between the two that fill the room, the columns that lack least being filled first."""
    widths, left = list(least), room - _together(least)
    order = sorted(range(len(least)), key=lambda place: most[place] - least[place])
    for done, place in enumerate(order):
        more = min(most[place] - least[place], left // (len(order) - done))
        widths[place] += more
        left -= more
    return widths
