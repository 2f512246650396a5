"""The house stays as it was planned: short files, downward imports, documented names, no foreign paths."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.invariants.tree import PACKAGE, ROOT, parse, python_files, tracked_texts

LONGEST = 350  # "about 300 lines": a file is a room one can take in


def test_no_file_is_too_long() -> None:
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files("vlsi_cli", "tests", "docs")
    }
    assert not {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > LONGEST}


def test_nobody_imports_click() -> None:
    """Typer carries its own click; another one beside it is another class hierarchy."""
    found = []
    for path in python_files("vlsi_cli", "tests", "docs"):
        for node in ast.walk(parse(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [
                f"{path.relative_to(ROOT)}:{node.lineno}" for name in names if name.split(".")[0] == "click"
            ]
    assert not found


def test_every_public_name_has_a_docstring() -> None:
    missing = [name for path in python_files("vlsi_cli") for name in _undocumented(path)]
    assert not missing


def _undocumented(path: Path) -> Iterator[str]:
    tree = parse(path)
    where = str(path.relative_to(ROOT))
    if ast.get_docstring(tree) is None:
        yield where
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if any(part.startswith("_") and not part.startswith("__") for part in parts):
        return
    yield from _undocumented_in(tree, where)


def _undocumented_in(node: ast.Module | ast.ClassDef, where: str) -> Iterator[str]:
    for child in node.body:
        if not isinstance(
            child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        ) or child.name.startswith("_"):
            continue
        if ast.get_docstring(child) is None:
            yield f"{where}:{child.lineno} {child.name}"
        if isinstance(child, ast.ClassDef):
            yield from _undocumented_in(child, where)


def test_no_path_of_somebodys_machine() -> None:
    """A path below a personal or scratch folder works on one machine only."""
    foreign = re.compile(r"(?<![\w.~}])/(?:home|tmp|work|opt|root|Users|mnt|private)/[\w.-]+")
    found = [
        f"{name}:{number}: {match.group()}"
        for name, text in tracked_texts()
        for number, line in enumerate(text.splitlines(), start=1)
        for match in foreign.finditer(line)
    ]
    assert not found


def test_imports_go_down_only() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    if not program.exists():
        pytest.skip("import-linter is not installed beside this Python")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
