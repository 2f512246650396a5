"""One forward pass of a backbone, read at the response positions through its verbalizers.

Shapes: B records, S positions, R response tokens, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.verbalizing.verbalizer import Verbalizers


@dataclass(frozen=True)
class Taps:
    """Raw outputs of chosen decoder layers in one forward pass, and the last layer's final-normed state.

    Attributes:
        layers: layer number -> ``[R, H]``, or ``[B, S, H]`` when whole sequences were kept.
        calls: layer number -> keyword arguments of that layer, when whole sequences were kept.
        last: ``[R, H]``, what enters the backbone's own head.
    """

    layers: dict[int, Tensor]
    calls: dict[int, dict[str, Any]]
    last: Tensor


def read_layers(backbone: Backbone, batch: Batch, layers: Sequence[int], *, sequences: bool = False) -> Taps:
    """Run the backbone up to its head once and keep what the layers asked for said at the response positions.

    Args:
        backbone: any; whether gradients flow is the caller's choice.
        batch: on the backbone's device.
        layers: decoder layers, counted from 1.
        sequences: keep whole sequences, which decoder verbalizers need.
    """
    where = {} if sequences else {"rows": batch.rows, "cols": batch.cols}
    with backbone.tap(layers, **where, calls=sequences) as tapped:
        last = backbone.forward_batch(batch)
        found = {layer: tapped[layer] for layer in layers}
    return Taps(found, dict(tapped.call), last[batch.rows, batch.cols])


def verbalize(verbalizers: Verbalizers, taps: Taps, layer: int, batch: Batch) -> Tensor:
    """``[R, H]``: what enters the head behind the verbalizer of ``layer``."""
    if not verbalizers.needs_sequence:
        states: Tensor = verbalizers(layer, taps.layers[layer])
        return states
    whole: Tensor = verbalizers(layer, taps.layers[layer], taps.calls[layer])
    return whole[batch.rows, batch.cols]
