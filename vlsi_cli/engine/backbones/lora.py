"""Low-rank adapters on the decoder's linear layers: added in place, trained in fp32, merged away at the end.

Adapters sit on every linear layer of the decoder (attention q, k, v, o; FFN gate, up, down) and nowhere else: the
paper trains "LoRA on the language model" with rank = alpha = 64 (arXiv 2412.01822, implementation details). Merging
restores plain linear layers, so that the saved student is a stock checkpoint.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.devices import seeded
from vlsi_cli.errors import CheckpointError, ConfigError

_ADAPTER = "default"


def add_lora(
    backbone: Backbone, *, rank: int = 64, alpha: float = 64, dropout: float = 0.0, seed: int = 0
) -> list[tuple[str, nn.Parameter]]:
    """Add adapters to the decoder and let only them train.

    A layer's output becomes ``W x + (alpha / rank) B A x`` with ``A`` [rank, in] drawn from ``seed`` on the CPU
    (Kaiming uniform, as peft does) and ``B`` [out, rank] zero, so the model computes what it did before. Adapters are
    fp32 whatever the model is stored in.

    Args:
        rank: inner width of an adapter.
        alpha: numerator of the scale.
        dropout: on the adapter's input, while training.
        seed: of the adapters' start; the same on every device.

    Returns:
        Names and parameters of the adapters.

    Raises:
        ConfigError: the ``peft`` extra is not installed, the rank is not positive, or adapters are there already.
    """
    if rank < 1:
        raise ConfigError(f"a LoRA rank of {rank} is not a positive number")
    if has_lora(backbone):
        raise ConfigError(f"'{backbone.id}' already has adapters: merge them before adding others")
    try:
        peft: Any = importlib.import_module("peft")
    except ImportError as error:
        raise ConfigError(
            "LoRA needs the peft package, which is not installed", hint="pip install 'vlsi-cli[peft]'"
        ) from error
    settings = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none", target_modules=_decoder_linears(backbone)
    )
    with seeded(seed, backbone.device):
        peft.inject_adapter_in_model(settings, backbone.model, adapter_name=_ADAPTER)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in backbone.model.named_parameters():
        if ".lora_" not in name:
            continue
        parameter.data = parameter.data.float()
        if ".lora_A." in name:
            start = torch.empty(parameter.shape, dtype=torch.float32)
            nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
            parameter.data.copy_(start)
    return backbone.set_trainable({"adapters"})


def has_lora(backbone: Backbone) -> bool:
    """Whether the backbone has adapters."""
    return any(_is_adapted(module) for module in backbone.layers.modules())


def merge_lora(backbone: Backbone) -> None:
    """Add every adapter into its linear layer, ``W + (alpha / rank) B A``, and remove all traces of adapters.

    The sum is taken in fp32 and stored in the layer's own dtype, and the model is frozen afterwards.

    Raises:
        CheckpointError: an adapter holds numbers that are not finite.
    """
    for name, module in list(backbone.model.named_modules()):
        if not _is_adapted(module):
            continue
        plain = module.get_base_layer()
        delta = module.get_delta_weight(_ADAPTER)
        if not torch.isfinite(delta).all():
            raise CheckpointError(
                f"the adapter of {name} holds numbers that are not finite: it cannot be merged"
            )
        with torch.no_grad():
            plain.weight.copy_(plain.weight.float() + delta.float())
        parent, _, child = name.rpartition(".")
        setattr(backbone.model.get_submodule(parent), child, plain)
    for owner in (backbone.model, backbone.base):
        if hasattr(owner, "peft_config"):
            delattr(owner, "peft_config")
    backbone.freeze()


def adapter_state(backbone: Backbone) -> dict[str, Tensor]:
    """The adapters' tensors by name, detached."""
    return {name: p.detach() for part, name, p in backbone.named_parts() if part == "adapters"}


def _decoder_linears(backbone: Backbone) -> list[str]:
    """Full names of the linear layers inside the decoder layers."""
    inside = {id(module) for module in backbone.layers.modules()}
    return [n for n, m in backbone.model.named_modules() if isinstance(m, nn.Linear) and id(m) in inside]


def _is_adapted(module: nn.Module) -> bool:
    return hasattr(module, "get_delta_weight") and hasattr(module, "get_base_layer")
