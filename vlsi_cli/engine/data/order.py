"""The order in which records are taken: that of the draws, or by length within a window of several steps.

Places are given to draws ahead of the steps that take them, so that workers can begin. Where the order stands is
always told of the next draw that has not been taken: how far it is planned ahead leaves no trace.

Order by length needs lengths, which are found without decoding pixels: by every process for its share of the window,
and then exchanged. Records without a usable text or header are left out there, so that micro-batches stay as they were
cut; what shows only later moves the rest of its window by one place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

from vlsi_cli.engine.data.grouping import group_by_length
from vlsi_cli.engine.data.records import BadRecord
from vlsi_cli.engine.data.schedule import Draw, Schedule
from vlsi_cli.engine.data.workers import Pending

#: Numbers of this process -> the numbers of every process, in the order of ranks; all processes call it together. The
#: lists may differ in length.
Exchange = Callable[[list[int]], list[list[int]]]
#: A draw, and why it cannot be used; None where only another process knows.
Skip = tuple[Draw, BadRecord | None]

#: Records in a row that may be unusable in a mix without epochs before the data are called empty.
MAX_SKIPS_IN_A_ROW = 10_000


class NothingUsable(Exception):
    """So many records in a row cannot be used; those that nobody has counted yet come along."""

    def __init__(self, in_a_row: int, skips: Sequence[Skip] = ()) -> None:
        super().__init__(in_a_row)
        self.in_a_row, self.skips = in_a_row, skips


@dataclass(frozen=True, slots=True)
class Planned:
    """A draw in its place.

    Attributes:
        place: counted over the whole order.
        draw: what is drawn.
        before: where the order stands just before it.
        skips: records that were found unusable just before it.
    """

    place: int
    draw: Draw
    before: dict[str, Any]
    skips: Sequence[Skip] = ()


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step takes: ``records`` of all processes, ``group`` of them in a micro-batch."""

    records: int
    group: int


@dataclass(frozen=True, slots=True)
class _Window:
    """Records that are ordered by length together.

    Attributes:
        size: how many; ``group`` of them make a micro-batch of all processes.
        lead: those that fill up a micro-batch which the window before has begun.
        taken: those that are taken already.
    """

    size: int
    group: int
    lead: int
    taken: int = 0


@dataclass(frozen=True, slots=True)
class _Measured:
    """The draws of the window to come, and their lengths as far as this process finds them."""

    before: dict[str, Any]
    draws: list[Draw]
    own: list[Pending[int | BadRecord]]


