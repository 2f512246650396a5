"""What the interaction asks of a large model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.losses import PLAIN, LogitRule, TopK


@dataclass(frozen=True)
class TopKStates:
    """What is left of :class:`TeacherStates` where only the likeliest tokens were kept, layer by layer."""

    layers: dict[int, TopK]
    last: TopK


@dataclass(frozen=True)
class TeacherStates:
    """What a large model knows at the response positions of one batch. None of it has a gradient.

    Attributes:
        layers: target layer number -> ``[R, H_t]``, what enters the head: the verbalizer's output, or the
            final-normed state itself where layers are compared by features.
        last: ``[R, H_t]``, what enters the head behind the last layer.
        rule: what the large model does to its logits behind its head.
        top_k: in place of both, which are empty then, where only the likeliest tokens are known.
    """

    layers: dict[int, Tensor]
    last: Tensor
    rule: LogitRule = PLAIN
    top_k: TopKStates | None = None


class Teacher(Protocol):
    """A frozen large model, wherever its states come from."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def targets(self) -> tuple[int, ...]:
        """Its target layers, ascending, counted from 1."""

    @property
    def hidden_size(self) -> int:
        """H_t."""

    @property
    def head(self) -> Tensor:
        """Weight of its language head, ``[rows, H_t]``."""

    def states(self, batch: Batch, layers: Collection[int]) -> TeacherStates:
        """The states of the last layer and of the target layers asked for."""
