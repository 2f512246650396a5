"""From the configuration to the two models, their target layers and their verbalizers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
from torch import Tensor

from vlsi_cli.config import launching
from vlsi_cli.config.experts import require_plain_verbalizers
from vlsi_cli.config.run import DistillConfig, ModelConfig, VerbalizerConfig
from vlsi_cli.engine import processes
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.folders import resolve_verbalizers
from vlsi_cli.engine.backbones.load import Description, describe, load_backbone
from vlsi_cli.engine.backbones.placement import divide
from vlsi_cli.engine.devices import (
    precision_name,
    resolve_attention,
    resolve_device,
    resolve_precision,
    round_products,
)
from vlsi_cli.engine.verbalizing import (
    Verbalizers,
    decoder_layers_like,
    head_fingerprint,
    load_verbalizers,
    read_manifest,
    save_verbalizers,
)
from vlsi_cli.errors import CompatibilityError, ConfigError

_ACCELERATE = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def place(config: DistillConfig) -> tuple[torch.device, torch.dtype]:
    """Where a run computes, and in what; sets what is the process's own (threads, GPU, TF32).

    Raises:
        ConfigError: a device or precision that this machine lacks.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = own_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if (
        device.type == "cpu"
    ):  # DeepSpeed, which transformers imports where it is installed, would look and complain
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    dtype = resolve_precision(config.precision, device)
    round_products(config.tf32, dtype)
    return device, dtype


def own_device(device: str) -> torch.device:
    """The device of this process, from what the configuration says.

    Raises:
        ConfigError: one that this machine lacks, or that several processes cannot share.
    """
    return processes.own_device(resolve_device(device), chosen=":" in device)


def new_accelerator(device: torch.device, dtype: torch.dtype, *, some_idle: bool = False) -> Accelerator:
    """An accelerator for one stage: what it prepares it keeps, and its loss scale is the stage's own.

    Args:
        some_idle: whether some of what trains takes no part in some losses, which DistributedDataParallel must know.
    """
    mixed = _ACCELERATE[precision_name(dtype)]
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        # accelerate keeps the settings of a process's first run for good; a second run may have others
        AcceleratorState._reset_state()
    # Buffers are rotary frequencies, the same everywhere. Gradients that lie in the buckets they are sent in are not
    # held twice.
    copies = DistributedDataParallelKwargs(
        broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=some_idle
    )
    launching.fsdp_asked(), launching.zero_asked()  # carried out here: accelerate is not to see them
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=mixed,
        # Both said outright: accelerate's environment would else have every loss divided (it wins over a plain
        # `gradient_accumulation_steps`), and the whole stage compiled.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        kwargs_handlers=[copies],
    )


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
    divided: bool = False,
) -> Backbone:
    """Load one side: a model whose own weights train in fp32, any other in the compute dtype.

    Args:
        chat_template: takes the place of the model's own: both sides must read the same prompts.
        divided: among the processes, layer by layer as they are read, so that no device ever holds all of them.
    """
    if trained and model.dtype not in ("auto", "fp32"):
        raise ConfigError(
            f"student.dtype is {model.dtype}, but weights that train are kept in fp32 (small updates would be "
            "rounded away); the computation follows `precision`",
            hint="leave student.dtype out, or train adapters (train: lora)",
        )
    computed = dtype
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
        placement="disk" if divided else model.placement,
        quantization=model.quantization,
        computed=computed,
    )
    if divided:
        divide(backbone)
    if chat_template is not None:
        backbone.processor.chat_template = chat_template
    if model.vision_memory:
        backbone.remember_vision(int(model.vision_memory * 2**30))
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
    require_plain_verbalizers(backbone.experts, make.architecture, backbone.id)
    return Verbalizers(
        targets,
        backbone.hidden_size,
        backbone.intermediate_size,
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


@torch.no_grad()
def rebuilt_verbalizers(
    backbone: Backbone, targets: tuple[int, ...], make: VerbalizerConfig, values: Mapping[str, Tensor]
) -> Verbalizers:
    """A set with the given numbers, by the names of its parameters."""
    made = new_verbalizers(backbone, targets, make, 0)
    for name, parameter in made.named_parameters():
        parameter.copy_(values[name])
    return made


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
