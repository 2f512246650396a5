"""Records in a reproducible order, as the micro-batches of optimizer steps, resumable to the record.

The order is the schedule's (see ``schedule``) and that of one process, however many there are: processes agree on
which draws could not be used, and then each takes its part of every micro-batch. So two processes with batches of
two feed exactly the records of one process with batches of four, and where the stream stands is the same on all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Generic, Literal, Self, TypeVar

from vlsi_cli.engine.data.order import MAX_SKIPS_IN_A_ROW, Exchange, NothingUsable, Order, Planned, StepShape
from vlsi_cli.engine.data.records import BadRecord, Record
from vlsi_cli.engine.data.report import DataReport
from vlsi_cli.engine.data.schedule import Draw, RecordSource, Schedule
from vlsi_cli.engine.data.workers import Pending, Pool, Reader
from vlsi_cli.errors import DataError

Item = TypeVar("Item")
Collated = TypeVar("Collated")

#: Records that each worker is ahead in a pass over the data.
_AHEAD = 8


def read_in_order(
    pool: Pool[Item], draws: Iterable[tuple[int, Draw]]
) -> Iterator[tuple[int, Draw, Item | BadRecord]]:
    """Numbered draws with their items; the workers are ahead of whoever takes them."""
    begun: deque[tuple[int, Draw, Pending[Item | BadRecord]]] = deque()
    try:
        for number, draw in draws:
            begun.append((number, draw, pool.read(draw)))
            if len(begun) > pool.count * _AHEAD:
                number, draw, pending = begun.popleft()
                yield number, draw, pending.result()
        while begun:
            number, draw, pending = begun.popleft()
            yield number, draw, pending.result()
    finally:
        for _, _, pending in begun:
            pending.cancel()


def alone(numbers: list[int]) -> list[list[int]]:
    """The exchange of a single process."""
    return [numbers]


class RecordStream(Generic[Item, Collated]):
    """Endless supply of encoded records, in optimizer steps.

    Args:
        sources: pairs of a source and its weight.
        encode: what is made of each record; raises BadRecord for one that cannot be used.
        collate: what is made of a list of items.
        seed: decides the order together with the epoch.
        shuffle: False keeps the order of the sources.
        policy: ``skip`` counts unusable records, ``refuse`` raises the first.
        report: where records are counted; the counts are of all processes together.
        rank, world_size: which of how many processes this is.
        exchange: how the processes tell each other which draws they could not use.
        workers: processes that read and encode ahead; 0 reads when records are needed. They change no result.
        prefetch: records of this process that they are ahead, at most one step's; None for a whole step's.
        group_steps: optimizer steps whose records are put into micro-batches by length; 0 for none.
        measure: length of a record without its pixels, for ``group_steps``.

    Raises:
        DataError: a source is empty.
    """

    def __init__(
        self,
        sources: Sequence[tuple[RecordSource, float]],
        encode: Callable[[Record], Item],
        collate: Callable[[list[Item]], Collated],
        *,
        seed: int,
        shuffle: bool = True,
        policy: Literal["skip", "refuse"] = "skip",
        report: DataReport | None = None,
        rank: int = 0,
        world_size: int = 1,
        exchange: Exchange = alone,
        workers: int = 0,
        prefetch: int | None = None,
        group_steps: int = 0,
        measure: Callable[[Record], int] | None = None,
    ) -> None:
        self._make_schedule = lambda: Schedule(sources, seed, shuffle)
        self._schedule = self._make_schedule()
        self._reader: Reader[Item] = Reader([source for source, _ in sources], encode, measure or _no_length)
        self._pool = Pool(self._reader, workers)
        self._order = Order(
            self._schedule,
            seed=seed,
            group_steps=group_steps,
            length=self._pool.length,
            rank=rank,
            world_size=world_size,
            exchange=exchange,
        )
        self._collate, self._policy, self._group_steps, self._prefetch = (
            collate,
            policy,
            group_steps,
            prefetch,
        )
        self._rank, self._world, self._exchange = rank, world_size, exchange
        self._begun: dict[int, Pending[Item | BadRecord]] = {}
        self.report = report or DataReport()

    @property
    def cursor(self) -> int:
        """Draws made so far, those that could not be used among them."""
        return self._order.cursor

    @property
    def records_per_epoch(self) -> int | None:
        """Draws in one pass over all sources; None when there is no such thing."""
        return self._schedule.draws_per_epoch

    @property
    def epoch(self) -> int:
        """Passes completed (0 for a mix without epochs)."""
        return self.cursor // (self.records_per_epoch or self.cursor + 1)

    def next_step(self, batch_size: int, accumulation: int = 1) -> list[Collated]:
        """This process's micro-batches of one optimizer step; all processes call it together.

        With W processes, micro-batch j of the step is the usable records ``j * W * batch_size`` and following, W *
        batch_size of them in order; rank r takes every W-th, from the r-th on. The stream ends up behind the last of
        them, at the same place on every process.

        Args:
            batch_size: records of this process in a micro-batch.
            accumulation: micro-batches.

        Raises:
            DataError: nothing usable in two whole passes (or in 10,000 draws of a mix without epochs); or, with the
                policy ``refuse``, the first record that cannot be used; both on every process alike. Or a worker of
                this process has ended.
        """
        shape = StepShape(batch_size * self._world * accumulation, batch_size * self._world)
        try:
            items = self._take(shape)
            self.report.use(shape.records)
            if self._pool.count:
                ahead = shape.records if self._prefetch is None else self._prefetch * self._world
                for each in self._order.look_ahead(shape, ahead):
                    self._begin(each)
        except NothingUsable as nothing:
            for draw, bad in nothing.skips:
                self._skip(draw, bad)
            raise self._none_of(nothing.in_a_row) from None
        return [
            self._collate(items[first : first + batch_size]) for first in range(0, len(items), batch_size)
        ]

    def next_batch(self, size: int) -> Collated:
        """The next ``size`` usable records of this process, collated."""
        return self.next_step(size)[0]

    def _take(self, shape: StepShape) -> list[Item]:
        """This process's items of one step."""
        self._order.begin_step(shape)
        drawn: list[Planned] = []
        usable: list[int] = []  # numbers in ``drawn``
        items: dict[int, Item] = {}
        while True:
            while len(usable) < shape.records:
                taken = self._order.take(shape, shape.records - len(usable))
                usable.append(len(drawn))
                drawn.append(taken)
                for draw, bad in taken.skips:
                    self._skip(draw, bad)
            mine = usable[self._rank :: self._world]
            # A record that was taken for another's, until one before it turned out bad, is read by both: bad ones are
            # rare, and a record would have to travel otherwise.
            missing = [number for number in mine if number not in items]
            for number in missing:
                self._begin(drawn[number])
            found: dict[int, BadRecord] = {}
            for number in missing:
                item = self._begun.pop(drawn[number].place).result()
                if isinstance(item, BadRecord):
                    found[number] = item
                else:
                    items[number] = item
            told = sorted(set(chain.from_iterable(self._exchange(sorted(found)))))
            if not told:
                break
            for number in told:
                self._skip(drawn[number].draw, found.get(number))
            usable = [number for number in usable if number not in set(told)]
            self._order.require_some(usable, len(drawn))
        for each in drawn:  # begun for this process before it was known to be another's
            if pending := self._begun.pop(each.place, None):
                pending.cancel()
        return [items[number] for number in mine]

    def _begin(self, each: Planned) -> None:
        if each.place not in self._begun:
            self._begun[each.place] = self._pool.read(each.draw)

    def one_pass(self, limit: int | None = None) -> Iterator[Item]:
        """Every usable record of the first epoch, once, or the first ``limit`` of them; leaves the cursor alone.

        Of several processes each gets every ``world_size``-th draw.

        Raises:
            DataError: no usable record, or an endless source without a limit.
        """
        total = self.records_per_epoch
        if total is None and limit is None:
            raise DataError("a pass over endless data needs a number of records")
        found = in_a_row = 0
        for _, draw, item in self._read_all():
            if isinstance(item, BadRecord):
                self._skip(draw, item)
                in_a_row += 1
                if total is None and in_a_row == MAX_SKIPS_IN_A_ROW:
                    raise self._none_of(in_a_row)
                continue
            found, in_a_row = found + 1, 0
            self.report.use()
            yield item
            if found == limit:
                return
        if not found:
            raise self._nothing("no record could be used")

    def numbered_pass(self, first: int = 0) -> Iterator[tuple[int, Item | BadRecord]]:
        """Every draw of the first epoch from number ``first`` on: its number, and the item or why there is none.

        It leaves the cursor alone. Draws of other processes are left out.

        Raises:
            DataError: the data have no end, or (with the policy ``refuse``) a record cannot be used.
        """
        if self.records_per_epoch is None:
            raise DataError("a pass over endless data needs a number of records")
        for number, draw, item in self._read_all(first):
            if isinstance(item, BadRecord):
                self._skip(draw, item)
            else:
                self.report.use()
            yield number, item

    def at(self, number: int) -> Item | BadRecord:
        """One draw of the first epoch, as :meth:`numbered_pass` gives it; it is read here, whatever the workers do."""
        schedule = self._make_schedule()
        schedule.cursor = number
        draw = schedule.next()
        item = self._reader.read(draw)
        if isinstance(item, BadRecord):
            self._skip(draw, item)
        return item

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as plain JSON values: the same on every process, and for any number of them."""
        return {
            **self._order.state_dict(),
            "made_of": self._made_of(),
            "report": self.report.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, with the same records in the same order.

        Raises:
            DataError: the sources, their sizes, weights, the seed or the grouping are not the same.
        """
        made_of = self._made_of()
        if state["made_of"] != made_of:
            raise DataError(
                "the data are not those that the run was started with: "
                f"{state['made_of']} then, {made_of} now"
            )
        self._forget()
        self._order.load_state_dict(state)
        self.report.load_state_dict(state["report"])

    def close(self) -> None:
        """End the workers. A stream that is used again starts others."""
        self._forget()
        self._order.load_state_dict(self._order.state_dict())
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _forget(self) -> None:
        for pending in self._begun.values():
            pending.cancel()
        self._begun.clear()

    def _made_of(self) -> dict[str, Any]:
        return {**self._schedule.made_of(), "group_steps": self._group_steps}

    def _read_all(self, first: int = 0) -> Iterator[tuple[int, Draw, Item | BadRecord]]:
        """This process's draws of the first epoch (or without end) from a number on, with their items."""
        return read_in_order(self._pool, self._own_draws(first))

    def _own_draws(self, first: int) -> Iterator[tuple[int, Draw]]:
        schedule, total = self._make_schedule(), self.records_per_epoch
        schedule.cursor = first  # only a mix with epochs is entered in the middle
        while total is None or schedule.cursor < total:
            number, draw = schedule.cursor, schedule.next()
            if number % self._world == self._rank:
                yield number, draw

    def _skip(self, draw: Draw, bad: BadRecord | None) -> None:
        """Count a record that cannot be used, or raise it; None when only another process knows why."""
        if bad is None:
            item = self._reader.read(draw)
            bad = item if isinstance(item, BadRecord) else BadRecord("not-everywhere", where=draw.key)
        if self._policy == "refuse":
            raise bad
        self.report.skip(draw.key, bad)

    def _none_of(self, number: int) -> DataError:
        return self._nothing(f"not one of {number} records in a row could be used")

    def _nothing(self, sentence: str) -> DataError:
        """With the last record that could not be used, and what to do about its like."""
        last = self.report.last
        hint = None if last is None else "\n".join(filter(None, [f"the last one: {last}", last.hint]))
        return DataError(f"{sentence}: {self.report.summary()}", hint=hint)


def _no_length(record: Record) -> int:
    raise ValueError("records cannot be grouped by length without a way to measure them")
