"""Records in a reproducible order, as the micro-batches of optimizer steps, resumable to the record.

The order is the schedule's (see ``schedule``) and that of one process, however many there are: processes agree on
which draws could not be used, and then each takes its part of every micro-batch. So two processes with batches of
two feed exactly the records of one process with batches of four, and where the stream stands is the same on all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, Generic, Literal, TypeVar

from vlsi_cli.engine.data.records import BadRecord, Record
from vlsi_cli.engine.data.report import DataReport
from vlsi_cli.engine.data.schedule import Draw, RecordSource, Schedule
from vlsi_cli.errors import DataError

Item = TypeVar("Item")
Collated = TypeVar("Collated")

#: Numbers of this process -> the numbers of every process, in the order of ranks; all processes call it together.
Exchange = Callable[[list[int]], list[list[int]]]

#: Records in a row that may be unusable in a mix without epochs before the data are called empty.
MAX_SKIPS_IN_A_ROW = 10_000


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
    ) -> None:
        self._make_schedule = lambda: Schedule(sources, seed, shuffle)
        self._schedule = self._make_schedule()
        self._encode, self._collate, self._policy = encode, collate, policy
        self._rank, self._world, self._exchange = rank, world_size, exchange
        self.report = report or DataReport()

    @property
    def cursor(self) -> int:
        """Draws made so far, those that could not be used among them."""
        return self._schedule.cursor

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
        batch_size of them in the order of the draws; rank r takes every W-th, from the r-th on. The stream ends up
        behind the last of them, at the same place on every process.

        Args:
            batch_size: records of this process in a micro-batch.
            accumulation: micro-batches.

        Raises:
            DataError: nothing usable in two whole passes (or in 10,000 draws of a mix without epochs); or, with the
                policy ``refuse``, the first record that cannot be used. On every process alike.
        """
        wanted, start = batch_size * accumulation * self._world, self.cursor
        drawn: dict[int, Draw] = {}
        items: dict[int, Item] = {}
        usable: list[int] = []
        while True:
            while len(usable) < wanted:
                place = self.cursor
                drawn[place] = self._schedule.next()
                usable.append(place)
            mine = usable[self._rank :: self._world]
            bad: dict[int, BadRecord] = {}
            # A record that was taken for another's, until one before it turned out bad, is read by both: bad ones are
            # rare, and a record would have to travel otherwise.
            for place in mine:
                if place not in items:
                    item = self._read(drawn[place])
                    if isinstance(item, BadRecord):
                        bad[place] = item
                    else:
                        items[place] = item
            told = sorted(set(chain.from_iterable(self._exchange(sorted(bad)))))
            if not told:
                break
            for place in told:
                self._skip(drawn[place], bad.get(place))
            usable = [place for place in usable if place not in set(told)]
            self._require_some(start, usable)
        self.report.use(wanted)
        return [
            self._collate([items[place] for place in mine[first : first + batch_size]])
            for first in range(0, len(mine), batch_size)
        ]

    def next_batch(self, size: int) -> Collated:
        """The next ``size`` usable records of this process, collated."""
        return self.next_step(size)[0]

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
        for number, draw in enumerate(self._draws(total)):
            if found == limit:
                break
            if number % self._world != self._rank:
                continue
            item = self._read(draw)
            if isinstance(item, BadRecord):
                self._skip(draw, item)
                in_a_row += 1
                if total is None and in_a_row == MAX_SKIPS_IN_A_ROW:
                    raise self._none_of(in_a_row)
                continue
            found, in_a_row = found + 1, 0
            self.report.use()
            yield item
        if not found:
            raise DataError(f"no record could be used: {self.report.summary()}")

    def numbered_pass(self, first: int = 0) -> Iterator[tuple[int, Item | BadRecord]]:
        """Every draw of the first epoch from number ``first`` on: its number, and the item or why there is none.

        It leaves the cursor alone. Draws of other processes are left out.

        Raises:
            DataError: the data have no end, or (with the policy ``refuse``) a record cannot be used.
        """
        total = self.records_per_epoch
        if total is None:
            raise DataError("a pass over endless data needs a number of records")
        for number, draw in enumerate(self._draws(total, first), start=first):
            if number % self._world != self._rank:
                continue
            item = self._read(draw)
            if isinstance(item, BadRecord):
                self._skip(draw, item)
            else:
                self.report.use()
            yield number, item

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as plain JSON values: the same on every process, and for any number of them."""
        return {
            **self._schedule.state_dict(),
            "made_of": self._schedule.made_of(),
            "report": self.report.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, with the same records in the same order.

        Raises:
            DataError: the sources, their sizes, weights or the seed are not the same.
        """
        made_of = self._schedule.made_of()
        if state["made_of"] != made_of:
            raise DataError(
                "the data are not those that the run was started with: "
                f"{state['made_of']} then, {made_of} now"
            )
        self._schedule.load_state_dict(state)
        self.report.load_state_dict(state["report"])

    def _draws(self, total: int | None, first: int = 0) -> Iterator[Draw]:
        """The draws of the first epoch (without a total: without end) from number ``first`` on."""
        schedule = self._make_schedule()
        schedule.cursor = first  # read on from there: only a mix with epochs is entered in the middle
        while total is None or schedule.cursor < total:
            yield schedule.next()

    def _read(self, draw: Draw) -> Item | BadRecord:
        try:
            record = draw.record or self._schedule.sources[draw.source].read(draw.index, draw.epoch)
            return record if isinstance(record, BadRecord) else self._encode(record)
        except BadRecord as bad:
            return bad

    def _skip(self, draw: Draw, bad: BadRecord | None) -> None:
        """Count a record that cannot be used, or raise it; None when only another process knows why."""
        if bad is None:
            item = self._read(draw)
            bad = item if isinstance(item, BadRecord) else BadRecord("not-everywhere", where=draw.key)
        if self._policy == "refuse":
            raise bad
        self.report.skip(draw.key, bad)

    def _require_some(self, start: int, usable: list[int]) -> None:
        """Records may be bad, but not all of them.

        One good record a pass can stand first in one epoch and last in the next: two passes less two between.
        """
        limit = 2 * self.records_per_epoch if self.records_per_epoch else MAX_SKIPS_IN_A_ROW
        ends = [start - 1, *usable, self.cursor]
        if max(after - before - 1 for before, after in pairwise(ends)) >= limit:
            raise self._none_of(limit)

    def _none_of(self, number: int) -> DataError:
        return DataError(
            f"not one of {number} records in a row could be used: {self.report.summary()}",
            hint=f"the last one: {self.report.last}",
        )
