"""The data that `vlsi data answer` reads, more than once and each time alike, and what is in them."""

from __future__ import annotations

import hashlib
import json
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from vlsi_cli.config.data import HubSource, ImagesSource, LlavaSource, MessagesSource
from vlsi_cli.config.run import DataConfig, Source
from vlsi_cli.engine.data.images import is_address, locate
from vlsi_cli.engine.data.pictures import PicturesSource
from vlsi_cli.engine.data.records import BadRecord, Record
from vlsi_cli.engine.data.schedule import EndOfSource
from vlsi_cli.engine.evaluation.labels import Place, open_turns
from vlsi_cli.engine.runs.agreement import Held
from vlsi_cli.engine.runs.answer_output import own_paths
from vlsi_cli.engine.runs.data import open_source
from vlsi_cli.errors import DataError

#: Records named for each reason.
EXAMPLES = 5

Skip = Callable[[Place, BadRecord], None]


class Reading:
    """Sources in their order, each record once; a last message may be the user's.

    Args:
        config: the data; weights and shuffling are nothing here.
        limit: records of each source, from the first.
        output: the file that will be written; it and what lies beside it are no part of a folder of pictures.

    Raises:
        DataError: a source that is not there or cannot be read.
    """

    def __init__(self, config: DataConfig, limit: int | None, output: Path) -> None:
        located, own = config.located_sources(), own_paths(output)
        self._sources = [
            open_source(source, shuffle_seed=None, unanswered=True, without=own) for source in located
        ]
        self._limit, self._fetches = limit, config.image_urls.fetch
        #: Folders of pictures of those sources that have them in files.
        self.roots = [root for root in map(_root, located) if root is not None]
        #: Whether there are other sources.
        self.others = len(self.roots) < len(located)

    @property
    def names(self) -> list[str]:
        """What messages call the sources."""
        return [source.name for source in self._sources]

    @property
    def listings(self) -> Held:
        """What tells the pictures of folders from those that another process finds there, by their names."""
        found: Held = {}
        for source in self._sources:
            if isinstance(source, PicturesSource):
                names = json.dumps(source.paths).encode()
                found[source.name] = {Path(source.name).name: hashlib.sha256(names).hexdigest()}
        return found

    @property
    def passed_over(self) -> dict[str, int]:
        """What lies in folders of pictures and is none, by its ending, most frequent first."""
        found: Counter[str] = Counter()
        for source in self._sources:
            if isinstance(source, PicturesSource):
                found.update(source.others)
        return dict(found.most_common())

    @property
    def total(self) -> int | None:
        """Records of all sources; None where that is only known at the end."""
        sizes = [self._bounded(source.size) for source in self._sources]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def records(self, skip: Skip, *, rank: int = 0, size: int = 1) -> Iterator[tuple[Place, Record]]:
        """The records that can be read, with their places; of several processes, this one's share."""
        for number, source in enumerate(self._sources):
            bound = self._bounded(source.size)
            indices = count(rank, size) if bound is None else range(rank, bound, size)
            for index in indices:
                try:
                    record = source.read(index)
                except EndOfSource:
                    break
                except BadRecord as bad:
                    skip((number, index), bad)
                    continue
                yield (number, index), record

    def _bounded(self, size: int | None) -> int | None:
        return self._limit if size is None else min(size, self._limit or size)

    def survey(self, *, anew: bool, whole: bool) -> Survey:
        """What there is to do, without opening a picture.

        Args:
            anew: whether given answers are replaced.
            whole: read to the end, and not just to the first record that can be answered.
        """
        found = Survey()
        for place, record in self.records(found.skip):
            if not open_turns(record, anew=anew):
                found.kept += 1
                continue
            try:
                for ref in record.images:
                    if ref.path is not None and not (self._fetches and is_address(ref)):
                        locate(ref)
            except BadRecord as bad:
                found.skip(place, bad.at(record=record.id, where=record.where))
                continue
            found.answerable += 1
            if not whole:
                break
        return found


def _root(source: Source) -> Path | None:
    """The folder from which a source names pictures."""
    if isinstance(source, ImagesSource):
        return source.path
    if isinstance(source, LlavaSource | MessagesSource):
        return source.image_root or source.path.parent
    return source.image_root if isinstance(source, HubSource) else None


@dataclass
class Survey:
    """What is in the data.

    Attributes:
        answerable: records that want an answer and whose pictures are there.
        kept: records that have their answers.
        unusable: the others, by reason.
        shown: the first of those of each reason, and of others that are to be named: where they are, and in words.
        first: the first that cannot be used.
    """

    answerable: int = 0
    kept: int = 0
    unusable: dict[str, int] = field(default_factory=dict)
    shown: dict[str, list[tuple[Place, str]]] = field(default_factory=dict)
    first: tuple[Place, BadRecord] | None = None

    @property
    def examples(self) -> dict[str, list[str]]:
        """The words alone."""
        return {reason: [text for _, text in some] for reason, some in self.shown.items()}

    def skip(self, place: Place, bad: BadRecord) -> None:
        """Count a record that cannot be used."""
        self._stand_first((place, bad))
        self.unusable[bad.reason] = self.unusable.get(bad.reason, 0) + 1
        name = bad.where or bad.record
        self.show(bad.reason, place, f"{name}: {bad.detail}" if bad.detail else name)

    def show(self, reason: str, place: Place, example: str) -> None:
        """Name a record as one of those to which something happened, if not enough before it are named."""
        some = self.shown.setdefault(reason, [])
        insort(some, (place, example))
        del some[EXAMPLES:]

    def add(self, other: Survey) -> None:
        """Take over what another process could not use."""
        if other.first is not None:
            self._stand_first(other.first)
        for reason, number in other.unusable.items():
            self.unusable[reason] = self.unusable.get(reason, 0) + number
        for reason, some in other.shown.items():
            for place, example in some:
                self.show(reason, place, example)

    def _stand_first(self, found: tuple[Place, BadRecord]) -> None:
        if self.first is None or found[0] < self.first[0]:
            self.first = found

    def require_work(self, names: list[str]) -> None:
        """Refuse data in which there is nothing to answer.

        Raises:
            DataError: there is not; says why.
        """
        if self.answerable:
            return
        where, bad = ", ".join(names), sum(self.unusable.values())
        if self.first is None:
            if not self.kept:
                raise DataError(f"{where}: there are no records")
            raise DataError(
                f"{where}: nothing is to be answered, all {self.kept:,} records have answers",
                hint="--replace has them answered anew",
            )
        have = f", and the other {self.kept:,} have answers" if self.kept else ""
        raise DataError(
            f"{where}: nothing can be answered, {bad:,} records cannot be used ({reasons(self.unusable)}){have}; "
            f"the first: {self.first[1]}",
            hint=self.first[1].hint,
        )


def reasons(found: dict[str, int]) -> str:
    """Reasons with their numbers, most frequent first."""
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return ", ".join(f"{reason} {number:,}" for reason, number in ordered)
