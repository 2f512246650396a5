"""From a recipe, ``--set`` and flags to one checked configuration in which every value knows where it came
from.

Precedence: default < recipe < ``--set`` (``overrides`` in Python) < flag. Mappings are merged key by key; lists are
replaced as a whole, but ``--set data.sources.0.path=...`` reaches into one, also into one that a flag gives.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from vlsi_cli.config import catalog, missing, recipes, yamls
from vlsi_cli.config.base import Config
from vlsi_cli.config.complaints import complain
from vlsi_cli.config.redaction import redact_tree
from vlsi_cli.config.run import DistillConfig
from vlsi_cli.errors import CheckpointError, ConfigError, OutputError

FLAGS = {
    "teacher.id": "--teacher",
    "teacher.cache": "--teacher-cache",
    "student.id": "--student",
    "data.sources": "--data",
    "seed": "--seed",
    "device": "--device",
    "precision": "--precision",
    "watch.report_to": "--report-to",
}
#: Origins of what ``--set`` gives, and of what is given for it from Python.
CHANGED = ("--set", "overrides")
CONFIG_FILE, ORIGINS_FILE = "config.yaml", "origins.json"
# Keys that say the same thing in two ways: naming one in a later layer lifts the other.
_ALTERNATIVES = {
    "steps": ("epochs",),
    "epochs": ("steps",),
    "start": ("layers",),
    "stride": ("layers",),
    "layers": ("start", "stride"),
}


@dataclass(frozen=True)
class Resolved:
    """A checked configuration.

    Attributes:
        config: the configuration.
        origins: for every leaf, by dotted key: ``default``, ``recipe NAME``, ``--set``, ``overrides``, or the flag.
        recipe: name of the recipe, None when there was none.
    """

    config: DistillConfig
    origins: dict[str, str]
    recipe: str | None = None

    def leaves(self) -> Iterator[tuple[str, Any, str]]:
        """Every leaf as (dotted key, JSON-ready value, origin)."""
        for key, value in flatten(self.config.model_dump(mode="json")):
            yield key, value, self.origins[key]

    def save(self, folder: Path) -> None:
        """Write ``origins.json`` and then ``config.yaml`` (itself a recipe) into a run folder, each all or nothing.

        Raises:
            OutputError: the folder cannot be written.
        """
        origins = {"recipe": self.recipe, "origins": self.origins}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
            _write(folder / ORIGINS_FILE, json.dumps(origins, indent=1) + "\n")
            _write(folder / CONFIG_FILE, text)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            cause = "no space is left on the disk" if full else error.strerror or error
            raise OutputError(f"the run folder {folder} cannot be written: {cause}") from error


#: Stands for the data of a run of which only the sizes are asked, and the origin that its values have.
NO_DATA, STAND_IN = {"kind": "messages", "path": "<no data>"}, "nothing: no data are given"


def resolve(
    recipe: str | Path | None = None,
    sets: Sequence[str] | Mapping[str, Any] = (),
    flags: Mapping[str, Any] | None = None,
    *,
    without_data: bool = False,
) -> Resolved:
    """Merge and check.

    Args:
        recipe: name or file; None: defaults only.
        sets: ``key=value`` with a dotted key and a YAML value; or dotted keys with their values.
        flags: dotted key -> value, for the keys of :data:`FLAGS`; a value of None is a flag not given.
        without_data: let :data:`NO_DATA` stand for data that are not given, for what reads none.

    Raises:
        ConfigError: no such recipe, an unknown key or alias, or a value that does not fit; names file and
            key.
    """
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    label = None
    if without_data:
        _merge(tree, origins, ("data", "sources"), [NO_DATA], STAND_IN)
    if recipe is not None:
        read = recipes.read(recipe)
        label = read.name
        origin = f"recipe {read.name if recipe == read.name else read.path}"
        _merge(tree, origins, (), {"name": read.name, **read.values}, origin)
    given = {tuple(key.split(".")): value for key, value in (flags or {}).items() if value is not None}
    listed = {path: value for path, value in given.items() if isinstance(value, list)}
    _merge_flags(
        tree, origins, listed
    )  # before --set, which may reach into the list: data.sources.0.image_root
    for path, value, origin in _changes(sets):
        _merge(tree, origins, path, value, origin)
        _merge_flags(tree, origins, {at: flag for at, flag in listed.items() if at[: len(path)] == path})
    _merge_flags(tree, origins, {path: value for path, value in given.items() if path not in listed})
    _resolve_models(tree)
    if label is None and "name" not in tree and isinstance(tree.get("student"), dict):
        tree["name"] = str(tree["student"].get("id", "distillation")).rstrip("/").rsplit("/", 1)[-1]
    try:
        config = DistillConfig.model_validate(tree)
    except ValidationError as error:
        raise complain(error, origins) from None
    _refuse_secrets(config)
    leaves = (key for key, _ in flatten(config.model_dump(mode="json")))
    return Resolved(config, {key: _origin(key, origins) for key in leaves}, label)


def _changes(sets: Sequence[str] | Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """Path, value and origin of each."""
    if isinstance(sets, Mapping):
        yield from ((tuple(str(key).split(".")), value, CHANGED[1]) for key, value in sets.items())
    else:
        yield from ((*parse_set(text), CHANGED[0]) for text in sets)


def _refuse_secrets(config: DistillConfig) -> None:
    """A configuration is written into run folders, cards and reports, and so no place for a secret."""
    for key, value in flatten(config.model_dump(mode="json")):
        if redact_tree(value, key.rsplit(".", 1)[-1]) != value:
            raise ConfigError(
                f"{key} holds what looks like an access token or a password, and configurations are stored and shared",
                hint="put a token of the hub into the variable HF_TOKEN, or log in: hf auth login",
            )


def _write(target: Path, text: str) -> None:
    part = target.with_name(f".{target.stem}.partial{target.suffix}")
    try:
        part.write_text(text, encoding="utf-8")
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def load_saved(folder: Path) -> Resolved:
    """The configuration of an existing run folder.

    Raises:
        CheckpointError: the folder is no run folder, or its configuration is damaged.
    """
    file = folder / CONFIG_FILE
    if not folder.exists():
        hint = missing.near(str(folder)) or "give the folder that `vlsi distill` wrote"
        raise CheckpointError(f"{folder} is not a run folder: it does not exist", hint=hint)
    if not file.is_file():
        run = next((parent for parent in folder.absolute().parents if missing.is_run(parent)), None)
        raise CheckpointError(
            f"{folder} is not a run folder: it has no {CONFIG_FILE}",
            hint=f"it lies in the run {run}" if run else "give the folder that `vlsi distill` wrote",
        )
    try:
        resolved = resolve(file)
        saved = json.loads((folder / ORIGINS_FILE).read_text(encoding="utf-8"))
        origins = {key: str(saved["origins"].get(key, "run folder")) for key in resolved.origins}
        return Resolved(resolved.config, origins, saved["recipe"])
    except (ConfigError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the configuration of the run {folder} is damaged: {error}") from error


def difference(held: Config, wanted: Config) -> str | None:
    """The first key in which two configurations differ, with both values; None when they are equal."""
    there, here = (dict(flatten(config.model_dump(mode="json"))) for config in (held, wanted))
    for key in [*here, *there]:
        a, b = there.get(key), here.get(key)
        if a != b:
            return f"{key} is {json.dumps(a)} there, {json.dumps(b)} here"
    return None


def parse_set(text: str) -> tuple[tuple[str, ...], Any]:
    """``"a.b=1e-4"`` as (("a", "b"), value); values are YAML, and ``1e-4`` is a number as people expect.

    Raises:
        ConfigError: no ``=``, an empty key, or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(f"--set {text}: expected key=value", hint="for example --set interaction.steps=100")
    try:
        return path, yamls.load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value is not valid YAML", hint=yamls.advice(error)) from error


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings, and of lists of mappings, by dotted key."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple) and value and all(isinstance(inner, dict) for inner in value):
        for number, inner in enumerate(value):
            yield from flatten(inner, f"{prefix}.{number}" if prefix else str(number))
    else:
        yield prefix, value


