from __future__ import annotations

import re
from pathlib import Path

from vlsi_cli.engine.data.records import REASONS

ROOT = Path(__file__).parents[3]


def test_every_reason_is_documented() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", page, re.M)) == REASONS


def test_every_reason_is_given_somewhere() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "vlsi_cli/engine/data").glob("*.py")]
    used = set(re.findall(r'(?:BadRecord|bad|return)\(?\s*"([a-z]+-[a-z-]+)"', "\n".join(sources)))
    assert used == set(REASONS)
