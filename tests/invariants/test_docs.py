"""The documentation says what the program does: exit codes, the command page, the two commands of the README."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from typing import Any

import yaml

from tests.invariants.shown import PAGES
from tests.invariants.tree import ROOT
from vlsi_cli import errors


def test_exit_codes_are_those_of_the_classes() -> None:
    text = (ROOT / "docs/reference/errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (?:`(\w+)`)? ?\|", text, flags=re.MULTILINE)
    documented = {(name, int(code)) for code, name in rows if name}
    classes = [
        kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.VlsiError)
    ]
    assert documented == {(kind.__name__, kind.exit_code) for kind in classes} | {
        ("Interrupted", 129),
        ("Interrupted", 138),
        ("Interrupted", 143),
    }
    codes = [kind.exit_code for kind in classes]
    assert len(codes) == len(set(codes)), "an exit code stands for one branch"


def test_command_page_is_up_to_date() -> None:
    program = [sys.executable, str(ROOT / "docs/build_cli.py"), "--check"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_page_of_the_public_names_is_up_to_date() -> None:
    program = [sys.executable, str(ROOT / "docs/build_python.py"), "--check"]
    done = subprocess.run(
        program,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_navigation_names_every_page() -> None:
    def files(node: Any) -> set[str]:
        if isinstance(node, str):
            return {node}
        return set().union(*(files(child) for child in (node.values() if isinstance(node, dict) else node)))

    listed = files(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert listed == {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}


def test_every_example_is_shown_whole() -> None:
    """A snippet that a formatter took for code would be shown as it stands."""
    lines = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    shown = re.findall(r"^--8<--(?: \"(.+)\"|\n(.+)\n--8<--)$", lines, flags=re.MULTILINE)
    programs = {path for path in (ROOT / "docs/examples").iterdir() if path.suffix != ".json"}
    assert {ROOT / (inline or block) for inline, block in shown} == programs
    assert lines.count("--8") == sum(1 if inline else 2 for inline, _ in shown)


def test_readme_has_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, end in (
        ("demo", "vlsi distill"),
        ("tests", "pytest -n auto --dist loadfile"),
        ("eval", "lmms-eval==0.7.3"),
    ):
        blocks = re.findall(rf"<!-- command: {name} -->\n```bash\n(.+)\n```\n", text)
        assert len(blocks) == 1, "one line, so that it can be copied and so that it can be run from here"
        assert blocks[0].endswith(end)
        assert "-c constraints.txt" in blocks[0]
