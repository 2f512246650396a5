"""Which record is drawn when: a reproducible order over weighted sources, without a look at what is in a record.

Two ways of mixing:

- Every source has a length: an epoch holds ``round(weight * length)`` draws of each source, in one order made from
  (seed, epoch). With weight 1 that is every record once; the fraction of a fractional weight is another
  random part of the source in each epoch. The order is a pure function of the cursor.
- A source is endless or of unknown length (built-in puzzles drawn fresh, a streamed data set): there are no epochs of
  the mix. Every draw goes to the source that is furthest behind its share of the weights, and each source
  runs through its own epochs.

The order depends on nothing but the sources, their weights and the seed: every process of a run makes the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch

from vlsi_cli.engine.data.records import BadRecord, Record
from vlsi_cli.errors import DataError


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

    @property
    def streamed(self) -> bool:
        """Whether records can only be read one after another; every process of a run then reads all of them."""

    def read(self, index: int, epoch: int = 0) -> Record:
        """The record at an index.

        Raises:
            BadRecord: this record cannot be used.
            EndOfSource: a source of unknown length has ended before the index.
        """


class StreamedSource(RecordSource, Protocol):
    """A source that can go on where it was stopped, without reading everything before again."""

    def state_dict(self) -> dict[str, Any]:
        """From where it has to be read to read on, as plain JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read on from there."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One record to be used: where it is.

    Attributes:
        source: number of the source.
        index, epoch: what the source is asked for.
        record: what was read there, where that is already done: streamed sources.
    """

    source: int
    index: int
    epoch: int
    record: Record | BadRecord | None = None

    @property
    def key(self) -> str:
        """Tells records apart. A fresh draw has no second epoch; elsewhere source and index name the record."""
        return f"{self.source}:{self.index}"


class Schedule:
    """Endless supply of draws.

    Args:
        sources: pairs of a source and its weight.
        seed: decides the order together with the epoch.
        shuffle: False keeps the order of the sources.

    Raises:
        DataError: no source, or an empty one.
    """

    def __init__(
        self, sources: Sequence[tuple[RecordSource, float]], seed: int, shuffle: bool = True
    ) -> None:
        if not sources:
            raise DataError("no data source is given")
        for source, _ in sources:
            if source.size == 0:
                raise DataError(f"{source.name} holds no records")
        self.sources = [source for source, _ in sources]
        self.weights = [weight for _, weight in sources]
        self._seed, self._shuffle = seed, shuffle
        sizes = [source.size for source in self.sources]
        known = [size for size in sizes if size is not None]
        #: Draws of each source in one epoch, when there are epochs of the mix.
        self._shares = [max(1, round(w * n)) for w, n in zip(self.weights, known, strict=False)]
        self._finite = len(known) == len(sizes)
        #: Draws made so far.
        self.cursor = 0
        self._places = [[0, 0] for _ in sources]  # epoch and offset of each source, for a mix without epochs
        self._drawn = [0] * len(sources)
        self._orders: dict[str, tuple[int, list[int]]] = {}

    @property
    def draws_per_epoch(self) -> int | None:
        """Draws in one pass over all sources; None when there is no such thing."""
        return sum(self._shares) if self._finite else None

    def next(self) -> Draw:
        """The next draw.

        Raises:
            DataError: a streamed source without a record.
        """
        position, self.cursor = self.cursor, self.cursor + 1
        return self._finite_draw(position) if self._finite else self._endless_draw(position)

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, as plain JSON values."""
        return {
            "cursor": self.cursor,
            "places": [list(place) for place in self._places],
            "drawn": list(self._drawn),
            "streams": [source.state_dict() for source in self._streamed],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.cursor = int(state["cursor"])
        self._places = [list(place) for place in state["places"]]
        self._drawn = list(state["drawn"])
        for source, place in zip(self._streamed, state["streams"], strict=True):
            source.load_state_dict(place)

    @property
    def _streamed(self) -> list[StreamedSource]:
        return [cast("StreamedSource", source) for source in self.sources if source.streamed]

    def made_of(self) -> dict[str, Any]:
        """What decides the order, as plain JSON values."""
        return {
            "sources": [[s.name, s.size, w] for s, w in zip(self.sources, self.weights, strict=True)],
            "seed": self._seed,
            "shuffle": self._shuffle,
        }

    def _finite_draw(self, position: int) -> Draw:
        epoch, offset = divmod(position, sum(self._shares))
        if self._shuffle:
            offset = self._order("mix", epoch, sum(self._shares))[offset]
        number = 0
        while offset >= self._shares[number]:
            offset -= self._shares[number]
            number += 1
        size = self.sources[number].size or 1
        copies = self._shares[number] // size
        if self._shuffle and offset >= copies * size:  # the fraction of a weight: another part in each epoch
            offset = self._order(f"part {number}", epoch, size)[offset - copies * size]
        return Draw(number, offset % size, epoch)

    def _endless_draw(self, position: int) -> Draw:
        total = sum(self.weights)
        behind = [w / total * (position + 1) - n for w, n in zip(self.weights, self._drawn, strict=True)]
        number = behind.index(max(behind))
        self._drawn[number] += 1
        source = self.sources[number]
        epoch, offset = self._places[number]
        if source.size is not None and offset >= source.size:
            epoch, offset = epoch + 1, 0
        self._places[number] = [epoch, offset + 1]
        if source.streamed:
            return self._streamed_draw(number, epoch, offset)
        if source.size is not None and self._shuffle and not source.shuffles_itself:
            offset = self._order(f"source {number}", epoch, source.size)[offset]
        return Draw(number, offset, epoch)

    def _streamed_draw(self, number: int, epoch: int, index: int) -> Draw:
        """Where a stream ends is only known by reading it, so it is read here, once."""
        source = self.sources[number]
        try:
            return Draw(number, index, epoch, source.read(index, epoch))
        except BadRecord as bad:
            return Draw(number, index, epoch, bad)
        except EndOfSource:
            if index == 0:
                raise DataError(f"{source.name} holds no records") from None
        self._places[number] = [epoch + 1, 1]
        return self._streamed_draw(number, epoch + 1, 0)

    def _order(self, what: str, epoch: int, size: int) -> list[int]:
        """A permutation of 0 .. size - 1 made from seed, epoch and a name; the last one of each is kept."""
        kept = self._orders.get(what)
        if kept is None or kept[0] != epoch:
            digest = hashlib.blake2b(f"{self._seed}/{what}/{epoch}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
            kept = (epoch, torch.randperm(size, generator=generator).tolist())
            self._orders[what] = kept
        return kept[1]
