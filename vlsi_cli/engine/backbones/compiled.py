"""Decoder layers through ``torch.compile``, for as long as a stage trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.errors import ConfigError, first_line

#: Graphs of the decoder layers of both models in all stages of a run: more than there can be.
GRAPHS = 64


def require_compiler(device: torch.device) -> None:
    """Find out at the start of a run whether ``torch.compile`` works here: it needs more than torch.

    Raises:
        ConfigError: it does not.
    """
    try:
        torch.compile(lambda x: x.exp().sum(), dynamic=True)(torch.ones(8, 8, device=device))
    except Exception as error:  # each of its parts has errors of its own
        why = first_line(getattr(error, "inner_exception", error))
        raise ConfigError(
            f"`compile: true` cannot be had here: {why}",
            hint="it needs a C++ compiler (g++ or clang++), for a GPU Triton and a C compiler; or leave compile out",
        ) from error


@contextmanager
def compiled_layers(backbone: Backbone) -> Iterator[None]:
    """Compile each decoder layer of a model inside the block, and leave the model as it was.

    Layers of linear attention run as they are: their code walks over pieces of a sequence, so that each number of
    pieces would be compiled for itself.

    Layers of a model have one code, so what is compiled for one serves all of them, and lengths are symbols: however
    long the records are, nothing is compiled again. A graph of its own is needed where the code takes another way: a
    batch without padding, a single record, a first layer whose input has no gradient. For a model and stage that makes
    ten graphs at most where it trains and five where it reads, compiled as they first occur. Hooks (taps, FSDP2,
    recomputation) stay outside the graphs. The rounding of a compiled layer differs: answers and stored checkpoints are
    therefore made by the layers as they are.

    Only for layers that lie on the device: hooks that fetch a layer's weights take the place of its code.
    """
    from torch._dynamo import config as settings  # which takes a second to import, and is seldom wanted

    layers: list[Any] = [
        layer
        for layer, kind in zip(backbone.layers, backbone.layer_kinds, strict=True)
        if kind != "linear_attention"
    ]
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)
    try:
        # torch's own limit of 8 counts both models and all stages together; beyond it layers run as they are
        with settings.patch(recompile_limit=GRAPHS):
            yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own shows again
