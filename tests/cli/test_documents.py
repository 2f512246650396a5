"""The pages about configuration and recipes say what the code says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from vlsi_cli.config import recipes

ROOT = Path(__file__).resolve().parents[2]


def test_configuration_page_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "docs" / "build_configuration.py"), "--check"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_recipes_page_lists_every_recipe() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert [name for name in recipes.names() if f"| `{name}` |" not in page] == []
