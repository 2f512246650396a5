"""Decoder layers through ``torch.compile``, for as long as a stage trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vlsi_cli.engine.backbones.backbone import Backbone


@contextmanager
def compiled_layers(backbone: Backbone) -> Iterator[None]:
    """Compile each decoder layer of a model inside the block, and leave the model as it was.

    Layers of a model have one code, so what is compiled for the first serves all of them; lengths that change make one
    more graph, which serves all lengths. Hooks (taps, FSDP2, recomputation) stay outside the graphs. The rounding of a
    compiled layer differs: answers and stored checkpoints are therefore made by the layers as they are.

    Only for layers that lie on the device: hooks that fetch a layer's weights take the place of its code.
    """
    layers: list[Any] = list(backbone.layers)
    for layer in layers:
        layer.forward = torch.compile(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own shows again
