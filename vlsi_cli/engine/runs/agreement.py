"""Whether the processes of a run were started alike and see one run folder: each machine is told its own command."""

from __future__ import annotations

import hashlib
import secrets
import time
from datetime import timedelta
from pathlib import Path

from vlsi_cli.config.data import HubSource, PatternsSource
from vlsi_cli.config.loading import Resolved, difference
from vlsi_cli.config.run import DistillConfig
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


def require_alike(resolved: Resolved) -> None:
    """All processes must train the same models on the same data, in the same software.

    Raises:
        ConfigError: one has another configuration or other versions than the first; every process raises it.
        DataError: models or data files of one are others.
    """
    if processes.size() == 1:
        return
    versions = environment()
    own = {"vlsi": versions["vlsi"]} | {name: versions["packages"].get(name) for name in _ALIKE}
    everyone = processes.gather((resolved.config, own, _held(resolved.config)))
    first, known, held = everyone[0]
    problem: VlsiError | None = None
    for number, (config, theirs, here) in enumerate(everyone):
        if differs := difference(first, config):
            problem = ConfigError(
                f"process {number} was started with another configuration than the first: {_named(differs, number)}",
                hint="give every machine the same command, and the same recipe where it is a file",
            )
        elif odd := [name for name in own if theirs[name] and known[name] and theirs[name] != known[name]]:
            problem = ConfigError(
                f"process {number} has {odd[0]} {theirs[odd[0]]}, and the first has {known[odd[0]]}",
                hint="install the same versions on every machine",
            )
        elif other := _difference(held, here):
            problem = DataError(
                f"process {number} has other files than the first: {other} is not the same",
                hint="copy models and data anew, or keep them on a file system that all machines of the run share",
            )
        if problem is not None:
            problem.shared = True
            raise problem


def _held(config: DistillConfig) -> Held:
    """The files of models and data here. Nothing of a model that is not here: it will be fetched."""
    found: Held = {}
    for model in filter(None, (config.teacher, config.student)):
        folder = local_folder(model.id, model.revision)
        files = (
            [] if folder is None else [file for each in (_WEIGHTS, *_READING) for file in folder.glob(each)]
        )
        found[model.id] = {file.name: _told(file) for file in files if file.is_file()}
    for data in filter(None, (config.data, config.evaluation.data)):
        for source in data.located_sources():
            if not isinstance(source, PatternsSource):
                path = Path(source.id if isinstance(source, HubSource) else source.path)
                if path.is_file() or not isinstance(source, HubSource):
                    found[str(path)] = {path.name: _told(path)}
    return found


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


def require_shared(run: Path) -> None:
    """All processes must see the run folder that the first has made: a run goes on from what lies in it.

    Args:
        run: the folder as the first process names it.

    Raises:
        OutputError: one does not see it; every process raises it.
    """
    if processes.size() == 1:
        return

    def leave() -> Path:
        # what a kill leaves of it, the next run sweeps away
        mark = run / f".shared.partial.{secrets.token_hex(8)}"
        with writing(run):
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
            f"process {blind[0]} does not see the run folder {run}, which the first process has made",
            hint="give --output as an absolute path on a file system that all machines of the run share",
        )
        problem.shared = True
        raise problem
