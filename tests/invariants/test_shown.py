"""Everything that the pages show would be taken by the program: commands, keys, recipes, records, Python.

Each command is read by the parser of the real application, whose commands are replaced by one that keeps what it is
given; its configuration is then put together and planned as the command would do it. Nothing of the engine runs.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests.invariants.shown import PAGES, RECIPES, SCRIPTS, Shown, commands, jobs
from tests.invariants.tree import ROOT
from vlsi_cli.app import app
from vlsi_cli.config import (
    accelerators,
    benchmarks,
    catalog,
    launching,
    loading,
    planning,
    recipes,
    words,
)
from vlsi_cli.config.repos import check_repo_name
from vlsi_cli.config.requirements import read_requirements
from vlsi_cli.errors import ConfigError, VlsiError

#: Stands for a value in the text: RUN, DIR, N; or in a script: $RECIPE, $OUT/run.
_PLACEHOLDER = re.compile(r"[A-Z]+|\$.+")
_UNFINISHED = ("Missing argument", "Missing option", "requires an argument", "Missing command")
_UsageError: Any = typer.BadParameter.__base__  # Typer names only the subclass


@cache
def _application() -> tuple[Any, list[tuple[str, dict[str, Any]]]]:
    """The application with every command replaced by one that keeps its name and values, and where it keeps them."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def keep(name: str, command: Any) -> None:
        for inner, below in getattr(command, "commands", {}).items():
            keep(f"{name} {inner}".strip(), below)
        if name:
            command.callback = lambda **values: seen.append((name, values))

    root = typer.main.get_command(app)
    keep("", root)
    return root, seen


