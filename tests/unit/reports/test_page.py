"""Pages are one file, escaped, complete."""

from __future__ import annotations

import base64
import io
import re

import pytest
from jinja2 import UndefinedError
from PIL import Image

from vlsi_cli.engine.reports import page


def test_a_page_is_escaped_and_asks_for_nothing(tmp_path):
    page.write_page(tmp_path / "a.html", "base", title="<script>alert(1)</script> & co")
    text = (tmp_path / "a.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in text
    assert not re.search(r"(src|href)=", text)
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]


def test_a_missing_value_is_an_error():
    with pytest.raises(UndefinedError):
        page.render("base")


@pytest.mark.parametrize(
    ("size", "shown"), [((32, 32), (448, 448)), ((32, 20), (448, 280)), ((900, 450), (448, 224))]
)
def test_pictures_are_scaled_into_the_page(size, shown):
    address = page.picture(Image.new("RGBA", size, (200, 10, 20, 255)))
    head, data = address.split(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == shown
        assert image.getpixel((3, 3)) == (200, 10, 20)
