"""The Python of docs/python.md, compiled so that line numbers in a traceback are those of the page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import CodeType

from tests.invariants.shown import blocks
from tests.invariants.tree import ROOT

PAGE = ROOT / "docs/python.md"
TEXT = PAGE.read_text(encoding="utf-8")


def shown() -> Iterator[tuple[CodeType, str | None]]:
    """Each block, and the package that it says it needs."""
    lines = TEXT.splitlines()
    for block in blocks(TEXT, "python"):
        need = re.fullmatch(r"<!-- needs: (\w+) -->", lines[block.line - 3])
        code = compile("\n" * (block.line - 1) + block.text, str(PAGE), "exec")
        yield code, need.group(1) if need else None
