"""Recipes: YAML files that say what differs from the defaults, each under a header like a paper's appendix.

They live in ``recipes/`` of a checkout and in ``vlsi_cli/_recipes`` of an installed package.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlsi_cli.config import catalog, yamls
from vlsi_cli.errors import ConfigError, OutputError, did_you_mean

_PACKAGE = Path(__file__).resolve().parent.parent
DEFAULT = "demo"


@dataclass(frozen=True)
class Recipe:
    """One recipe file: its name (the file's stem), its path, and what it sets."""

    name: str
    path: Path
    values: dict[str, Any]

    @property
    def description(self) -> str:
        """Its own line about itself."""
        return str(self.values.get("description", ""))

    @property
    def header(self) -> str:
        """The comment at the top of the file, without the marks."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        block: list[str] = []
        for line in lines:
            if not line.startswith("#"):
                break
            block.append(line.removeprefix("#").removeprefix(" "))
        return "\n".join(block)

    def model(self, side: str) -> str | None:
        """The id that the recipe gives for ``teacher`` or ``student``."""
        value = self.values.get(side)
        value = value.get("id") if isinstance(value, dict) else value
        return value if isinstance(value, str) else None


def folder() -> Path:
    """Where the shipped recipes are."""
    packaged = _PACKAGE / "_recipes"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "recipes"


def names() -> list[str]:
    """Names of the shipped recipes: the default first, the others in alphabetical order."""
    found = sorted(path.stem for path in folder().glob("*.yaml"))
    return sorted(found, key=lambda name: (name != DEFAULT, not name.startswith(DEFAULT), name))


def find(name_or_file: str | Path) -> Path:
    """The file of a recipe, by name or by path.

    Raises:
        ConfigError: there is none, with the nearest name.
    """
    word = str(name_or_file)
    path = Path(word).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise ConfigError(f"no recipe file {word}", hint=_near(path.stem))
    shipped = folder() / f"{word}.yaml"
    if word in names():
        return shipped
    if path.is_file():
        return path
    if (saved := path / "config.yaml").is_file():
        raise ConfigError(f"{word} is a folder, not a recipe", hint=f"the recipe of that run is {saved}")
    raise ConfigError(f"no recipe is named '{word}'", hint=_near(word))


def read(name_or_file: str | Path) -> Recipe:
    """Read a recipe, without checking its keys.

    Raises:
        ConfigError: it does not exist, is not YAML, is not a mapping, or gives a key twice.
    """
    path = find(name_or_file)
    try:
        text = path.read_text(encoding="utf-8")
        values = yamls.load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        hint = yamls.advice(error)
        raise ConfigError(f"{path}{line}: this is not valid YAML: {problem}", hint=hint) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: a recipe is a mapping of keys to values, but this is a {type(values).__name__}"
        )
    return Recipe(path.stem, path, values)


def for_pair(teacher: str, student: str) -> str | None:
    """The name of the shipped recipe whose two models are these, or None.

    Models are compared as entries of the catalogue, so that base and instruct ids of one size find the same
    recipe.
    """
    student = catalog.resolve_alias(student, teacher)
    wanted = (_identity(catalog.resolve_alias(teacher)), _identity(student))
    for name in names():
        recipe = read(name)
        large, small = recipe.model("teacher"), recipe.model("student")
        if large and small and (_identity(large), _identity(catalog.resolve_alias(small, large))) == wanted:
            return name
    return None


def choose(recipe: str | Path | None, teacher: str | None, student: str | None) -> str | Path | None:
    """The recipe that a command line stands for, or a call from Python.

    The one it names; else, with both models, the shipped recipe of that pair, or None for the plain defaults;
    else, with neither, the demo.

    Raises:
        ConfigError: one model alone, without a recipe that gives the other.
    """
    if recipe is not None:
        return recipe
    if teacher is None and student is None:
        return DEFAULT
    if teacher is None or student is None:
        given, lacking = ("--teacher", "--student") if student is None else ("--student", "--teacher")
        raise ConfigError(
            f"{given} is given without {lacking}",
            hint=f"add {lacking}, or a --recipe that names the other model",
        )
    return for_pair(teacher, student)


def copy(name: str, target: Path, *, overwrite: bool = False) -> Path:
    """Copy a shipped recipe to a file or into a folder, and give the file's path.

    Raises:
        ConfigError: no such recipe.
        OutputError: the target exists or cannot be written.
    """
    source = find(name)
    destination = target / source.name if target.is_dir() else target
    if destination.suffix not in (".yaml", ".yml"):
        raise OutputError(f"{destination} is neither a folder nor a .yaml file")
    if destination.exists() and not overwrite:
        raise OutputError(f"{destination} exists", hint="choose another name, or add --overwrite")
    try:
        destination.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{destination} cannot be written: {error.strerror or error}") from error
    return destination


def _identity(model: str) -> str:
    entry = catalog.find(model)
    return entry.facts.name if entry else model


def _near(word: str) -> str:
    near = did_you_mean(word, names())
    return f"did you mean {near}?" if near else "recipes: " + ", ".join(names())
