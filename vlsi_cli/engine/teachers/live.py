"""A large model that runs beside the small one."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.teachers.teacher import TeacherStates
from vlsi_cli.engine.verbalizing.reading import read_layers, verbalize
from vlsi_cli.engine.verbalizing.verbalizer import Verbalizers


class LiveTeacher:
    """A loaded backbone with its trained verbalizers, all of it frozen.

    Args:
        backbone: the large model.
        verbalizers: its set; None compares layers by their final-normed states, without words (Table 4d').
        targets: its target layers.
        dtype: compute dtype; fp32 runs without autocast.
        freeze: freeze the backbone for good. A model that somebody else goes on with is read as it is, without
            gradients, in the mode that the caller gives it.
    """

    def __init__(
        self,
        backbone: Backbone,
        verbalizers: Verbalizers | None,
        targets: Collection[int],
        dtype: torch.dtype = torch.float32,
        *,
        freeze: bool = True,
    ) -> None:
        if freeze:
            backbone.freeze()
        if verbalizers is not None:
            verbalizers.requires_grad_(False).eval()
        self.backbone, self.verbalizers = backbone, verbalizers
        self.targets = tuple(targets)
        self._dtype = dtype

    @property
    def name(self) -> str:
        """The backbone's id."""
        return self.backbone.id

    @property
    def hidden_size(self) -> int:
        """H_t."""
        return self.backbone.hidden_size

    @property
    def head(self) -> Tensor:
        """Weight of its language head."""
        return self.backbone.head.weight

    @torch.no_grad()
    def states(self, batch: Batch, layers: Collection[int]) -> TeacherStates:
        """One forward pass of the large model; only the layers asked for are tapped and verbalized."""
        wanted = [layer for layer in self.targets if layer in layers]
        sequences = self.verbalizers is not None and self.verbalizers.needs_sequence
        with self._autocast():
            taps = read_layers(self.backbone, batch, wanted, sequences=sequences)
            if self.verbalizers is None:
                found = {layer: self.backbone.final_norm(taps.layers[layer]) for layer in wanted}
            else:
                found = {layer: verbalize(self.verbalizers, taps, layer, batch) for layer in wanted}
        return TeacherStates(found, taps.last, self.backbone.logit_rule)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.backbone.device.type, dtype=self._dtype)
