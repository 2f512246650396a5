"""One HTML file that needs nothing else: styles, pictures and text inside, no script and no request from the page.

A command has a template ``templates/NAME.html`` that extends ``base.html`` (title, colours of both schemes, tables).
Everything a template shows is escaped unless it was made by :func:`picture`.
"""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from vlsi_cli import __version__
from vlsi_cli.engine.files import new_file


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("vlsi_cli.engine.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["picture"] = picture
    return found


def render(template: str, **values: Any) -> str:
    """The page of ``templates/<template>.html``, filled with ``values``; a value it wants and lacks is an error."""
    return _environment().get_template(f"{template}.html").render(version=__version__, **values)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render a page and write it whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    text = render(template, **values)
    with new_file(path) as part:
        part.write_text(text, encoding="utf-8")


def picture(image: Image.Image, *, longest: int = 448) -> str:
    """A ``data:`` address of a picture, scaled so that its longer side has at most ``longest`` pixels.

    Small pictures are scaled up by a whole factor, without smoothing, so that single pixels can be seen.
    """
    shown = image.convert("RGB")
    factor = longest // max(shown.size)
    if factor > 1:
        shown = shown.resize((shown.width * factor, shown.height * factor), Image.Resampling.NEAREST)
    elif max(shown.size) > longest:
        shown.thumbnail((longest, longest))
    buffer = io.BytesIO()
    shown.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
