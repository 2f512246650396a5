"""What the runs of one seed share: their batches, and what the frozen large model says to them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.teachers import LiveTeacher
from vlsi_cli.engine.teachers.teacher import TeacherStates


@dataclass
class Supply:
    """The batches of one seed in order, made when first asked for; every arm reads the same ones."""

    make: Iterator[Batch]
    made: list[Batch] = field(default_factory=list)

    def prepare(self, steps: int) -> None:
        """Make the batches of the first ``steps`` optimizer steps, so that no run's seconds hold their making."""
        while len(self.made) < steps:
            self.made.append(next(self.make))

    def batch(self, step: int) -> Batch:
        """The batch of optimizer step ``step`` of the student, counted from 0."""
        self.prepare(step + 1)
        return self.made[step]


class Replay:
    """A supply from some step on, with what the training loop asks of a stream of records."""

    def __init__(self, supply: Supply, first: int) -> None:
        self._supply, self._next = supply, first

    def next_step(self, batch_size: int, accumulation: int) -> list[Batch]:
        """The next batches; their size is the supply's own."""
        first, self._next = self._next, self._next + accumulation
        return [self._supply.batch(step) for step in range(first, self._next)]

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return {"next": self._next}


class KeptTeacher:
    """A large model that says the same to the same batch, and is therefore asked only once.

    Attributes:
        seconds: what the answers given so far took to compute, whether now or earlier.
        computed: the part of it that was spent now.
    """

    def __init__(self, live: LiveTeacher) -> None:
        self._live = live
        self._said: dict[tuple[str, ...], tuple[TeacherStates, float]] = {}
        self.seconds = self.computed = 0.0
        self.name, self.targets = live.name, live.targets
        self.hidden_size, self.head = live.hidden_size, live.head

    def states(self, batch: Batch, layers: Collection[int]) -> TeacherStates:
        """All target layers, whichever are asked for."""
        if batch.records not in self._said:
            started = time.process_time()
            states = self._live.states(batch, self.targets)
            self._said[batch.records] = states, time.process_time() - started
            self.computed += self._said[batch.records][1]
        states, seconds = self._said[batch.records]
        self.seconds += seconds
        return states
