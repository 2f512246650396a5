"""Where the weights of a large model that is only read lie: on the device, in host memory, on the disk, or in pieces.

Decoder layers are nearly all of a large model. Placed elsewhere, each is copied to the device when it runs and let go
of after it (accelerate's hooks); embeddings, vision tower, final norm and head stay on the device, since losses and
verbalizers reach for them between forward passes. A pass then costs at least the time in which the layers can be read
once. From the disk they are read straight from the checkpoint: nothing is copied there first.

Several processes can divide the layers instead (:func:`divide`), which keeps them on the devices.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, Literal

import torch
from accelerate.hooks import remove_hook_from_module
from torch import nn

from vlsi_cli.config import launching
from vlsi_cli.engine import gauges, sharding
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.family import Family
from vlsi_cli.engine.backbones.quiet import quiet_transformers
from vlsi_cli.errors import ConfigError

Placement = Literal["device", "cpu", "disk"]


def device_map(
    config: Any, family: Family, device: torch.device, placement: Placement, dtype: torch.dtype, shown: str
) -> dict[str, str]:
    """A device for every module, by name: the decoder layers where ``placement`` says, the rest on ``device``.

    Args:
        config: the model's config; the model is built without memory to learn its modules' names.
        placement: ``cpu`` or ``disk``.
        dtype: of its weights.
        shown: what to call the model in a message.

    Raises:
        ConfigError: ``cpu`` on a CPU, where the layers are in host memory as it is, or where they cannot all lie there.
    """
    if placement == "cpu" and device.type == "cpu":
        raise ConfigError(
            f"the decoder layers of '{shown}' were to be kept in host memory, but it runs on the CPU, where they are",
            hint="set teacher.placement to device, or to disk where memory is short",
        )
    model = hollow(config)
    layers, others = rooms_of(model, family)
    if placement == "cpu":
        parts = (model.get_submodule(name).parameters() for name in layers)
        size = sum(part.numel() for part in chain.from_iterable(parts)) * dtype.itemsize
        _require_room(size, launching.local_size(), gauges.host_memory(), shown)
    return dict.fromkeys(layers, str(placement)) | dict.fromkeys(others, str(device))


def _require_room(size: int, copies: int, memory: int | None, shown: str) -> None:
    """Refuse what the system would end by killing a process, with no word of why."""
    if memory is None or size * copies <= memory:
        return
    times = f" in each of {copies} processes" if copies > 1 else ""
    raise ConfigError(
        f"the decoder layers of '{shown}' take {size / 2**30:.1f} GiB of host memory{times}, and there are "
        f"{memory / 2**30:.1f} GiB on this machine",
        hint="set teacher.placement to disk: layers are then read from the checkpoint, one by one",
    )


def rooms(config: Any, family: Family) -> tuple[list[str], list[str]]:
    """Names of the decoder layers, and of every other module or loose parameter, which together are the whole model."""
    return rooms_of(hollow(config), family)


def hollow(config: Any, **options: Any) -> nn.Module:
    """A model without memory; ``options`` as those of ``from_config``."""
    from transformers import AutoModelForImageTextToText

    with quiet_transformers(), torch.device("meta"):
        model: nn.Module = AutoModelForImageTextToText.from_config(config, **options)
    return model


def rooms_of(model: nn.Module, family: Family) -> tuple[list[str], list[str]]:
    """The same of a model that is there."""
    room = f"model.{family.decoder}.layers"
    layers: list[str] = []
    others: list[str] = []

    def visit(module: nn.Module, name: str) -> None:
        if name.rpartition(".")[0] == room:
            layers.append(name)
        elif name in ("", "model", f"model.{family.decoder}", room):
            for child, inner in module.named_children():
                visit(inner, f"{name}.{child}".strip("."))
            others.extend(f"{name}.{own}" for own, _ in module.named_parameters(recurse=False))
        else:
            others.append(name)

    visit(model, "")
    return layers, others


def divide(backbone: Backbone) -> None:
    """Divide the decoder layers of a frozen model, loaded with its layers on the disk, among the processes.

    Each layer is read to the device, cut, and let go of before the next: at no time does a device hold more than its
    pieces and one layer. The rest of the model (embeddings, vision tower, norm, head) stays whole on every device.
    """
    for layer in backbone.layers:
        for module in layer.modules():
            hook = getattr(module, "_hf_hook", None)
            if hook is not None:
                hook.pre_forward(module)
                remove_hook_from_module(module)
        for parameter in layer.parameters():  # experts that lie turned in the checkpoint
            parameter.data = parameter.data.contiguous()
        sharding.shard_unit(layer)
    for module in backbone.model.modules():  # what accelerate put around the modules above the layers
        remove_hook_from_module(module)
    sharding.shard(backbone.base, [])
