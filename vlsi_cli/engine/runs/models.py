"""From the configuration to the two models, their target layers and their verbalizers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlsi_cli.config.run import DistillConfig, ModelConfig, VerbalizerConfig
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.folders import resolve_verbalizers
from vlsi_cli.engine.backbones.load import Description, describe, load_backbone
from vlsi_cli.engine.backbones.saving import save_student, verify_student
from vlsi_cli.engine.devices import (
    precision_name,
    resolve_attention,
    resolve_device,
    resolve_precision,
)
from vlsi_cli.engine.files import new_folder, replace_folder, writing
from vlsi_cli.engine.verbalizing import (
    Verbalizers,
    decoder_layers_like,
    head_fingerprint,
    load_verbalizers,
    read_manifest,
    save_verbalizers,
)
from vlsi_cli.errors import CheckpointError, CompatibilityError, ConfigError

_ACCELERATE = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def place(config: DistillConfig) -> tuple[torch.device, torch.dtype]:
    """Where a run computes, and in what.

    Raises:
        ConfigError: a device or precision that this machine lacks.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device, resolve_precision(config.precision, device)


def new_accelerator(device: torch.device, dtype: torch.dtype) -> Accelerator:
    """An accelerator for one stage: what it prepares it keeps, and its loss scale is the stage's own.

    Raises:
        ConfigError: started as one of several processes.
    """
    mixed = _ACCELERATE[precision_name(dtype)]
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        # accelerate keeps the settings of a process's first run for good; a second run may have others
        AcceleratorState._reset_state()
    made = Accelerator(cpu=device.type == "cpu", mixed_precision=mixed, gradient_accumulation_steps=1)
    if made.num_processes != 1:
        raise ConfigError(
            f"this is one of {made.num_processes} processes, and several are not supported yet",
            hint="start vlsi by itself, without accelerate launch or torchrun",
        )
    return made


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose of a run: no two purposes share random numbers, and none depends on the others."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def load_model(
    model: ModelConfig,
    config: DistillConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    trained: bool,
    chat_template: str | None = None,
) -> Backbone:
    """Load one side: a model whose own weights train in fp32, any other in the compute dtype.

    ``chat_template`` takes the place of the model's own: both sides must read the same prompts.
    """
    if trained and model.dtype not in ("auto", "fp32"):
        raise ConfigError(
            f"student.dtype is {model.dtype}, but weights that train are kept in fp32 (small updates would be "
            "rounded away); the computation follows `precision`",
            hint="leave student.dtype out, or train adapters (train: lora)",
        )
    if model.dtype != "auto":
        dtype = resolve_precision(model.dtype, device)
    elif trained:
        dtype = torch.float32
    backbone = load_backbone(
        model.id,
        revision=model.revision,
        init=model.init,
        dtype=dtype,
        device=device,
        attn_implementation=resolve_attention(model.attn_implementation, device),
        trust_remote_code=model.trust_remote_code,
        seed=derived_seed(config.seed, "weights"),
        min_pixels=config.data.min_pixels,
        max_pixels=config.data.max_pixels,
        chat_template=chat_template,
        placement=model.placement,
        quantization=model.quantization,
    )
    if chat_template is not None:
        backbone.processor.chat_template = chat_template
    return backbone


def describe_model(
    model: ModelConfig, config: DistillConfig, *, chat_template: str | None = None
) -> Description:
    """What is known of one side without its weights."""
    return describe(
        model.id,
        revision=model.revision,
        min_pixels=config.data.min_pixels,
        max_pixels=config.data.max_pixels,
        chat_template=chat_template,
    )


def trains_weights(config: DistillConfig) -> bool:
    """Whether any stage changes the small model's own weights, rather than adapters on them."""
    stages = (config.interaction, config.reinforcement)
    return any(stage is not None and stage.train == "full" for stage in stages)