def parse(given: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Name and values of a command, as the application's parser takes them; nothing runs.

    Raises:
        Exception: the parser's own, for what it does not take.
    """
    root, seen = _application()
    seen[:] = [("", {})]  # for `vlsi --help`
    with contextlib.redirect_stdout(io.StringIO()):
        root.main(list(given), prog_name="vlsi", standalone_mode=False)
    return seen[-1]


def wrong(shown: Shown) -> str | None:
    """What the program would not take of a command, or None."""
    if shown.program != "vlsi":
        return _wrong_program(shown)
    given = tuple(word for word in shown.words if word != "...")
    try:
        name, values = parse(given)
        _check(name, {key: value for key, value in values.items() if value not in (None, (), [])})
    except _UsageError as error:
        told = error.format_message()
        return None if shown.mentioned and any(sign in told for sign in _UNFINISHED) else told
    except VlsiError as error:
        return error.message
    return None


def _check(name: str, values: dict[str, Any]) -> None:
    """The values that a command would look at before anything runs.

    Raises:
        VlsiError: it would refuse one.
    """
    values = {key: value for key, value in values.items() if not _stands_for_another(value)}
    if name.startswith("recipes"):
        for word in _several(values.get("recipe")):
            if word != "all":
                _recipe(word)
    elif "sets" in values or name in ("distill", "plan", "match-layers", "cache build", "data preview"):
        _configuration(name, values)
    if name == "eval":
        rows, models = values.get("paper", ()), values.get("model", ())
        assert not rows or len(rows) == len(models), "--paper and --model"
        for row in rows:
            benchmarks.require_row(row)
        if "tasks_dir" not in values:
            own = {key for row in benchmarks.table().values() for key in (row.name, *row.aliases)}
            asked = {each for word in values.get("bench", ()) for each in word.split(",")}
            if asked - own:
                raise ConfigError(f"no benchmark is named {', '.join(asked - own)}")
            if "require" in values:
                named = [benchmarks.choose([each])[0] for each in asked or {benchmarks.BUILT_IN}]
                read_requirements(values["require"], {model: model for model in models}, named)
    for model in (*_several(values.get("model")), *_several(values.get("compare"))):
        catalog.resolve_alias(model)
    for key, check in {
        "layers": words.layers_from_word,
        "repo": check_repo_name,
        "push": check_repo_name,
        "processes": launching.processes,
    }.items():
        if key in values:
            check(values[key])
    if name == "plan" and "device" in values:
        accelerators.accelerator(values["device"])


def _configuration(name: str, values: dict[str, Any]) -> None:
    teacher, student = values.get("teacher"), values.get("student")
    flags = {"teacher.id": teacher, "student.id": student, "precision": values.get("precision")}
    sources = [words.source_from_word(word) for key in ("data", "named") for word in values.get(key, ())]
    flags |= {"data.sources": sources or None, "watch.report_to": values.get("report_to")}
    chosen = _recipe(values["recipe"]) if "recipe" in values else recipes.choose(None, teacher, student)
    resolved = loading.resolve(chosen, values.get("sets", ()), flags)
    if name in ("distill", "plan"):
        planning.plan(resolved)


def _recipe(name: str) -> str:
    """A shipped recipe by its name; for a file of the reader's, which the pages make as a copy, the demo's."""
    if name.endswith(".yaml"):
        return recipes.DEFAULT
    recipes.find(name)
    return name


def _several(value: Any) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _stands_for_another(value: Any) -> bool:
    return any(isinstance(word, str) and bool(_PLACEHOLDER.fullmatch(word)) for word in _several_any(value))


def _several_any(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _wrong_program(shown: Shown) -> str | None:
    """A program of the repository must be there and have the options; others are other people's business."""
    name = shown.program.removeprefix("-m ")
    path = ROOT / (name if name.endswith(".py") else name.replace(".", "/"))
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.is_file():
        return f"there is no {name}" if name.startswith(("benchmarks", "docs", "tests")) else None
    source = path.read_text(encoding="utf-8")
    missing = [
        word for word in shown.words if word.startswith("--") and f'"{word.split("=")[0]}"' not in source
    ]
    return f"{name} has no option {', '.join(missing)}" if missing else None


@pytest.mark.parametrize(
    "page", [*PAGES, *RECIPES, *SCRIPTS], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_commands(page: Path) -> None:
    found = [(shown.line, " ".join(shown.words), told) for shown in commands(page) if (told := wrong(shown))]
    assert not found


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_a_shell_takes_the_scripts(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    scripts = [text] if file.suffix == ".sh" else [script for _, script in jobs(text)]
    assert scripts
    for script in scripts:
        done = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------- these tests can fail


@pytest.mark.parametrize(
    "text",
    [
        "vlsi distil",
        "vlsi distill --recpie demo",
        "vlsi distill --recipe dmeo",
        "vlsi distill --set intraction.steps=3",
        "vlsi distill --set interaction.steps=many",
        "vlsi distill --precision fp8",
        "vlsi distill --teacher Qwen/Qwen2-VL-7B --student 3b",
        "A=1 .venv/bin/vlsi plan --device h1000 2>&1 | head",
        "vlsi plan --sharding zero2|zero4",
        "vlsi eval -b mmvet,mmmmu",
        "vlsi eval -m Qwen2-VL-2B --paper VLsI-3B -b mmmu",
        "vlsi eval -b mmmu --require 'mmmu>=0.5'",
        "vlsi eval -m Qwen2-VL-2B -b mmmu,mmstar --require 'Qwen2-VL-7B:mmmu>=50'",
        "vlsi eval compare a b --no-wors",
        "vlsi recipes check demo dmeo",
        "vlsi verbalize --layers 0-4",
        "vlsi export demo/small --layout onnx",
        "vlsi push runs/mine --repo mine",
        "vlsi cache bild caches/demo",
        "vlsi recipes show dmeo",
        "torchrun --nproc-per-node 8 -m vlsi_cli distill --recipe dmeo",
        "vlsi cache info",
        "python benchmarks/plans.py",
        "python -m benchmarks.proof --lst",
    ],
)
def test_a_wrong_command_is_found(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n```bash\n{text}\n```\n", encoding="utf-8")
    assert any(wrong(shown) for shown in commands(page))


def test_what_is_mentioned_may_be_unfinished_but_not_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`vlsi cache info` and `vlsi distill --resume RUN`, `vlsi distill\n--resum RUN`.\n")
    assert [wrong(shown) is None for shown in commands(page)] == [True, True, False]


def test_a_wrong_command_in_the_head_of_a_recipe_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.yaml"
    page.write_text(
        "# Command  vlsi distill --recipe dmeo ; or so\n#   accelerate launch \\\n#     -m vlsi_cli distil\n"
    )
    assert [wrong(shown) is not None for shown in commands(page)] == [True, True]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "job.yml",
            "jobs:\n  a:\n    steps:\n      - run: |\n          vlsi recipes check demo\n          vlsi distil\n",
        ),
        ("job.yml", "a:\n  script:\n    - pip install -r r.txt\n    - vlsi plan --device $DEVICE --stric\n"),
        ("a.sh", 'if vlsi eval -m "$MODEL" --requir "$R"; then\n    echo\nfi\n'),
        ("a.sh", 'vlsi distill --recipe "$RECIPE" \\\n    --set interaction.stps=2\n'),
    ],
)
def test_a_wrong_command_in_a_script_or_job_is_found(name: str, text: str, tmp_path: Path) -> None:
    page = tmp_path / name
    page.write_text(text, encoding="utf-8")
    assert [shown.line for shown in commands(page) if wrong(shown)]
