"""Rows of a streamed data set in a reproducible order, gone on with where a run was stopped.

The library can shuffle in a buffer, but forgets the buffer when it is resumed. Here whole blocks of rows are shuffled
instead, so that the place of every row follows from the place at which its block began.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from vlsi_cli.engine.data.schedule import EndOfSource
from vlsi_cli.errors import DataError

#: Rows that are shuffled together, and that are read again when a run is resumed.
BLOCK = 1000


@dataclass(frozen=True)
class _Block:
    """Rows in their order, and from where to read them again.

    Attributes:
        epoch, start: of the first row, counted over the epoch.
        place: the library's own state before it; None at the start of an epoch.
        rows: the rows.
    """

    epoch: int
    start: int
    place: Any
    rows: list[Any]


class RowStream:
    """Rows of a streamed data set by number.

    Args:
        data: a ``datasets.IterableDataset``.
        name: what messages call it.
        seed: of the order; None keeps the data set's own. Files are shuffled by the library, rows in blocks.
        block: rows that are shuffled together.
    """

    def __init__(self, data: Any, name: str, seed: int | None, block: int = BLOCK) -> None:
        # A buffer of one row: the order of the files is shuffled, that of the rows is not.
        self._data = data if seed is None else data.shuffle(seed=seed, buffer_size=1)
        self._name, self._seed, self._size = name, seed, block
        self._reading: Any = None
        self._left: Iterator[Any] = iter(())
        self._block: _Block | None = None
        #: The row of an epoch from which on it was last begun to read.
        self.first_read = 0
        self._resumed: dict[str, Any] | None = None

    def row(self, index: int, epoch: int) -> Any:
        """A row, as an arrow table of one. Going back, or to another epoch, begins to read anew.

        Raises:
            EndOfSource: the epoch has fewer rows.
            DataError: the data cannot be read on.
        """
        block = self._block
        if block is None or block.epoch != epoch or index < block.start:
            block = self._begin(epoch, index)
        while index >= block.start + len(block.rows):
            if len(block.rows) < self._size:
                raise EndOfSource(self._name)
            block = self._read(epoch, block.start + len(block.rows), self._reading.state_dict())
        return block.rows[index - block.start]

    def state_dict(self) -> dict[str, Any]:
        """From where to read on, as plain JSON values."""
        if self._block is None:
            return self._resumed or {"epoch": 0, "start": 0, "place": None}
        return {"epoch": self._block.epoch, "start": self._block.start, "place": self._block.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read on from :meth:`state_dict` when the next row is asked for."""
        self._resumed, self._block = state, None

    def _begin(self, epoch: int, index: int) -> _Block:
        """Read from the start of an epoch, or from where a run was stopped if that is on the way."""
        start, place = 0, None
        if self._resumed and self._resumed["epoch"] == epoch and self._resumed["start"] <= index:
            start, place = int(self._resumed["start"]), self._resumed["place"]
        self.first_read = start
        with _told(self._name, start):
            self._reading = self._data.with_format("arrow")
            if self._seed is not None:
                self._reading.set_epoch(epoch)
            if place is not None:
                self._reading.load_state_dict(place)
            self._left = iter(self._reading)
        return self._read(epoch, start, place)

    def _read(self, epoch: int, start: int, place: Any) -> _Block:
        with _told(self._name, start), _silent(resumed=place is not None):
            rows = list(islice(self._left, self._size))
        if self._seed is not None:
            name = f"{self._seed}/{epoch}/{start}".encode()
            seed = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
            rows = [rows[number] for number in order.tolist()]
        self._block = _Block(epoch, start, place, rows)
        return self._block


@contextmanager
def _told(name: str, row: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise DataError(f"data set {name} cannot be read on from row {row}: {error}") from error


@contextmanager
def _silent(resumed: bool) -> Iterator[None]:
    """Without the library's warning that a shuffle buffer is lost: ours holds one row, which has been given out."""
    import datasets

    level = datasets.logging.get_verbosity()
    if resumed:
        datasets.logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
