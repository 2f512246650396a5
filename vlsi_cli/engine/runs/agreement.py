"""Whether the processes of a run were started alike and see one run folder: each machine is told its own command."""

from __future__ import annotations

import secrets
import time
from datetime import timedelta
from pathlib import Path

from vlsi_cli.config.data import LlavaSource, MessagesSource
from vlsi_cli.config.loading import Resolved, difference
from vlsi_cli.config.run import DistillConfig
from vlsi_cli.engine import processes
from vlsi_cli.engine.backbones.folders import local_folder
from vlsi_cli.engine.files import writing
from vlsi_cli.engine.runs.folder import environment
from vlsi_cli.errors import ConfigError, DataError, OutputError, VlsiError

#: A file system over the network shows a new file at once, or when it next looks a folder up.
SHOWING = timedelta(seconds=60)
_ALIKE = ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "peft", "deepspeed")


def require_alike(resolved: Resolved) -> None:
    """All processes must train the same models on the same data, in the same software.

    Raises:
        ConfigError: one has another configuration or other versions than the first; every process raises it.
        DataError: models or data files of one have another size.
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
        elif other := [path for path in held if held[path] and here[path] and here[path] != held[path]]:
            problem = DataError(
                f"process {number} has other files in {other[0]} than the first: their sizes differ",
                hint="copy models and data anew, or keep them on a file system that all machines of the run share",
            )
        if problem is not None:
            problem.shared = True
            raise problem


def _held(config: DistillConfig) -> dict[str, list[tuple[str, int]]]:
    """Names and sizes of the files of models and data here: cheap to compare, and most stale copies differ.

    Nothing of a model that is not here: it will be fetched.
    """
    found = {}
    for model in filter(None, (config.teacher, config.student)):
        folder = local_folder(model.id, model.revision)
        weights = sorted(folder.glob("*.safetensors")) if folder is not None else []
        found[model.id] = [(file.name, file.stat().st_size) for file in weights if file.is_file()]
    for source in config.data.located_sources():
        if isinstance(source, LlavaSource | MessagesSource):
            path = Path(source.path)
            found[str(path)] = [(path.name, path.stat().st_size if path.is_file() else 0)]
    return found


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
