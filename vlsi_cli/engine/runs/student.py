"""The small model on the disk: its layers after step 2, and the stock checkpoint at the end."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.saving import save_student, verify_student
from vlsi_cli.engine.files import new_folder, replace_folder, writing
from vlsi_cli.errors import CheckpointError


def store_layers(path: Path, backbone: Backbone) -> None:
    """Write the decoder layers (step 2 changes nothing else of the model), whole or not at all."""
    layers = {
        name: p.detach().cpu().contiguous() for part, name, p in backbone.named_parts() if part == "layers"
    }
    with new_folder(path) as partial:
        save_file(layers, partial / "layers.safetensors")


@torch.no_grad()
def restore_layers(path: Path, backbone: Backbone) -> None:
    """Put the stored decoder layers into a freshly loaded model.

    Raises:
        CheckpointError: they cannot be read, or belong to another model.
    """
    try:
        stored = cast(dict[str, Tensor], load_file(path / "layers.safetensors"))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the layers after step 2 in {path} cannot be read: {error}") from error
    held = {name: p for part, name, p in backbone.named_parts() if part == "layers"}
    if {n: t.shape for n, t in stored.items()} != {n: p.shape for n, p in held.items()}:
        raise CheckpointError(f"the layers after step 2 in {path} are not those of {backbone.id}")
    for name, parameter in held.items():
        parameter.copy_(stored[name])


def round_weights(student: Backbone, dtype: torch.dtype) -> None:
    """Round the model in memory, so that what is measured and what is stored are the same numbers.

    Buffers (rotary frequencies) stay as they are, which ``model.to(dtype)`` would not leave them.
    """
    for parameter in student.model.parameters():
        parameter.data = parameter.data.to(dtype)


def write_student(target: Path, student: Backbone, dtype: torch.dtype) -> None:
    """Write the stock checkpoint in the precision computed in; it gets its name only once it is proved to load.

    The model in memory has been rounded to it (:func:`round_weights`).

    Raises:
        OutputError: it cannot be written.
        CheckpointError: what was written is not the model in memory.
    """
    unproved = target.with_name(f".{target.name}-unproved.partial")
    save_student(student, unproved, dtype=dtype)
    # Weights must be equal bit for bit. So must logits on a CPU; a GPU may choose other kernels, whose roundings add up
    # over the layers to a few units in the last place of a half-precision logit (2^-8 of it in bf16). What a wrong
    # configuration does to logits is a multiple of 5 %.
    verify_student(unproved, student, tolerance=0.0 if student.device.type == "cpu" else 0.05)
    with writing(target):
        replace_folder(unproved, target)
