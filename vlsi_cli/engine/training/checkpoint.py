"""Checkpoints inside a stage: everything that the next step depends on, hashed, whole or not there at all.

A checkpoint is a folder ``<stage>-<step>`` of ``state.safetensors`` (trained parameters, both moments of the
optimizer, random states) and ``state.json`` (position in the data, the loss scale, hashes). No pickles. The newest is
the one of the highest step: nothing here asks a clock.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlsi_cli.engine import processes, sharding
from vlsi_cli.engine.files import file_sha256, new_folder
from vlsi_cli.errors import CheckpointError

FORMAT_VERSION = 2
_TENSORS, _STATE = "state.safetensors", "state.json"
_NAME = re.compile(r"(?P<stage>[a-z-]+)-(?P<step>\d{8})")

NamedParameters = Sequence[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint read back: its step, its tensors by name, and its plain values."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


class DamagedCheckpoint(CheckpointError):
    """A checkpoint that is not what was written: cut short, changed, or without one of its files."""


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where they live.
        keep: how many of a stage stay on disk, newest first.
        skip: told in a sentence of every damaged checkpoint, which is removed in favour of the one before it; None
            refuses a damaged one.
    """

    def __init__(self, folder: Path, keep: int = 2, skip: Callable[[str], None] | None = None) -> None:
        self.folder, self.keep, self._skip = folder, keep, skip

    def save(self, stage: str, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Path:
        """Write one and drop the oldest beyond ``keep``.

        Raises:
            OutputError: it cannot be written; earlier checkpoints stay.
        """
        target = self.folder / f"{stage}-{step:08d}"
        with new_folder(target) as partial:
            save_file(
                {name: t.detach().cpu().contiguous() for name, t in tensors.items()}, partial / _TENSORS
            )
            state = {
                "format_version": FORMAT_VERSION,
                "stage": stage,
                "step": step,
                "sha256": file_sha256(partial / _TENSORS),
                "values_sha256": _digest(values),
                "values": dict(values),
            }
            (partial / _STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
        for old in self._of(stage)[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def latest(self, stage: str) -> Checkpoint | None:
        """The newest checkpoint of a stage, or None.

        Raises:
            DamagedCheckpoint: it is not what was written, and damaged ones are not to be skipped.
            CheckpointError: it is of another format.
        """
        for path in reversed(self._of(stage)):
            try:
                return self._read(path)
            except DamagedCheckpoint as damaged:
                if self._skip is None:
                    raise
                self._skip(f"{damaged.message}; it is removed, and the one before it is used")
                shutil.rmtree(path, ignore_errors=True)
        return None

    def drop(self, stage: str) -> None:
        """Remove the checkpoints of a stage that is complete."""
        for path in self._of(stage):
            shutil.rmtree(path, ignore_errors=True)

    def _of(self, stage: str) -> list[Path]:
        if not self.folder.is_dir():
            return []
        names = ((path, _NAME.fullmatch(path.name)) for path in self.folder.iterdir())
        return sorted(path for path, match in names if match and match["stage"] == stage)

    def _read(self, path: Path) -> Checkpoint:
        hint = "the same command with --skip-damaged goes on from the checkpoint before it"
        try:
            state = json.loads((path / _STATE).read_text(encoding="utf-8"))
            if state["format_version"] != FORMAT_VERSION:
                raise CheckpointError(
                    f"the checkpoint {path} has format {state['format_version']}, this version reads {FORMAT_VERSION}"
                )
            for what, digest in (
                ("sha256", file_sha256(path / _TENSORS)),
                ("values_sha256", _digest(state["values"])),
            ):
                if digest != state[what]:
                    odd = "tensors have" if what == "sha256" else "values have"
                    raise DamagedCheckpoint(
                        f"the checkpoint {path} is damaged: its {odd} another hash", hint=hint
                    )
            if f"{state['stage']}-{int(state['step']):08d}" != path.name:
                raise DamagedCheckpoint(
                    f"the checkpoint {path} is damaged: it says of itself that it is of another step",
                    hint=hint,
                )
            return Checkpoint(int(state["step"]), load_file(path / _TENSORS), dict(state["values"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            raise DamagedCheckpoint(f"the checkpoint {path} cannot be read: {error}", hint=hint) from error


def _digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, whatever the order of their keys."""
    plain = json.loads(json.dumps(dict(values)))  # as they are read back
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- what goes into one


def pack(
    trained: NamedParameters,
    moments: Callable[[nn.Parameter], Mapping[str, Any]],
    generator: torch.Generator | None,
    device: torch.device,
) -> dict[str, Tensor]:
    """Parameters, moments and random states under flat names: whole tensors, however they are divided.

    All processes call it together; ``moments`` says what the optimizer keeps for a parameter. The states of torch's
    own generators are those of every process, numbered from the second on: ``random/torch.1``. What was
    gathered from pieces is in the first process's host memory, and empty on the others.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in trained:
        tensors[f"trained/{name}"] = _gathered(parameter)
        for key, value in moments(parameter).items():
            moment = _gathered(value) if isinstance(value, Tensor) else torch.tensor(value)
            tensors[f"optimizer/{key}/{name}"] = moment
    for number, states in enumerate(processes.gather(random_states(generator, device))):
        tensors |= {_numbered(name, number): state for name, state in states.items()}
    return tensors


def _gathered(tensor: Tensor) -> Tensor:
    if not sharding.is_piece(tensor):
        return tensor
    whole = sharding.whole(tensor).detach()
    return whole.cpu() if processes.is_first() else whole.new_empty(0)


def _numbered(name: str, number: int) -> str:
    """The states of torch's own generators are each process's; the stage's is everybody's."""
    return name if number == 0 or name == "random/stage" else f"{name}.{number}"


@torch.no_grad()
def unpack(
    checkpoint: Checkpoint,
    trained: NamedParameters,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator | None,
    device: torch.device,
    *,
    seed: int = 0,
    divided_later: bool = False,
) -> None:
    """Put everything of :func:`pack` back, in this process's pieces if the parameters are divided.

    Args:
        divided_later: leave moments whole, in host memory, for :class:`.zero.ZeroPrepared` to divide.
        seed: of torch's own random state where the checkpoint was written by another number of processes, so that
            their states have no owner now; a pure function of it, the step and this process's number.

    Raises:
        CheckpointError: the checkpoint belongs to a stage that trains other parameters.
    """
    tensors = checkpoint.tensors
    expected = {f"trained/{name}": tuple(parameter.shape) for name, parameter in trained}
    found = {name: tuple(t.shape) for name, t in tensors.items() if name.startswith("trained/")}
    if expected != found:
        odd = sorted(set(expected.items()) ^ set(found.items()))[0][0].removeprefix("trained/")
        raise CheckpointError(
            f"the checkpoint was written by a run that trains other parameters: {odd}",
            hint="resume with the configuration that the run was started with",
        )
    moments: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, key, parameter_name = name.split("/", 2)
            moments.setdefault(parameter_name, {})[key] = tensor
    for name, parameter in trained:
        parameter.copy_(sharding.like(tensors[f"trained/{name}"], parameter))
        if name in moments:
            # AdamW keeps its step count on the host, its moments beside the parameter.
            optimizer.state[parameter] = {
                key: value if key == "step" or divided_later else sharding.like(value, parameter)
                for key, value in moments[name].items()
            }
    own = processes.rank()
    states = {name: tensors[full] for name in _RANDOM if (full := _numbered(name, own)) in tensors}
    if written_by(checkpoint) != processes.size():
        states = {name: state for name, state in states.items() if name == "random/stage"}
        torch.manual_seed(mixed_seed(seed, checkpoint.step, own))
    set_random_states(states, generator, device)


def written_by(checkpoint: Checkpoint) -> int:
    """How many processes wrote it."""
    return int(checkpoint.values.get("processes", 1))


def mixed_seed(seed: int, step: int, number: int) -> int:
    """Another seed for every process and step; at step 0 the first process's is ``seed`` itself."""
    if step == number == 0:
        return seed
    digest = hashlib.sha256(f"{seed}/{step}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


_RANDOM = ("random/torch", "random/cuda", "random/stage")


def random_states(generator: torch.Generator | None, device: torch.device) -> dict[str, Tensor]:
    """The states of every generator that a step of this process can draw from."""
    states = {"random/torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["random/cuda"] = torch.cuda.get_rng_state(device)
    if generator is not None:
        states["random/stage"] = generator.get_state()
    return states


def set_random_states(
    states: Mapping[str, Tensor], generator: torch.Generator | None, device: torch.device
) -> None:
    """Put the states of :func:`random_states` back, as far as they are there."""
    if "random/torch" in states:
        torch.set_rng_state(states["random/torch"])
    if device.type == "cuda" and "random/cuda" in states:
        torch.cuda.set_rng_state(states["random/cuda"], device)
    if generator is not None:
        generator.set_state(states["random/stage"])
