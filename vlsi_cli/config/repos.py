"""Names of repositories on the hub, checked without asking it."""

from __future__ import annotations

import re
from pathlib import Path

from vlsi_cli.errors import ConfigError

_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_LONGEST = 96
#: Endings of JSON and JSON Lines.
JSON = (".json", ".jsonl", ".ndjson")
#: The weights once more, for programs of Mistral's own: beside those that transformers reads, in the same folder.
TWICE = "consolidated*.safetensors"


def check_repo_name(name: str) -> str:
    """The name of a repository as the hub allows it: ``owner/name``.

    The hub's own rules: letters, digits, ``-``, ``_`` and ``.``; no ``--`` and no ``..``; no ``-`` or ``.`` at either
    end of a part; at most 96 characters a part; not ending in ``.git`` or ``.ipynb``.

    Raises:
        ConfigError: it is not such a name.
    """
    owner, slash, rest = name.partition("/")
    if not slash or not owner or not rest:
        raise ConfigError(
            f"'{name}' is not the name of a repository: it must be owner/name",
            hint="the owner is your name on the hub, or that of an organization of yours",
        )
    wrong = None
    if not all(_PART.fullmatch(part) for part in (owner, rest)):
        wrong = "its two parts may hold letters, digits, '-', '_' and '.', and must not begin or end with '-' or '.'"
    elif "--" in name or ".." in name:
        wrong = "'--' and '..' are not allowed"
    elif name.endswith((".git", ".ipynb")):
        wrong = "it must not end in .git or .ipynb"
    elif max(len(owner), len(rest)) > _LONGEST:
        wrong = f"a part of it is longer than {_LONGEST} characters"
    if wrong:
        raise ConfigError(f"the hub does not allow the repository name '{name}': {wrong}")
    return name


def download(id: str, revision: str | None = None) -> str:
    """The command that fetches a model, without the weights that it has twice."""
    whole = f" --exclude '{TWICE}'" if id.startswith("mistralai/") else ""
    return f"hf download {id}" + (f" --revision {revision}" if revision else "") + whole


def looks_local(name: str) -> bool:
    """Whether a name can only be a path: it starts like one, has a file's ending, or more than two parts."""
    return (
        name.startswith((".", "/", "~", "\\"))
        or name.count("/") != 1
        or name.lower().endswith((".parquet", *JSON))
    )


def at_home(name: str) -> str:
    """A path or another name; its ``~`` is the home folder, which no shell has written out in a recipe or in Python."""
    return str(Path(name).expanduser()) if name.partition("/")[0] == "~" else name
