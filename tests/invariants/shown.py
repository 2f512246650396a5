"""What the written pages show: their code blocks, the commands in them and in the text, the heads of recipes, and the
scripts and jobs of the examples."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from tests.invariants.tree import ROOT

#: Written by Typer from the commands: usage lines, not commands.
COMMANDS = ROOT / "docs/reference/cli.md"
PAGES = sorted(
    {*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")} - {COMMANDS}
)
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SCRIPTS = sorted(path for path in (ROOT / "docs/examples").iterdir() if path.suffix in (".sh", ".yml"))

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", flags=re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_EITHER = "\N{BROKEN BAR}"  # in place of a bar between two words: zero2|zero3
_KEYWORDS = {"if", "then", "elif", "else", "while", "do", "!"}
_VARIABLE = re.compile(r"[A-Za-z_]\w*=")


@dataclass(frozen=True)
class Block:
    """One fenced block: where it begins, its language, and what is in it."""

    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Shown:
    """One command as a page shows it.

    Attributes:
        line: of the page.
        program: ``vlsi``, or what Python is told to run: a file, or ``-m`` and a module.
        words: what follows it.
        mentioned: whether it stands in the text, where it need not be complete, instead of in a block.
    """

    line: int
    program: str
    words: tuple[str, ...]
    mentioned: bool = False


def blocks(text: str, *languages: str) -> Iterator[Block]:
    """The fenced blocks of a page in these languages, or all of them."""
    for found in _FENCE.finditer(text):
        if not languages or found.group(1) in languages:
            yield Block(text.count("\n", 0, found.start()) + 2, found.group(1), found.group(2))


def spans(text: str) -> Iterator[tuple[int, str]]:
    """Everything that stands between two backticks in the text, with its line; a wrapped one in one line."""
    plain = _FENCE.sub(lambda found: re.sub(r"[^\n]+", "", found.group()), text)
    for found in _SPAN.finditer(plain):
        inside = re.sub(r"\s+", " ", found.group(1)).replace(r"\|", "|")
        yield plain.count("\n", 0, found.start()) + 1, inside


def commands(page: Path) -> list[Shown]:
    """Every command that a page shows, or a script or job, or that the head of a recipe does."""
    text = page.read_text(encoding="utf-8")
    if page.suffix in (".sh", ".yml"):
        return [
            shown
            for first, script in ([(1, _with_defaults(text))] if page.suffix == ".sh" else jobs(text))
            for line, each in _lines(first, script)
            for shown in _commands(line, each, mentioned=False)
        ]
    if page.suffix == ".yaml":
        return [shown for line, each in _head(text) for shown in _commands(line, each, mentioned=False)]
    found = [
        shown
        for block in blocks(text, "bash", "sh", "console")
        for line, each in _lines(block.line, block.text)
        for shown in _commands(line, each, mentioned=False)
    ]
    return found + [
        shown
        for line, each in spans(text)
        if each.startswith(("vlsi ", "python "))
        for shown in _commands(line, each, mentioned=True)
    ]


def _with_defaults(script: str) -> str:
    """A script with the values that its own first lines give to what is not set: ``: "${RECIPE:=demo}"``."""
    values = dict(re.findall(r'^: "\$\{(\w+):=([^}]*)\}"', script, flags=re.MULTILINE))
    return re.sub(r"\$(\w+)", lambda name: values.get(name[1], name[0]), script)


def jobs(text: str) -> list[tuple[int, str]]:
    """The scripts of a service's jobs: what it runs, with the line where it begins."""

    def found(node: Any, key: str = "") -> Iterator[str]:
        if isinstance(node, str) and key in ("run", "script", "before_script", "after_script"):
            yield node
        for name, child in node.items() if isinstance(node, dict) else ():
            yield from found(child, str(name))
        for child in node if isinstance(node, list) else ():
            yield from found(child, key)

    return [
        (text.count("\n", 0, max(text.find(script.splitlines()[0]), 0)) + 1, script)
        for script in found(yaml.safe_load(text))
    ]


def _lines(first: int, text: str) -> Iterator[tuple[int, str]]:
    """Lines with their number; a backslash joins two."""
    held, begin = "", first
    for number, line in enumerate(text.splitlines(), start=first):
        begin = begin if held else number
        if line.endswith("\\"):
            held += line[:-1] + " "
            continue
        yield begin, held + line.strip().removeprefix("$ ")
        held = ""


def _head(text: str) -> Iterator[tuple[int, str]]:
    """Commands of the comment at the top of a recipe: from ``vlsi`` or a launcher to the end of the line."""
    comment = "".join(f"{line.lstrip('#').strip()}\n" for line in text.splitlines() if line.startswith("#"))
    for number, line in _lines(1, comment):
        if "`" not in line and (found := re.search(r"(?:accelerate launch |\bvlsi (?=[a-z])).*", line)):
            yield number, found.group()
        for _, span in spans(line):
            yield number, span


def _commands(line: int, text: str, *, mentioned: bool) -> Iterator[Shown]:
    for words in _simple(re.sub(r"(?<=\S)\|(?=\S)", _EITHER, text)):
        for program, own in _programs(words):
            for chosen in product(*(word.split(_EITHER) for word in own)):
                yield Shown(line, program, chosen, mentioned)


def _simple(text: str) -> Iterator[list[str]]:
    """The simple commands of a line of a shell, without variables before them and without redirections."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if word in ("<", ">", ">>", ">&"):
            skip, words = True, words[:-1] if words and words[-1].isdigit() else words
        elif skip:
            skip = False
        elif set(word) <= set("();|&"):
            yield words
            words = []
        elif words or not (_VARIABLE.match(word) or word in _KEYWORDS):
            words.append(word)


def _programs(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The programs of ours that a simple command starts, directly or through a launcher, with their own words."""
    if "vlsi_cli" in words and words[words.index("vlsi_cli") - 1] == "-m":
        yield "vlsi", words[words.index("vlsi_cli") + 1 :]
    for at in (0, 1) if words[:1] == ["srun"] else (0,):
        name = words[at].rsplit("/", 1)[-1] if len(words) > at else ""
        if name == "vlsi":
            yield "vlsi", words[at + 1 :]
        elif name in ("python", "python3") and len(words) > at + 1:
            rest = words[at + 1 :]
            if rest[0] == "-m" and rest[1] != "vlsi_cli":
                yield f"-m {rest[1]}", rest[2:]
            elif rest[0].endswith(".py"):
                yield rest[0], rest[1:]
