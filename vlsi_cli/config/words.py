"""What words of the command line stand for: data after ``--data``, layers after ``--layers``, and the like."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vlsi_cli.config.repos import JSON, looks_local
from vlsi_cli.errors import ConfigError, DataError, did_you_mean

_PEEK = 1 << 16
#: Endings of what the datasets library reads.
_TABLES = (".parquet", ".arrow", ".csv")


def source_from_word(word: str, prompt: str | None = None) -> dict[str, Any]:
    """A source as a recipe would spell it, from a file, a folder, a hub id, or the word ``patterns``.

    A ``.json`` or ``.jsonl`` file is told by the first of ``conversations`` and ``messages`` that occurs in
    it. Paths become absolute: they are relative to where the command was typed, not to a recipe's
    ``data.root``.

    Args:
        prompt: makes every folder one of pictures, of which this is asked.

    Raises:
        ConfigError: the word is none of these.
        DataError: a JSON file cannot be read or holds neither key.
    """
    if word == "patterns":
        return {"kind": "patterns"}
    if not word.strip():
        raise ConfigError(
            "--data is given without a word", hint="give a file, a folder, a hub id, or patterns"
        )
    if "://" in word:
        raise ConfigError(
            f"--data {word} is an address, and data are read from files",
            hint="fetch the file first, or give the id of a data set on the hub",
        )
    path = Path(word).expanduser()
    if prompt is not None and path.is_dir():
        return {"kind": "images", "path": str(path.absolute()), "prompt": prompt}
    if path.exists() and not path.is_file() and (path.suffix.lower() in JSON or not path.is_dir()):
        raise DataError(
            f"{path} is not a file", hint="data are read more than once, so that a pipe will not do"
        )
    if path.suffix.lower() in JSON:
        return {"kind": _shape(path), "path": str(path.absolute())}
    if path.is_file() and path.suffix not in _TABLES:
        raise DataError(
            f"{path}: no data are read from a file with the ending '{path.suffix}'",
            hint=f"endings are {', '.join((*JSON, *_TABLES))}: unpack or rename it",
        )
    if path.exists() or path.suffix == ".parquet":
        return {"kind": "huggingface", "id": str(path.absolute())}
    if not looks_local(word):
        return {"kind": "huggingface", "id": word}
    near = did_you_mean(word, ["patterns"])
    raise ConfigError(
        f"--data {word}: there is no such file or folder",
        hint=f"did you mean {near}?"
        if near
        else "give a .json or .jsonl file, a dataset folder or parquet file, a hub id, or patterns",
    )


def sources_from_words(*words: list[str] | None, prompt: str | None = None) -> list[dict[str, Any]] | None:
    """Sources from the words of several places of a command line; None where there are none.

    Args:
        prompt: what is asked of each picture in the folders among them.

    Raises:
        ConfigError, DataError: as :func:`source_from_word`; or a prompt and no folder.
    """
    named = [word for each in words for word in each or ()]
    if prompt is not None and not prompt.strip():
        raise ConfigError("--prompt is empty", hint="say what is to be asked of each picture")
    found = [source_from_word(word, prompt) for word in named]
    if prompt is not None and not any(each["kind"] == "images" for each in found):
        raise ConfigError(
            "--prompt asks one question of every picture in a folder, and "
            + (f"{', '.join(named)} is no folder" if named else "no folder is named"),
            hint="name a folder of pictures; records in files have questions of their own",
        )
    return found or None


def _shape(path: Path) -> str:
    if not path.is_file():
        return "llava" if path.suffix.lower() == ".json" else "messages"
    try:
        with path.open("rb") as stream:
            start = stream.read(_PEEK)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            f"{path} is UTF-16, and JSON is read as UTF-8", hint="iconv -f UTF-16 -t UTF-8 converts it"
        )
    places = {"llava": start.find(b'"conversations"'), "messages": start.find(b'"messages"')}
    found = {kind: place for kind, place in places.items() if place >= 0}
    if not start.strip(b" \t\r\n[]{}"):
        raise DataError(f"{path} holds no records")
    if not found:
        raise DataError(
            f"{path}: no record at its start has `conversations` or `messages`",
            hint="see docs/data.md for the formats; other columns are named in a recipe, in a source of kind "
            "huggingface: columns: {question: ..., answer: ..., image: ...}",
        )
    return min(found, key=lambda kind: found[kind])


def batch_size_from_word(word: str) -> int | str:
    """The value of ``--batch-size``: a number, or ``auto``.

    Raises:
        ConfigError: neither.
    """
    if word == "auto":
        return "auto"
    if not word.isdecimal() or int(word) < 1:
        raise ConfigError(f"--batch-size is '{word}', and should be a whole number from 1, or auto")
    return int(word)


def layers_from_word(word: str) -> tuple[int, ...]:
    """Decoder layers as typed after ``--layers``: numbers, ranges and strides, such as ``2,6,10`` or ``2-26:4``.

    Raises:
        ConfigError: the word is not of this form, or names layer 0.
    """
    layers: set[int] = set()
    for part in word.split(","):
        found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4})(?::(\d{1,4}))?)?", part.strip())
        first, last, stride = (
            (int(group) if group else None for group in found.groups()) if found else [None] * 3
        )
        if not first or last == 0 or stride == 0 or (last is not None and last < first):
            raise ConfigError(
                f"--layers {word}: '{part.strip()}' is not a decoder layer or a range of them",
                hint="layers count from 1: for example --layers 2,6,10 or --layers 2-26:4",
            )
        layers |= set(range(first, (last or first) + 1, stride or 1))
    return tuple(sorted(layers))
