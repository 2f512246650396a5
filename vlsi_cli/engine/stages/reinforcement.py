"""Step 3: ordinary supervised fine-tuning of the small model, without verbalizers and without teacher."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.losses import cross_entropy
from vlsi_cli.engine.training.stage import Stage, StageOutput, add_terms, with_zeros

#: What "the whole small language model" means (arXiv 2412.01822, section 3.4) [P].
LANGUAGE_MODEL = ("embeddings", "layers", "final_norm", "head")
VISION = ("vision", "projector")


class ReinforcementStage(Stage):
    """Autoregressive cross-entropy on the response tokens; there is no reinforcement learning in it.

    Alone it is plain SFT, the baseline that every other arm is compared with.

    Args:
        backbone: the small model.
        parts: parts that train (see :data:`vlsi_cli.engine.backbones.backbone.PARTS`): the language model,
            with or without vision, or the adapters alone.
    """

    name = "reinforcement"

    def __init__(self, backbone: Backbone, parts: tuple[str, ...] = LANGUAGE_MODEL) -> None:
        super().__init__()
        self._backbone = (backbone,)
        self._names = [name for name, _ in backbone.set_trainable(parts)]
        self.model = backbone.model
        self._sees = any(part in VISION for part in parts)
        self.some_idle = self.uneven = (
            self._sees
        )  # not every family uses all of its vision tower, nor every batch

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters of the chosen parts."""
        held = dict(self.model.named_parameters())
        return [(name, held[name]) for name in self._names]

    def units(self) -> list[nn.Module]:
        """The decoder layers."""
        return list(self._backbone[0].layers)

    def seldom(self) -> list[nn.Parameter]:
        """The vision tower, where it trains: there are batches without pictures."""
        return [p for part, _, p in self._backbone[0].named_parts() if part in VISION] if self._sees else []

    def set_train_mode(self) -> None:
        """Train mode for the trained parts only."""
        self._backbone[0].train()

    def forward(self, batch: Batch) -> StageOutput:
        """Cross-entropy through the model's own head at the response positions."""
        backbone = self._backbone[0]
        states = backbone.forward_batch(batch)[batch.rows, batch.cols]
        losses = cross_entropy(
            states,
            backbone.head.weight,
            batch.targets,
            vocabulary=backbone.tokenizer_length,
            rule=backbone.logit_rule,
        )
        terms: dict[str, Tensor] = {}
        loss = add_terms(terms, "last", losses)
        if self._sees and isinstance(self, FSDPModule):
            # Divided gradients are added up in one piece: a process whose batch has no picture must bring zeros for
            # the vision tower, and not nothing.
            loss = with_zeros(loss, self.seldom())
        return StageOutput(loss, terms)
