"""Records in a reproducible order, mixed from weighted sources, resumable to the record.

Two ways of mixing:

- Every source has a length: an epoch holds ``round(weight * length)`` draws of each source, in one order made
from
  (seed, epoch). With weight 1 that is every record once; the fraction of a fractional weight is another
  random part of the source in each epoch. The order is a pure function of the cursor.
- A source is endless or of unknown length (built-in puzzles drawn fresh, a streamed data set): there are no
epochs of
  the mix. Every draw goes to the source that is furthest behind its share of the weights, and each source
  runs through its own epochs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch

from vlsi_cli.engine.data.records import BadRecord, Record
from vlsi_cli.engine.data.report import DataReport
from vlsi_cli.errors import DataError

Item = TypeVar("Item")
Collated = TypeVar("Collated")

#: Records in a row that may be unusable in a mix without epochs before the data are called empty.
MAX_SKIPS_IN_A_ROW = 10_000


class EndOfSource(Exception):
    """A source of unknown length has no record at this index."""


class RecordSource(Protocol):
    """Anything that records can be read from by index."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def size(self) -> int | None:
        """Number of records; None when endless, or unknown until read to its end."""

    @property
    def shuffles_itself(self) -> bool:
        """Whether the source has its own order (fresh draws, streams); its indices are then asked for in order."""

    def read(self, index: int, epoch: int = 0) -> Record:
        """The record at an index.

        Raises:
            BadRecord: this record cannot be used.
            EndOfSource: a source of unknown length has ended before the index.
        """


