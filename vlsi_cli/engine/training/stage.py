"""What the training loop knows of a stage: parameters to train, and a loss for a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.gauges import DeviceClock


@dataclass(frozen=True)
class StageOutput:
    """Losses of one micro-batch: sums over its response tokens, which the loop divides by their global count.

    Attributes:
        loss: scalar with a gradient, the sum over response tokens of all terms.
        terms: name of a term (a target layer's number, ``last``, or ``answers``) -> its sum, detached.
        matched: small target layer -> large target layers, where layers were matched.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    matched: dict[int, tuple[int, ...]] = field(default_factory=dict)


# What wraps a module's forward (FSDP2) looks for tensors in what it returns.
_pytree.register_pytree_node(
    StageOutput,
    lambda output: ([output.loss, output.terms], output.matched),
    lambda children, matched: StageOutput(*children, matched),  # type: ignore[call-arg]
)


class Stage(nn.Module, ABC):
    """A stage of the method, as the loop sees it.

    A stage is a module so that whatever wraps modules (distribution, autocast) wraps its whole computation;
    its parameters are those of the models that it trains. Frozen partners are kept out of the module tree.

    Attributes:
        name: ``verbalization``, ``interaction`` or ``reinforcement``.
        generator: host generator of everything that the stage draws, part of a checkpoint, and in the same state on
            every process; None where nothing is drawn.
        some_idle: whether some of what trains has no part in the loss, in no batch.
        teacher_clock: time spent on the large model; None where none is asked.
    """

    name: str
    generator: torch.Generator | None = None
    some_idle: bool = False
    teacher_clock: DeviceClock | None = None

    @abstractmethod
    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that train, in a fixed order; everything else stays bit for bit what it is."""

    def units(self) -> list[nn.Module]:
        """The modules that are divided one by one where a run divides what trains; each is called as a whole."""
        return []

    def seldom(self) -> list[nn.Parameter]:
        """What trains, but has a part in the loss of some batches only."""
        return []

    @abstractmethod
    def forward(self, batch: Batch) -> StageOutput:
        """The losses of one micro-batch on the stage's device."""

    def set_train_mode(self) -> None:
        """Put what trains in train mode and the rest in eval mode (dropout of frozen towers stays off)."""
        self.train()


def with_zeros(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """The same loss, but of all these parameters: those that had no part in it get a gradient of zeros."""
    return loss + torch.stack([parameter.reshape(-1)[0] for parameter in parameters]).sum() * 0.0


def add_terms(terms: dict[str, Tensor], name: str, per_token: Tensor, weight: float = 1.0) -> Tensor:
    """Note a term's detached sum, times its weight, under its name and return it with its gradient."""
    total = per_token.sum() * weight
    terms[name] = total.detach()
    return total