class Order:
    """Draws in their places.

    Args:
        schedule: the draws.
        seed: of the order of micro-batches in a window.
        group_steps: optimizer steps that make a window; 0 keeps the order of the draws.
        length: finds the length of a draw's record.
        rank, world_size, exchange: as in :class:`RecordStream`.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        seed: int,
        group_steps: int,
        length: Callable[[Draw], Pending[int | BadRecord]],
        rank: int,
        world_size: int,
        exchange: Exchange,
    ) -> None:
        self._schedule, self._seed, self._steps, self._length = schedule, seed, group_steps, length
        self._rank, self._world, self._exchange = rank, world_size, exchange
        self._planned = 0
        self._queue: deque[Planned] = deque()
        self._measured: _Measured | None = None
        self._entered: _Window | None = None  # a window to go on with, after a resume

    @property
    def cursor(self) -> int:
        """Draws taken so far."""
        standing = self.state_dict()
        return int(standing["cursor"]) + (standing["window"]["taken"] if standing["window"] else 0)

    def begin_step(self, shape: StepShape) -> None:
        """Plan what a step takes; all processes call it together."""
        while len(self._queue) < shape.records:
            self._plan(shape, lead=-len(self._queue) % shape.group)

    def take(self, shape: StepShape, missing: int) -> Planned:
        """The next draw, for a step that lacks ``missing`` records; all processes call it together."""
        if not self._queue:
            self._plan(shape, lead=missing % shape.group)
        return self._queue.popleft()

    def look_ahead(self, shape: StepShape, records: int) -> list[Planned]:
        """What the step to come takes first, of this process; all processes call it together.

        Only what :meth:`begin_step` would do as well is done, so that it changes no order.
        """
        records = min(records, shape.records)
        while len(self._queue) < records:
            self._plan(shape, lead=-len(self._queue) % shape.group)
        if self._steps and self._measured is None and len(self._queue) <= shape.records:
            self._measured = self._measure(self._steps * shape.records)
        return list(islice(self._queue, self._rank, records, self._world))

    def require_some(self, usable: Sequence[int], drawn: int, skips: Sequence[Skip] = ()) -> None:
        """Records may be bad, but not all of them.

        One good record a pass can stand first in one epoch and last in the next: two passes less two between.

        Args:
            usable: numbers of the usable ones among ``drawn`` draws in a row.
            skips: the others, if they are not counted yet.

        Raises:
            NothingUsable: too many in a row.
        """
        epoch = self._schedule.draws_per_epoch
        limit = 2 * epoch if epoch else MAX_SKIPS_IN_A_ROW
        if max(after - before - 1 for before, after in pairwise([-1, *usable, drawn])) >= limit:
            raise NothingUsable(limit, skips)

    def state_dict(self) -> dict[str, Any]:
        """Where the order stands, before the next draw that is not taken; plain JSON values."""
        if self._queue:
            return self._queue[0].before
        if self._measured is not None:
            return self._measured.before
        return _standing(self._schedule.state_dict(), self._entered)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`; plans are forgotten."""
        for pending in self._measured.own if self._measured is not None else ():
            pending.cancel()
        self._queue.clear()
        self._measured = None
        self._schedule.load_state_dict(state)
        self._entered = _Window(**state["window"]) if state["window"] else None

    def _plan(self, shape: StepShape, lead: int) -> None:
        """Give places to one draw more, or to those of a window."""
        if self._steps:
            window, self._entered = self._entered, None
            self._plan_window(window or _Window(self._steps * shape.records, shape.group, lead))
        else:
            before = _standing(self._schedule.state_dict())
            self._put(self._schedule.next(), before)

    def _put(self, draw: Draw, before: dict[str, Any], skips: Sequence[Skip] = ()) -> None:
        self._queue.append(Planned(self._planned, draw, before, skips))
        self._planned += 1

    def _plan_window(self, window: _Window) -> None:
        measured, self._measured = self._measured or self._measure(window.size), None
        start, size = measured.before, len(measured.draws)
        draws: list[Draw] = []
        lengths: list[int] = []
        usable: list[int] = []
        skips: list[Skip] = []
        while True:
            for draw, length, bad in self._told(measured):
                if length < 0:
                    skips.append((draw, bad))
                else:
                    usable.append(len(draws))
                draws.append(draw)
                lengths.append(length)
            if len(usable) == size:
                break
            self.require_some(usable, len(draws), skips)
            measured = self._measure(size - len(usable))
        order = group_by_length(
            [lengths[number] for number in usable],
            window.group,
            lead=window.lead,
            seed=self._seed + int(start["cursor"]),
        )
        for place, number in enumerate(order):
            if place >= window.taken:
                here = _Window(size, window.group, window.lead, place)
                before = _standing(start, here if place or window.lead else None)
                self._put(draws[usable[number]], before, () if place else skips)

    def _measure(self, number: int) -> _Measured:
        """Draw records, and have this process's share of them measured."""
        before = _standing(self._schedule.state_dict())
        draws = [self._schedule.next() for _ in range(number)]
        return _Measured(before, draws, [self._length(draw) for draw in draws[self._rank :: self._world]])

    def _told(self, measured: _Measured) -> Iterator[tuple[Draw, int, BadRecord | None]]:
        """Every draw with its length, or -1 and, from this process's share, the reason."""
        own = [pending.result() for pending in measured.own]
        told = self._exchange([-1 if isinstance(each, BadRecord) else each for each in own])
        for number, draw in enumerate(measured.draws):
            turn, rank = divmod(number, self._world)
            mine = own[turn] if rank == self._rank else None
            yield draw, told[rank][turn], mine if isinstance(mine, BadRecord) else None


def _standing(schedule: dict[str, Any], window: _Window | None = None) -> dict[str, Any]:
    held = None
    if window is not None:
        held = {"size": window.size, "group": window.group, "lead": window.lead, "taken": window.taken}
    return {**schedule, "window": held}