def _merge_flags(tree: dict[str, Any], origins: dict[str, str], flags: Mapping[tuple[str, ...], Any]) -> None:
    for path, value in flags.items():
        _merge(tree, origins, path, value, FLAGS.get(".".join(path), "flag"))


def _merge(
    tree: dict[str, Any], origins: dict[str, str], path: tuple[str, ...], value: Any, origin: str
) -> None:
    if path in (("teacher",), ("student",)) and isinstance(value, str):
        path = (*path, "id")
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            _merge(tree, origins, (*path, str(key)), inner, origin)
    else:
        _assign(tree, origins, path, value, origin)


def _assign(
    tree: dict[str, Any], origins: dict[str, str], path: tuple[str, ...], value: Any, origin: str
) -> None:
    here: Any = tree
    for depth, part in enumerate(path[:-1]):
        inner = _get(here, part, path[: depth + 1])
        if not isinstance(inner, dict | list):
            inner = {}
            _put(here, part, inner)
            origins.pop(".".join(path[: depth + 1]), None)
        here = inner
    _get(here, path[-1], path)
    dotted = ".".join(path)
    for known in [key for key in origins if key == dotted or key.startswith(dotted + ".")]:
        del origins[known]
    if isinstance(value, list):
        value = [dict(inner) if isinstance(inner, dict) else inner for inner in value]
    _put(here, path[-1], value)
    for key, _ in flatten(value, dotted):
        origins[key] = origin
    for other in _ALTERNATIVES.get(path[-1], ()) if value is not None else ():
        rival = ".".join((*path[:-1], other))
        if isinstance(here, dict) and origins.get(rival, origin) != origin:
            here.pop(other, None)
            del origins[rival]


def _get(here: Any, part: str, path: tuple[str, ...]) -> Any:
    if isinstance(here, list):
        if not part.isdigit() or int(part) >= len(here):
            raise ConfigError(
                f"{'.'.join(path)}: the list {'.'.join(path[:-1])} has no entry {part}",
                hint=f"entries are 0 to {len(here) - 1}" if here else "the list is empty",
            )
        return here[int(part)]
    return here.get(part)


def _put(here: Any, part: str, value: Any) -> None:
    here[int(part) if isinstance(here, list) else part] = value


def _resolve_models(tree: dict[str, Any]) -> None:
    """Replace aliases by ids, the student's with the teacher's family."""
    large = None
    for side in ("teacher", "student"):
        model = tree.get(side)
        if isinstance(model, dict) and isinstance(model.get("id"), str):
            model["id"] = catalog.resolve_alias(model["id"], large if side == "student" else None)
            large = model["id"]


def _origin(key: str, origins: Mapping[str, str]) -> str:
    """The origin of a leaf, or of the nearest whole that was given in its place (an empty mapping)."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if found := origins.get(".".join(parts[:length])):
            return found
    return "default"
