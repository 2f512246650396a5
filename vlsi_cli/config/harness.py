"""Where lmms-eval is installed and which tasks its files (or those of a folder of one's own) hold; none is imported."""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from vlsi_cli.errors import ConfigError, DataError

PACKAGE, VERSION = "lmms-eval", "0.7.3"
MISSING = "lmms-eval is not installed"
INSTALL = f"pip install 'vlsi-cli[eval]' && pip install --no-deps {PACKAGE}=={VERSION}"

_TASK = re.compile(rb"^task:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*(?:#.*)?\r?$", re.MULTILINE)
_GROUP = re.compile(rb"^group[ \t]*:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*(?:#.*)?\r?$", re.MULTILINE)


def installed() -> str | None:
    """The version that is installed, or None."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return None


def tasks_folder() -> Path | None:
    """The folder of its tasks, or None."""
    if installed() is None:
        return None
    found = importlib.util.find_spec("lmms_eval")
    return Path(found.origin).parent / "tasks" if found is not None and found.origin else None


def require() -> str:
    """The installed version.

    Raises:
        ConfigError: none is installed.
    """
    version = installed()
    if version is None:
        raise ConfigError(f"{MISSING}, and benchmarks run on it", hint=INSTALL)
    return version


def index(folder: Path) -> dict[str, Path]:
    """Every single task below a folder: name and file. Groups are not among them.

    Raises:
        DataError: no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder of tasks {folder}")
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*.y*ml")):
        for name in _TASK.findall(file.read_bytes()):
            found.setdefault(name.decode(), file)
    return found


def groups(folder: Path) -> dict[str, Path]:
    """Every group of tasks below a folder: name and file."""
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*.y*ml")):
        for name in _GROUP.findall(file.read_bytes()):
            found.setdefault(name.decode(), file)
    return found


def members(group: Path) -> list[str]:
    """The tasks, or further groups, of a group's file.

    Raises:
        DataError: it cannot be read.
    """
    listed = plain_config(group).get("task")
    named = (
        [one.get("task") if isinstance(one, dict) else one for one in listed]
        if isinstance(listed, list)
        else []
    )
    return [str(name) for name in named if name]


def plain_config(file: Path) -> dict[str, Any]:
    """A task's file with what it includes, functions left out.

    Raises:
        DataError: it cannot be read, or is not YAML.
    """
    try:
        own = yaml.load(file.read_bytes(), Loader=_Plain)
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"the task file {file} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(own, dict):
        raise DataError(f"the task file {file} is not a mapping of keys to values")
    included = own.pop("include", [])
    merged: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        merged |= plain_config(file.parent / name)
    return merged | own


class _Plain(yaml.SafeLoader):
    """YAML in which `!function` stands for nothing."""


_Plain.add_multi_constructor("!", lambda loader, suffix, node: None)
