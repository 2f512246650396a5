"""Step 1: the verbalizers of one backbone learn to say the next response token from their layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.losses import cross_entropy
from vlsi_cli.engine.training.stage import Stage, StageOutput, add_terms
from vlsi_cli.engine.verbalizing.reading import read_layers, verbalize
from vlsi_cli.engine.verbalizing.verbalizer import Verbalizers


class VerbalizationStage(Stage):
    """Autoregressive cross-entropy of every target layer, summed over layers (arXiv 2412.01822, section 3.2).

    Only the verb-FFNs train; backbone and head are frozen [P]. No layer's term reaches another layer's
    verbalizer, so the updates are independent [P], and deeper layers must end lower.

    Args:
        backbone: the model that is read; frozen here.
        verbalizers: its set.
    """

    name = "verbalization"

    def __init__(self, backbone: Backbone, verbalizers: Verbalizers) -> None:
        super().__init__()
        backbone.freeze()
        self._backbone = (backbone,)  # frozen: kept out of the module tree
        self.verbalizers = verbalizers.requires_grad_(True)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Every parameter of the set."""
        return list(self.verbalizers.named_parameters())

    def units(self) -> list[nn.Module]:
        """Every block of every verbalizer."""
        return self.verbalizers.blocks()

    def forward(self, batch: Batch) -> StageOutput:
        """Sum of the layers' cross-entropies; ``terms`` has one entry a target layer."""
        backbone = self._backbone[0]
        targets = self.verbalizers.targets
        with torch.no_grad():
            taps = read_layers(backbone, batch, targets, sequences=self.verbalizers.needs_sequence)
        terms: dict[str, Tensor] = {}
        losses = [
            add_terms(
                terms,
                str(layer),
                cross_entropy(
                    verbalize(self.verbalizers, taps, layer, batch),
                    backbone.head.weight,
                    batch.targets,
                    vocabulary=backbone.tokenizer_length,
                    rule=backbone.logit_rule,
                ),
            )
            for layer in targets
        ]
        return StageOutput(torch.stack(losses).sum(), terms)
