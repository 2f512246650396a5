"""The benchmarks that `vlsi eval` knows by name, what the harness calls them, and what the paper prints for them.

The facts are in `benchmarks.yaml` and `paper.yaml` beside this file; nothing of the harness is imported here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from vlsi_cli.config import harness
from vlsi_cli.errors import ConfigError, did_you_mean

Judging = Literal["none", "fallback", "required"]
Verdict = Literal["any", "unit", "pair", "correctness", "letter", "extraction"]

_HERE = Path(__file__).parent
BUILT_IN = "patterns"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: a row of `benchmarks.yaml`, where every field is explained, or a task of the harness or of the
    user, about which only its own file tells.

    Attributes:
        files: the YAML file of each task; empty for the built-in puzzles.
        known: whether it is a row of the table. The metric of any other task is the first of its list.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    files: tuple[Path, ...] = ()
    aliases: tuple[str, ...] = ()
    split: str | None = None
    data: str | None = None
    questions: int | None = None
    metrics: tuple[str, ...] = ()
    scale: float = 1.0
    best: float = 100.0
    judge: Judging = "none"
    verdict: Verdict = "any"
    each: bool = False
    whole: int = 1
    notes: str = ""
    known: bool = True

    def limited(self, limit: int | None) -> int | None:
        """How many questions of each task a limit means, never cutting what is scored together."""
        return None if limit is None else max(limit // self.whole, 1) * self.whole


@cache
def table() -> dict[str, Benchmark]:
    """Every benchmark known by name, in the paper's order, the built-in puzzles last."""
    rows: dict[str, dict[str, Any]] = yaml.safe_load((_HERE / "benchmarks.yaml").read_text(encoding="utf-8"))
    return {name: _row(name, dict(row)) for name, row in rows.items()}


def _row(name: str, row: dict[str, Any]) -> Benchmark:
    tasks = _listed(row.pop("task"))
    file = row.pop("file", None)
    files = tuple(Path(str(file).format(task=task)) for task in tasks) if file else ()
    metrics = _listed(row.pop("metric"))
    aliases = tuple(row.pop("aliases", ()))
    return Benchmark(name, tasks=tasks, files=files, metrics=metrics, aliases=aliases, **row)


def _listed(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def choose(names: list[str], tasks_dir: Path | None = None) -> list[Benchmark]:
    """The benchmarks of a command line: names of the table, tasks of a folder of one's own, tasks of the harness.

    A group of tasks stands for its tasks, each a benchmark of its own.

    Args:
        names: as typed; a comma separates several.
        tasks_dir: a folder with task files of the harness's format.

    Raises:
        ConfigError: a name that nothing has, or a harness task that is not there because the harness is not.
    """
    typed = [word.strip() for name in names for word in name.split(",") if word.strip()]
    if not typed:
        raise ConfigError("no benchmark is given", hint="add --bench NAME; vlsi eval --list shows them")
    own = harness.index(tasks_dir) if tasks_dir is not None else {}
    chosen = [benchmark for word in typed for benchmark in _find(word, own, tasks_dir)]
    return list({benchmark.name: benchmark for benchmark in chosen}.values())


def _find(word: str, own: dict[str, Path], tasks_dir: Path | None) -> list[Benchmark]:
    by_name = {n: b for b in table().values() for n in (b.name, *b.aliases)}
    plain = word.casefold().replace("-", "_")
    if word in own:
        return [local(word, own[word])]
    for name in (word, plain):
        if name in by_name:
            return [by_name[name]]
    root = harness.tasks_folder()
    theirs, groups = _installed(root) if root is not None else ({}, {})
    if word in theirs:
        row = next((b for b in table().values() if b.tasks == (word,)), None)
        return [row or local(word, theirs[word])]
    if tasks_dir is not None:
        groups = harness.groups(tasks_dir) | groups
    if word in groups:
        names = [name for name in harness.members(groups[word]) if name != word]
        return [found for name in names for found in _find(name, own, tasks_dir)]
    near = did_you_mean(word, [*by_name, *own, *theirs, *groups])
    missing = "" if root is not None else f" ({harness.MISSING}, so its other tasks are not known here)"
    raise ConfigError(
        f"no benchmark is named '{word}'{missing}",
        hint=(f"did you mean {near}? " if near else "")
        + "vlsi eval --list shows what there is"
        + ("; tasks of your own are found with --tasks-dir" if tasks_dir is None else ""),
    )


@cache
def _installed(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Tasks and groups of the installed harness: some two thousand files, read once."""
    return harness.index(root), harness.groups(root)


def local(name: str, file: Path) -> Benchmark:
    """A task that only its own file tells about."""
    facts = harness.plain_config(file)
    return Benchmark(
        name,
        title=name,
        tasks=(name,),
        files=(file.absolute(),),  # others start at the harness's folder
        split=facts.get("test_split") or facts.get("validation_split"),
        data=facts.get("dataset_path"),
        known=False,
    )


# ---------------------------------------------------------------- the paper


@cache
def paper() -> dict[str, dict[str, list[float]]]:
    """What the paper prints: model, benchmark, one figure or two."""
    found: dict[str, dict[str, list[float]]] = yaml.safe_load(
        (_HERE / "paper.yaml").read_text(encoding="utf-8")
    )
    return found


def paper_row(model: str) -> str | None:
    """The paper's row of a model, by its hub id or name; None when the paper has none.

    A folder has no row by itself: which row a distilled student is to be held against is for its owner to say.
    """
    name = re.sub(r"-instruct$|-ov-hf$", "", model.rsplit("/", 1)[-1].casefold())
    name = name.replace("llava-onevision-qwen2-", "llava-onevision-")
    return {row.casefold(): row for row in paper()}.get(name) if not Path(model).exists() else None


def require_row(row: str) -> str:
    """A row of the paper by its name.

    Raises:
        ConfigError: it has none of that name.
    """
    found = {name.casefold(): name for name in paper()}.get(row.casefold())
    if found is None:
        near = did_you_mean(row, paper())
        raise ConfigError(
            f"the paper has no row '{row}'",
            hint=f"did you mean {near}?" if near else "rows: " + ", ".join(paper()),
        )
    return found
