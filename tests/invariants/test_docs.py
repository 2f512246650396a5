"""The documentation says what the program does: exit codes, the command page, every command that it shows."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.invariants.tree import ROOT
from vlsi_cli import errors

COMMANDS = ROOT / "docs/reference/cli.md"
PAGES = sorted({ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")} - {COMMANDS})


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


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """Every command by its full name, with the options that the generated page gives it."""
    text = COMMANDS.read_text(encoding="utf-8")
    known: dict[str, set[str]] = {"vlsi": set()}
    name = "vlsi"
    for line in text.splitlines():
        if heading := re.match(r"#{2,} `(.+)`$", line):
            name = heading.group(1)
            known[name] = set()
        elif line.startswith("* `-"):
            known[name] |= set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", line.split("`")[1]))
    return known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_shown_exist(page: Path, options: dict[str, set[str]]) -> None:
    """Every `vlsi ...` in a code block names a command that exists, and only options that it has."""
    wrong = []
    for line in _shown(page.read_text(encoding="utf-8")):
        words = shlex.split(line, comments=True)
        depth = max(n for n in range(1, len(words) + 1) if " ".join(words[:n]) in options)
        name = " ".join(words[:depth])
        own = words[depth : words.index("--")] if "--" in words else words[depth:]  # the rest is a launcher's
        used = {word.split("=")[0] for word in own if word.startswith("-")}
        is_group = any(other.startswith(f"{name} ") for other in options)
        unfinished = is_group and depth < len(words) and not words[depth].startswith("-")
        if unfinished or used - options[name]:
            wrong.append(line)
    assert not wrong


def _shown(text: str) -> list[str]:
    """Lines of bash blocks that run `vlsi`, without variables and path; a backslash joins two lines."""
    lines = []
    for block in re.findall(r"^ *```(?:bash|sh|console)\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\|?|;", line.removeprefix("$ ")):
                found = re.match(r"\s*(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(vlsi( .*)?)$", part)
                lines += [found.group(1)] if found else []
    return lines
