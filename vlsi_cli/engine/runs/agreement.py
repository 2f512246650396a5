"""Whether the processes of a command were started alike and see one folder: each machine is told its own command."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path

from vlsi_cli.config.base import Config
from vlsi_cli.config.data import DataConfig, HubSource, PatternsSource
from vlsi_cli.config.loading import difference
from vlsi_cli.config.models import ModelConfig
from vlsi_cli.engine import processes
from vlsi_cli.engine.backbones.folders import local_folder
from vlsi_cli.engine.files import writing
from vlsi_cli.engine.runs.folder import environment
from vlsi_cli.errors import ConfigError, DataError, OutputError, VlsiError

#: A file system over the network shows a new file at once, or when it next looks a folder up.
SHOWING = timedelta(seconds=60)
#: Bytes at the beginning and at the end of a file that are compared: all of what is not weights or data, as a rule.
PROBE = 2**20
_ALIKE = ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "peft", "deepspeed")

_WEIGHTS = "*.safetensors"
#: Other files of a model's folder, which decide how records are read and what is built.
_READING = (
    "config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "chat_template*",
    "*processor_config.json",
)
#: What is held of models and data: a place, the names of its files, and what tells each from another.
Held = dict[str, dict[str, str]]


def require_alike(*configs: Config, held: Held, versions: Mapping[str, str | None] | None = None) -> None:
    """All processes must work with the same models on the same data in the same way, in the same software.

    Args:
        configs: what this process was told.
        held: the files that it has for it: :func:`files_of`.
        versions: of further software that decides what comes of it.

    Raises:
        ConfigError: one has another configuration or other versions than the first; every process raises it.
        DataError: models or data files of one are others.
    """
    if processes.size() == 1:
        return
    here = environment()
    own = (
        {"vlsi": here["vlsi"]} | {name: here["packages"].get(name) for name in _ALIKE} | dict(versions or {})
    )
    everyone = processes.gather((configs, own, held))
    first, known, files = everyone[0]
    problem: VlsiError | None = None
    for number, (others, theirs, there) in enumerate(everyone):
        differences = (difference(*pair) for pair in zip(first, others, strict=True))
        if differs := next(filter(None, differences), None):
            problem = ConfigError(
                f"process {number} was started with another configuration than the first: {_named(differs, number)}",
                hint="give every machine the same command, and the same recipe where it is a file",
            )
        elif odd := [name for name in own if theirs[name] and known[name] and theirs[name] != known[name]]:
            problem = ConfigError(
                f"process {number} has {odd[0]} {theirs[odd[0]]}, and the first has {known[odd[0]]}",
                hint="install the same versions on every machine",
            )
        elif other := _difference(files, there):
            problem = DataError(
                f"process {number} has other files than the first: {other} is not the same",
                hint="copy models and data anew, or keep them on a file system that all machines of the run share",
            )
        if problem is not None:
            problem.shared = True
            raise problem


def files_of(models: Iterable[ModelConfig | None], mixes: Iterable[DataConfig | None] = ()) -> Held:
    """The files of models and data here. Nothing of a model that is not here: it will be fetched."""
    found: Held = {}
    for model in filter(None, models):
        folder = local_folder(model.id, model.revision)
        files = (
            [] if folder is None else [file for each in (_WEIGHTS, *_READING) for file in folder.glob(each)]
        )
        found[model.id] = {file.name: _told(file) for file in files if file.is_file()}
    for data in filter(None, mixes):
        for source in data.located_sources():
            if not isinstance(source, PatternsSource):
                path = Path(source.id if isinstance(source, HubSource) else source.path)
                if path.is_file() or not isinstance(source, HubSource):
                    found[str(path)] = {path.name: _told(path)}
    return found


def files_in(folder: Path, *endings: str) -> Held:
    """The files of a folder and those below it that end like this."""
    files = (file for file in sorted(folder.rglob("*")) if file.suffix in endings and file.is_file())
    return {str(folder): {file.relative_to(folder).as_posix(): _told(file) for file in files}}


def require_same_questions(digests: Mapping[str, str]) -> None:
    """All processes must have read the same rows of each benchmark: each is dealt questions by their numbers.

    Args:
        digests: of what this process has read, by the name of the task.

    Raises:
        DataError: one has read others than the first; every process raises it.
    """
    first, *others = processes.gather(dict(digests))
    for number, there in enumerate(others, 1):
        for name, digest in first.items():
            if there.get(name) != digest:
                problem = DataError(
                    f"process {number} has other questions of '{name}' than the first",
                    hint="fetch the data anew, or keep them (HF_HOME) on a file system that all machines share",
                )
                problem.shared = True
                raise problem


def _told(file: Path) -> str:
    """What tells a file from another copy: its size and both of its ends; "" where it cannot be read.

    Training changes a checkpoint in its last tensor too. A data file that was changed only in its middle, and not in
    its length, is not told from the old one.
    """
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, 2)
            opened.seek(0)
            digest = hashlib.blake2b(opened.read(PROBE), digest_size=16)
            opened.seek(max(PROBE, size - PROBE))
            digest.update(opened.read(PROBE))
    except OSError:
        return ""
    return f"{size} {digest.hexdigest()}"


def _difference(first: Held, here: Held) -> str | None:
    """A file that is another one here, or weights that only one of both has."""
    for place, ours in first.items():
        theirs = here.get(place, {})
        if not ours or not theirs:
            continue
        alone = sorted(name for name in ours.keys() ^ theirs.keys() if Path(name).match(_WEIGHTS))
        # of other files one may have fetched fewer, as they were needed
        other = sorted(name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name])
        for name in (*other, *alone):
            return place if Path(place).name == name else f"{place}/{name}"
    return None


def _named(differs: str, number: int) -> str:
    return differs.replace(" there,", " in the first,").removesuffix(" here") + f" in process {number}"


def place_of_first(output: Path) -> Path:
    """Where all processes write: what the first was told, which keeps its own way to say it."""
    there = processes.on_first(output.absolute)
    return output if processes.is_first() else there


def require_shared(folder: Path) -> None:
    """All processes must see the folder that the first has made: they go on from what lies in it.

    Args:
        folder: as the first process names it.

    Raises:
        OutputError: one does not see it; every process raises it.
    """
    if processes.size() == 1:
        return

    def leave() -> Path:
        # what a kill leaves of it, the next run sweeps away
        mark = folder / f".shared.partial.{secrets.token_hex(8)}"
        with writing(folder):
            mark.touch()
        return mark

    mark = processes.on_first(leave)
    end = time.monotonic() + SHOWING.total_seconds()
    try:
        while not mark.exists() and time.monotonic() < end:
            time.sleep(0.2)
        blind = [number for number, seen in enumerate(processes.gather(mark.exists())) if not seen]
    finally:
        if processes.is_first():
            mark.unlink(missing_ok=True)
    if blind:
        problem = OutputError(
            f"process {blind[0]} does not see the folder {folder}, which the first process has made",
            hint="give --output as an absolute path on a file system that all machines of the run share",
        )
        problem.shared = True
        raise problem