class RecordStream(Generic[Item, Collated]):
    """Endless supply of encoded records and batches.

    Args:
        sources: pairs of a source and its weight.
        encode: what is made of each record; raises BadRecord for one that cannot be used.
        collate: what is made of a list of items.
        seed: decides the order together with the epoch.
        shuffle: False keeps the order of the sources.
        policy: ``skip`` counts unusable records, ``refuse`` raises the first.
        report: where records are counted.
        rank, world_size: this process takes every ``world_size``-th draw, so ranks never share one.

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
    ) -> None:
        if not sources:
            raise DataError("no data source is given")
        for source, _ in sources:
            if source.size == 0:
                raise DataError(f"{source.name} holds no record")
        self._sources = [source for source, _ in sources]
        self._weights = [weight for _, weight in sources]
        self._encode, self._collate = encode, collate
        self._seed, self._shuffle, self._policy = seed, shuffle, policy
        self._rank, self._world = rank, world_size
        self.report = report or DataReport()
        sizes = [source.size for source in self._sources]
        known = [size for size in sizes if size is not None]
        #: Draws of each source in one epoch, when there are epochs of the mix.
        self._shares = [max(1, round(w * n)) for w, n in zip(self._weights, known, strict=False)]
        self._finite = len(known) == len(sizes)
        self.cursor = 0
        self._places = [[0, 0] for _ in sources]  # epoch and offset of each source, for a mix without epochs
        self._drawn = [0] * len(sources)
        self._orders: dict[str, tuple[int, list[int]]] = {}

    @property
    def records_per_epoch(self) -> int | None:
        """Draws in one pass over all sources; None when there is no such thing."""
        return sum(self._shares) if self._finite else None

    @property
    def epoch(self) -> int:
        """Passes completed (0 for a mix without epochs)."""
        return self.cursor // sum(self._shares) if self._finite else 0

    def next(self) -> Item:
        """The next usable record, encoded.

        Raises:
            DataError: nothing usable in two whole passes (or in 10,000 draws of a mix without epochs); or, with
            the policy
                ``refuse``, the first record that cannot be used.
        """
        # One good record a pass can stand first in one epoch and last in the next: two passes less two between.
        limit = 2 * self.records_per_epoch if self.records_per_epoch else MAX_SKIPS_IN_A_ROW
        last: BadRecord | None = None
        for _ in range(limit):
            item = self._draw()
            while item is None:  # a draw of another rank
                item = self._draw()
            if not isinstance(item, BadRecord):
                return item[0]
            last = item
        raise DataError(
            f"not one of {limit} records in a row could be used: {self.report.summary()}",
            hint=f"the last one: {last}",
        )

    def next_batch(self, size: int) -> Collated:
        """The next ``size`` usable records, collated."""
        return self._collate([self.next() for _ in range(size)])

    def one_pass(self, limit: int | None = None) -> Iterator[Item]:
        """Every usable record of the first epoch, once, or the first ``limit`` of them; leaves the cursor
        alone.

        Raises:
            DataError: no usable record, or an endless source without a limit.
        """
        if not self._finite and limit is None:
            raise DataError("a pass over endless data needs a number of records")
        fresh = self._afresh()
        found = 0
        total = fresh.records_per_epoch
        while (limit is None or found < limit) and (total is None or fresh.cursor < total):
            if total is None:
                found += 1
                yield fresh.next()
                continue
            item = fresh._draw()
            if item is not None and not isinstance(item, BadRecord):
                found += 1
                yield item[0]
        if not found:
            raise DataError(f"no record could be used: {self.report.summary()}")

    def numbered_pass(self, first: int = 0) -> Iterator[tuple[int, Item | BadRecord]]:
        """Every draw of the first epoch from number ``first`` on: its number, and the item or why there is none.

        It leaves the cursor alone. One process only: draws of other ranks are left out.

        Raises:
            DataError: the data have no end, or (with the policy ``refuse``) a record cannot be used.
        """
        if not self._finite:
            raise DataError("a pass over endless data needs a number of records")
        fresh = self._afresh()
        fresh.cursor = first
        while fresh.cursor < sum(fresh._shares):
            number, item = fresh.cursor, fresh._draw()
            if item is not None:
                yield number, item if isinstance(item, BadRecord) else item[0]

    def _afresh(self) -> RecordStream[Item, Collated]:
        """The same stream at its beginning, counting into the same report."""
        return RecordStream(
            list(zip(self._sources, self._weights, strict=True)),
            self._encode,
            self._collate,
            seed=self._seed,
            shuffle=self._shuffle,
            policy=self._policy,
            report=self.report,
            rank=self._rank,
            world_size=self._world,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as plain JSON values."""
        return {
            "cursor": self.cursor,
            "places": [list(place) for place in self._places],
            "drawn": list(self._drawn),
            "made_of": self._made_of(),
            "report": self.report.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, with the same records in the same order.

        Raises:
            DataError: the sources, their sizes, weights, the seed or the number of processes are not the
            same.
        """
        if state["made_of"] != self._made_of():
            raise DataError(
                "the data are not those that the run was started with: "
                f"{state['made_of']} then, {self._made_of()} now"
            )
        self.cursor = int(state["cursor"])
        self._places = [list(place) for place in state["places"]]
        self._drawn = list(state["drawn"])
        self.report.load_state_dict(state["report"])

    def _made_of(self) -> dict[str, Any]:
        return {
            "sources": [[s.name, s.size, w] for s, w in zip(self._sources, self._weights, strict=True)],
            "seed": self._seed,
            "shuffle": self._shuffle,
            "world_size": self._world,
        }

    def _draw(self) -> tuple[Item] | BadRecord | None:
        """One draw: an item, a record counted and skipped, or None when it belongs to another rank."""
        position, self.cursor = self.cursor, self.cursor + 1
        number, epoch, index = self._pick_finite(position) if self._finite else self._pick_endless(position)
        if position % self._world != self._rank:
            return None
        while True:
            try:
                item = self._encode(self._sources[number].read(index, epoch))
            except EndOfSource:
                if index == 0:
                    raise DataError(f"{self._sources[number].name} holds no record") from None
                epoch, index = epoch + 1, 0
                self._places[number] = [epoch, 1]
                continue
            except BadRecord as bad:
                if self._policy == "refuse":
                    raise
                # A fresh draw has no second epoch; elsewhere source and index name the record.
                self.report.skip(f"{number}:{index}", bad)
                return bad
            self.report.use()
            return (item,)

    def _pick_finite(self, position: int) -> tuple[int, int, int]:
        epoch, offset = divmod(position, sum(self._shares))
        if self._shuffle:
            offset = self._order("mix", epoch, sum(self._shares))[offset]
        number = 0
        while offset >= self._shares[number]:
            offset -= self._shares[number]
            number += 1
        size = self._sources[number].size or 1
        copies = self._shares[number] // size
        if self._shuffle and offset >= copies * size:  # the fraction of a weight: another part in each epoch
            return number, epoch, self._order(f"part {number}", epoch, size)[offset - copies * size]
        return number, epoch, offset % size

    def _pick_endless(self, position: int) -> tuple[int, int, int]:
        total = sum(self._weights)
        behind = [w / total * (position + 1) - n for w, n in zip(self._weights, self._drawn, strict=True)]
        number = behind.index(max(behind))
        self._drawn[number] += 1
        source = self._sources[number]
        epoch, offset = self._places[number]
        if source.size is not None and offset >= source.size:
            epoch, offset = epoch + 1, 0
        self._places[number] = [epoch, offset + 1]
        if source.size is not None and self._shuffle and not source.shuffles_itself:
            return number, epoch, self._order(f"source {number}", epoch, source.size)[offset]
        return number, epoch, offset

    def _order(self, what: str, epoch: int, size: int) -> list[int]:
        """A permutation of 0 .. size - 1 made from seed, epoch and a name; the last one of each is kept."""
        kept = self._orders.get(what)
        if kept is None or kept[0] != epoch:
            digest = hashlib.blake2b(f"{self._seed}/{what}/{epoch}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
            kept = (epoch, torch.randperm(size, generator=generator).tolist())
            self._orders[what] = kept
        return kept[1]