def target_layers(model: ModelConfig, backbone: Backbone | Description) -> tuple[int, ...]:
    """The target layers of a model, loaded or only described.

    Raises:
        CompatibilityError: none, or one that the model does not have, or its last layer.
    """
    targets = model.targets.resolve(backbone.num_layers)
    if not targets or targets[-1] >= backbone.num_layers:
        named = ", ".join(map(str, targets)) or "none"
        raise CompatibilityError(
            f"{model.id} has {backbone.num_layers} decoder layers, so its target layers lie in "
            f"1..{backbone.num_layers - 1} (the last has its own loss), but the configuration gives: {named}",
            hint="set teacher.targets or student.targets: start and stride, or a list of layers",
        )
    return targets


# ---------------------------------------------------------------- verbalizers


def new_verbalizers(
    backbone: Backbone,
    targets: tuple[int, ...],
    make: VerbalizerConfig,
    seed: int,
    device: torch.device | str = "cpu",
) -> Verbalizers:
    """A fresh set for a backbone; on the device ``meta`` it has sizes and no memory."""
    text: Any = backbone.config.get_text_config()
    return Verbalizers(
        targets,
        backbone.hidden_size,
        int(text.intermediate_size),
        make.architecture,
        init=make.init,
        residual=make.residual,
        norm=backbone.final_norm if make.norm else None,
        initializer_range=float(getattr(text, "initializer_range", 0.02)),
        decoder_factory=decoder_layers_like(list(backbone.layers)),
        seed=seed,
        device=device,
    )


def store_verbalizers(
    path: Path, backbone: Backbone, verbalizers: Verbalizers, training: dict[str, Any]
) -> None:
    """Write a set with the facts of its base."""
    save_verbalizers(
        path,
        verbalizers,
        base_id=backbone.id,
        base_revision=backbone.revision,
        head_sha256=head_fingerprint(backbone.head.weight),
        training=training,
        overwrite=True,
    )


def stored_verbalizers(
    path: Path, backbone: Backbone, targets: tuple[int, ...], *, any_head: bool = False
) -> Verbalizers:
    """Read a set back for its base, or refuse it.

    Args:
        path: the set; or a run, or a hub id, with the set of a large model in it.
        backbone: the base.
        targets: layers that the set must have.
        any_head: take a set that was trained through another head than the base's.
    """
    folder = resolve_verbalizers(path)
    head = read_manifest(folder).head_sha256 if any_head else head_fingerprint(backbone.head.weight)
    verbalizers, _ = load_verbalizers(
        folder,
        base_id=backbone.id,
        head_sha256=head,
        hidden_size=backbone.hidden_size,
        layers=targets,
        norm=backbone.final_norm,
        decoder_factory=decoder_layers_like(list(backbone.layers)),
        device=backbone.device,
    )
    return verbalizers


def disk_space(student: Backbone, verbalizers: list[int], *, full: bool, keep: int) -> int:
    """Bytes that a run can need on the disk at once: an upper estimate.

    Args:
        student: the small model.
        verbalizers: parameters of each set that will be trained.
        full: whether the small model's own weights train (adapters are small beside them).
        keep: checkpoints kept of a stage; one more exists while the newest is written.
    """
    small = sum(student.parameter_counts().values())
    trained = max([*verbalizers, small if full else small // 10])
    checkpoints = 12 * trained * (keep + 1)  # fp32 values and two moments
    return checkpoints + 4 * (2 * sum(verbalizers) + 2 * small)


# ---------------------------------------------------------------- what step 2 leaves


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


def write_student(target: Path, student: Backbone, dtype: torch.dtype) -> None:
    """Write the stock checkpoint in the precision computed in; it gets its name only once it is proved to load.

    The model in memory is rounded first, so that what is measured and what is stored are the same numbers. Buffers
    (rotary frequencies) stay as they are, which ``model.to(dtype)`` would not leave them.

    Raises:
        OutputError: it cannot be written.
        CheckpointError: what was written is not the model in memory.
    """
    for parameter in student.model.parameters():
        parameter.data = parameter.data.to(dtype)
    unproved = target.with_name(f".{target.name}-unproved.partial")
    save_student(student, unproved, dtype=dtype)
    # Weights must be equal bit for bit. So must logits on a CPU; a GPU may choose other kernels.
    verify_student(unproved, student, tolerance=0.0 if student.device.type == "cpu" else 0.05)
    with writing(target):
        replace_folder(unproved, target)
