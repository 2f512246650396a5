"""Heat maps: whole files of the asked kind, every number in its cell, the best assignment framed."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image

from vlsi_cli.engine.reports.heatmap import Panel, draw_matches, figure, save, svg, written
from vlsi_cli.errors import ConfigError, OutputError

SHARES = [[0.25, 0.75, 0.0], [0.0, 0.004, 0.996]]


def draw(path: Path) -> None:
    draw_matches(path, SHARES, [2, 6], [2, 6, 10], small="a/small", large="b/large", best=[2, 10])


def test_png_and_svg(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        assert image.width > 400
        found = {pixel[:3] for _, pixel in image.convert("RGB").getcolors(1 << 20) or []}
    assert (0xD5, 0x5E, 0x00) in found, "the frames"
    assert (0, 34, 78) in found, "cividis at 0"
    draw(tmp_path / "a.svg")
    assert ET.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    draw(tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "a.svg", "b.svg"]


def test_every_cell_has_its_number_and_the_axes_their_layers() -> None:
    values = [[0.5, 12.0, 3.456], [1.0, 2.0, 123.4]]
    panel = Panel("a title", values, (2, 6), (2, 6, 10), "divergence", (2, 10))
    drawn = figure([panel], small="a/small", large="b/large", title="both")
    place = drawn.axes[0]
    numbers = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in place.texts}
    assert numbers == {
        (0, 0): "0.50",
        (0, 1): "12.0",
        (0, 2): "3.46",
        (1, 0): "1.00",
        (1, 1): "2.00",
        (1, 2): "123",
    }
    assert [t.get_text() for t in place.get_xticklabels()] == ["2", "6", "10"]
    assert [t.get_text() for t in place.get_yticklabels()] == ["2", "6"]
    assert "b/large" in place.get_xlabel()
    assert "a/small" in place.get_ylabel()
    assert [(p.get_x() + 0.46, p.get_y() + 0.46) for p in place.patches] == [(0.0, 0.0), (2.0, 1.0)]


def test_many_layers_and_long_names(tmp_path: Path) -> None:
    """8 and 40 layers are too many for numbers; a path of 300 letters is cut at its start."""
    values = [[(r - c / 3) ** 2 / 100 for c in range(40)] for r in range(8)]
    panel = Panel("t", values, range(1, 9), range(1, 41), "divergence")
    drawn = figure([panel], small="x/" * 150 + "small-model", large="l")
    assert not drawn.axes[0].texts
    assert drawn.axes[0].get_ylabel().endswith("small-model")
    assert len(drawn.axes[0].get_ylabel()) < 60
    save(drawn, tmp_path / "wide.png")
    with Image.open(tmp_path / "wide.png") as image:
        assert image.width < 4000


def test_equal_values_everywhere_are_drawn_too(tmp_path: Path) -> None:
    save(figure([Panel("t", [[0.0]], [1], [1], "divergence", [1])], small="s", large="l"), tmp_path / "a.png")


def test_for_a_page() -> None:
    text = svg(figure([Panel("t", SHARES, (1, 2), (1, 2, 3), "share")], small="s", large="l"))
    assert text.startswith("<svg")
    assert "<script" not in text


def test_numbers() -> None:
    assert [written(v, "share") for v in (0.0, 0.004, 0.006, 0.125, 1.0)] == ["", "", "1%", "12%", "100%"]
    assert [written(v, "divergence") for v in (0, 9.99, 9.999, 123.4)] == ["0.00", "9.99", "10.0", "123"]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"map\.jpg ends in '\.jpg'") as raised:
        draw(tmp_path / "map.jpg")
    assert raised.value.hint == "name it map.png"
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        draw(tmp_path / "file" / "a.png")


def test_nothing_is_drawn_through_the_global_state_of_pyplot() -> None:
    code = (
        "import sys; from vlsi_cli.engine.reports import heatmap as h\n"
        "assert 'matplotlib' not in sys.modules\n"
        "h.svg(h.figure([h.Panel('t', [[1.0]], [1], [1], 'share')], small='s', large='l'))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
