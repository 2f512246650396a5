"""A step that is not finite, kept so that exactly that step can be run again.

failures/<stage>-<step>/
  failure.json            step, losses, gradient norm, records, how the numbers were computed
  batches.safetensors     the micro-batches as the model was fed them
  trained.safetensors     the trained parameters before the step
  random.safetensors      the states of the generators before it
  config.yaml             the run's configuration
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlsi_cli.config.loading import CONFIG_FILE
from vlsi_cli.engine import processes
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.files import file_sha256, new_folder
from vlsi_cli.engine.runs.folder import RunFolder, environment
from vlsi_cli.engine.sharding import is_sharded, whole_values
from vlsi_cli.engine.training import Failure, Stage
from vlsi_cli.errors import CheckpointError, TrainingError, VlsiError, fitting
from vlsi_cli.events import Events, Warn

Value = TypeVar("Value")

FOLDER, FACTS = "failures", "failure.json"
FORMAT_VERSION = 1
_TENSORS = ("batches", "trained", "random")


@dataclass(frozen=True)
class Bundle:
    """A kept step, read back.

    Attributes:
        path: its folder, inside the run folder.
        stage: the stage's key; ``step`` its step, from 1.
        batches: its micro-batches.
        trained, random: what the step starts from.
        facts: the rest of ``failure.json``.
    """

    path: Path
    stage: str
    step: int
    batches: list[Batch]
    trained: dict[str, Tensor]
    random: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.path.parent.parent


def keep_failure(folder: RunFolder, events: Events, key: str, stage: Stage, failure: Failure) -> str | None:
    """Write the bundle; a failure to do so must not hide the step's own, so it is a warning.

    All processes call it together. The bundle holds the micro-batches of all of them, one after another, and is run
    again by one process, which puts together what they fed at the same time.

    Returns:
        The line that says how to run the step again; None when nothing was kept.
    """
    target = folder.path / FOLDER / f"{key}-{failure.step:08d}"
    try:
        with fitting(TrainingError("memory ran out")):
            batches = _of_all(failure.draw())
            failure = replace(failure, micro_batches=_of_all(failure.micro_batches))
            trained = whole_values(stage.trained()) if is_sharded(stage) else dict(stage.trained())
            processes.on_first(lambda: _write(target, folder, key, failure, batches, trained))
    except VlsiError as error:
        events(Warn(f"what reproduces this step could not be kept: {error}"))
        return None
    return f"run exactly that step again with: vlsi distill --reproduce {shlex.quote(str(target))}"


def _of_all(values: list[Value]) -> list[Value]:
    """The values of all processes, the first one's of each before the second ones'."""
    return [value for row in zip(*processes.gather(values), strict=True) for value in row]


def _write(
    target: Path,
    folder: RunFolder,
    key: str,
    failure: Failure,
    batches: list[Batch],
    trained: Mapping[str, Tensor],
) -> None:
    with new_folder(target) as partial:
        _save(partial / "batches.safetensors", _flat(batches))
        _save(partial / "trained.safetensors", trained)
        _save(partial / "random.safetensors", failure.random)
        shutil.copyfile(folder.path / CONFIG_FILE, partial / CONFIG_FILE)
        facts = {
            "format_version": FORMAT_VERSION,
            "stage": key,
            "step": failure.step,
            "total": failure.total,
            "message": failure.message,
            "learning_rate": failure.learning_rate,
            "terms": _words(failure.terms),
            "grad_norm": _word(failure.grad_norm),
            "last_checkpoint": failure.last_checkpoint,
            "scaler": failure.scaler,
            "processes": processes.size(),
            "micro_batches": [
                {
                    "records": list(batch.records),
                    "digests": [digest.hex() for digest in batch.digests],
                    "response_tokens": batch.num_tokens,
                    "sums": _words(sums),
                }
                for batch, sums in zip(batches, failure.micro_batches or [{}] * len(batches), strict=True)
            ],
            "environment": environment(),
            "sha256": {name: file_sha256(partial / f"{name}.safetensors") for name in _TENSORS},
        }
        (partial / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def read_failure(path: Path) -> Bundle:
    """Read a bundle back.

    Raises:
        CheckpointError: it is none, or damaged.
    """
    if not (path / FACTS).is_file():
        raise CheckpointError(
            f"{path} holds no failed step: it has no {FACTS}",
            hint=f"give a folder that lies in {FOLDER}/ of a run folder",
        )
    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
        if facts["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format {facts['format_version']}, this version reads {FORMAT_VERSION}"
            )
        for name in _TENSORS:
            if file_sha256(path / f"{name}.safetensors") != facts["sha256"][name]:
                raise CheckpointError(f"{path} is damaged: {name}.safetensors has another hash")
        batches, trained, random = (load_file(path / f"{name}.safetensors") for name in _TENSORS)
        return Bundle(
            path=path.absolute(),
            stage=str(facts["stage"]),
            step=int(facts["step"]),
            batches=_batches(batches, facts["micro_batches"]),
            trained=trained,
            random=random,
            facts=facts,
        )
    except (OSError, ValueError, RecursionError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"the failed step in {path} cannot be read: {error}") from error


def _save(file: Path, tensors: Mapping[str, Tensor]) -> None:
    # cloned where tensors share memory (a tied head), which the format refuses
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, file)


def _flat(batches: list[Batch]) -> dict[str, Tensor]:
    named = {}
    for number, batch in enumerate(batches):
        for field in fields(batch):
            value = getattr(batch, field.name)
            if isinstance(value, Tensor):
                named[f"{number}/{field.name}"] = value
        named |= {f"{number}/inputs/{name}": value for name, value in batch.inputs.items()}
    return named


def _batches(tensors: dict[str, Tensor], facts: list[dict[str, Any]]) -> list[Batch]:
    made = []
    for number, known in enumerate(facts):
        own = {
            name.removeprefix(f"{number}/"): value
            for name, value in tensors.items()
            if name.startswith(f"{number}/")
        }
        inputs = {
            name.removeprefix("inputs/"): value for name, value in own.items() if name.startswith("inputs/")
        }
        plain: dict[str, Any] = {name: value for name, value in own.items() if "/" not in name}
        digests = tuple(bytes.fromhex(digest) for digest in known["digests"])
        made.append(Batch(inputs=inputs, records=tuple(known["records"]), digests=digests, **plain))
    return made


def _word(value: float) -> float | str:
    """JSON has no infinity: such a number is written as a word, which ``float`` reads."""
    return value if math.isfinite(value) else str(value)


def _words(values: dict[str, float]) -> dict[str, float | str]:
    return {name: _word(value) for name, value in values.items()}


def not_finite(named: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold something that is not finite."""
    return [name for name, tensor in named.items() if not bool(torch.isfinite(tensor).all())]
