"""Tables in terminals of any width: no word is cut, nothing is lost, and names stay as they are."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from vlsi_cli.commands import _output
from vlsi_cli.commands._fitting import FittingTable

NAMES = ("stage", "records a step", "weights", "peak memory")
ROWS = (
    ("interaction", "4 x 128 = 512", "19.8 GiB", "26.9 GiB"),
    ("reinforcement", "4 x 128 = 512", "4.4 GiB", "9.3 GiB"),
)


def shown(width: int) -> list[str]:
    table = FittingTable("Stages", *NAMES)
    for row in ROWS:
        table.add_row(*row)
    file = io.StringIO()
    Console(file=file, width=width, markup=False).print(table)
    return [line.rstrip() for line in file.getvalue().splitlines()]


@pytest.mark.parametrize("width", range(28, 80))
def test_no_word_is_cut_and_nothing_is_lost(width: int) -> None:
    lines = shown(width)
    assert all(len(line) <= width for line in lines)
    words = " ".join(lines).split()
    for cell in (*NAMES, *ROWS[0], *ROWS[1]):
        assert all(word in words for word in cell.split()), cell


def test_a_table_with_room_is_as_wide_as_its_cells() -> None:
    assert shown(80) == [
        "Stages",
        "stage          records a step  weights   peak memory",
        "interaction    4 x 128 = 512   19.8 GiB  26.9 GiB",
        "reinforcement  4 x 128 = 512   4.4 GiB   9.3 GiB",
    ]


def test_with_less_room_cells_are_broken_between_words() -> None:
    assert shown(47) == [
        "Stages",
        "               records a              peak",
        "stage          step         weights   memory",
        "interaction    4 x 128 =    19.8 GiB  26.9 GiB",
        "               512",
        "reinforcement  4 x 128 =    4.4 GiB   9.3 GiB",
        "               512",
    ]


def test_with_too_little_room_rows_stand_below_each_other() -> None:
    assert shown(30) == [
        "Stages",
        "stage           interaction",
        "records a step  4 x 128 = 512",
        "weights         19.8 GiB",
        "peak memory     26.9 GiB",
        "",
        "stage           reinforcement",
        "records a step  4 x 128 = 512",
        "weights         4.4 GiB",
        "peak memory     9.3 GiB",
    ]


def test_names_with_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = FittingTable("Models", "id")
    table.add_row("models/a[red]b[/c]")
    _output.data(table)
    assert "models/a[red]b[/c]" in capsys.readouterr().out
