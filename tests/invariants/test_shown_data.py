"""Everything else that the pages show would be taken by the program: keys, recipes, records, Python."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.invariants.shown import PAGES, blocks, spans
from tests.invariants.tree import ROOT
from vlsi_cli.config import loading, recipes, yamls
from vlsi_cli.config.complaints import all_keys
from vlsi_cli.config.run import DistillConfig
from vlsi_cli.engine.data.formats import from_llava, from_messages
from vlsi_cli.engine.data.records import BadRecord
from vlsi_cli.errors import VlsiError

_KEYS = set(all_keys())


def _known(key: str) -> bool:
    plain = re.sub(r"\.\d+(?=\.|$)", ".*", key)
    return plain in _KEYS or any(known.startswith(f"{plain}.") for known in _KEYS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_keys_in_the_text(page: Path) -> None:
    found = [(line, key) for line, key in _keys(page.read_text(encoding="utf-8")) if not _known(key)]
    assert not found


def _keys(text: str) -> Iterator[tuple[int, str]]:
    """Keys of the configuration in the text: after ``--set``, or by themselves, with a value or without."""
    for line, span in spans(text):
        found = re.fullmatch(r"(?:--set )?([a-z_]+(?:\.[a-z_0-9]+)+)(?:[:=] ?.*)?", span)
        if found is None:
            continue
        key = found.group(1)
        is_file = key.endswith((".py", ".json", ".jsonl", ".yaml", ".md", ".png", ".safetensors"))
        if span.startswith("--set") or (key.split(".")[0] in DistillConfig.model_fields and not is_file):
            yield line, key


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_data_in_blocks(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = [
        (block.line, told)
        for block in blocks(text, "yaml", "json", "jsonl")
        if not block.text.startswith("--8<--") and (told := wrong_data(block.text, block.language))
    ]
    assert not found


def wrong_data(text: str, language: str) -> str | None:
    """What is wrong with YAML or JSON: it must parse, and be a valid recipe or record if it looks like one."""
    try:
        if language == "yaml":
            _part_of_a_recipe(text)
        for line in text.splitlines() if language == "jsonl" else [text] if language == "json" else ():
            _record(json.loads(line))
    except (VlsiError, BadRecord, yaml.YAMLError, ValueError) as error:
        return str(error)
    return None


def _part_of_a_recipe(text: str) -> None:
    if "!function" in text:  # a task file of lmms-eval
        assert "task" in yaml.safe_load(text.replace("!function", ""))
        return
    tree = yamls.load(text)
    loading.resolve(recipes.DEFAULT, [f"{key}={json.dumps(value)}" for key, value in tree.items()])


def _record(row: Any) -> None:
    parser = {"conversations": from_llava, "messages": from_messages}
    for key in parser.keys() & row.keys():
        # a record may be a question, for `vlsi data answer`
        parser[key](row, default_id="shown", where="shown", root=None, unanswered=True)


@pytest.mark.parametrize(
    "page",
    [*PAGES, *(ROOT / "docs/examples").glob("*.py")],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_python(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    code = [text] if page.suffix == ".py" else [block.text for block in blocks(text, "python", "py")]
    found = [told for each in code if not each.startswith("--8<--") for told in wrong_python(each)]
    assert not found


def wrong_python(code: str) -> list[str]:
    """What does not compile, and names of this package that are imported and not there."""
    try:
        tree = ast.parse(code)
    except SyntaxError as error:
        return [str(error)]
    return [
        f"{node.module} has no {alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vlsi_cli"
        for alias in node.names
        if alias.name not in _names(str(node.module))
    ]


def _names(module: str) -> set[str]:
    """What a module defines at its top, read from its source; nothing is imported."""
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else ():
        found |= {node.name} if isinstance(node, ast.FunctionDef | ast.ClassDef) else set()
        again = (each for each in ast.walk(node) if isinstance(each, ast.ImportFrom))
        found |= {alias.asname for each in again for alias in each.names if alias.asname == alias.name}
        found |= {
            each.id
            for each in ast.walk(node)
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
        }
    return found


# ---------------------------------------------------------------- these tests can fail


def test_wrong_keys_are_found() -> None:
    text = "`interaction.steps: 3`, `data.sources.0.path`, `--set watch.sample=4` and `teacher.verbaliser`"
    assert [key for _, key in _keys(text) if not _known(key)] == ["watch.sample", "teacher.verbaliser"]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("data: {sources: [{kind: lava, path: a.json}]}", "yaml"),
        ("watch:\n  report: [tensorboard]", "yaml"),
        ("watch:\n\treport_to: [tensorboard]", "yaml"),
        ('{"id": 1,}', "json"),
        (
            '{"conversations": [{"from": "human", "value": "<image>Why?"}, {"from": "gpt", "value": "So."}]}',
            "jsonl",
        ),
    ],
)
def test_wrong_data_are_found(text: str, language: str) -> None:
    assert wrong_data(text, language)


def test_wrong_python_is_found() -> None:
    assert wrong_python("from vlsi_cli.engine.data.patterns import pattern_text, pattern_texts") == [
        "vlsi_cli.engine.data.patterns has no pattern_text"
    ]
    assert wrong_python("print(")
