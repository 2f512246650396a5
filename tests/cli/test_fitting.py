"""Tables in terminals of any width: no word is cut, nothing is lost, and names stay as they are."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from vlsi_cli.commands import _output
from vlsi_cli.commands._fitting import FittingTable
from vlsi_cli.commands._tables import new_table
from vlsi_cli.commands._tables_verbalize import _Layers
from vlsi_cli.engine.verbalizing.answers import LayerAnswer

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


@pytest.mark.parametrize("width", [60, 80, 200])
def test_two_models_can_be_compared_in_any_terminal(width: int) -> None:
    def answer(layer: int, text: str) -> LayerAnswer:
        return LayerAnswer(layer, text, (), -0.25, 1.5, complete=True, agrees=False)

    small = SimpleNamespace(layers=[answer(1, "five yellow squares"), answer(2, "three circles")])
    large = SimpleNamespace(
        layers=[answer(7, "seven triangles"), answer(9, "three circles"), answer(12, "none")]
    )
    report: Any = SimpleNamespace(
        models=[SimpleNamespace(model="Qwen/Qwen2-VL-2B"), SimpleNamespace(model="Qwen/Qwen2-VL-72B")],
        rows=[(0, 0), (1, 1), (None, 2)],
    )
    picture: Any = SimpleNamespace(answers=[small, large])
    file = io.StringIO()
    Console(file=file, width=width).print(_Layers(report, picture))
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert all(len(line) <= width for line in lines)
    for text in ("layer", "entropy", "five yellow squares", "three circles", "seven triangles"):
        assert any(text in line for line in lines), text
    if width == 200:
        return
    assert [line.split() for line in lines] == [
        ["1:", "Qwen/Qwen2-VL-2B,", "2:", "Qwen/Qwen2-VL-72B"],
        ["model", "layer", "answer", "log", "p", "entropy", "final"],
        ["≠", "1", "1", "five", "yellow", "squares", "-0.25", "1.50"],
        ["≠", "2", "7", "seven", "triangles", "-0.25", "1.50"],
        ["=", "1", "2", "three", "circles", "-0.25", "1.50"],
        ["=", "2", "9", "three", "circles", "-0.25", "1.50"],
        ["2", "12", "none", "-0.25", "1.50"],
    ]


def test_columns_of_figures_are_aligned() -> None:
    table = new_table("", "what", "count", "about", figures=slice(1, 2))
    table.add_row("a", "5", "x")
    table.add_row("b", "10,000", "y")
    file = io.StringIO()
    Console(file=file, width=60).print(table)
    assert [line.rstrip() for line in file.getvalue().splitlines()] == [
        "what   count  about",
        "a          5  x",
        "b     10,000  y",
    ]


def test_names_with_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = FittingTable("Models", "id")
    table.add_row("models/a[red]b[/c]")
    _output.data(table)
    assert "models/a[red]b[/c]" in capsys.readouterr().out
