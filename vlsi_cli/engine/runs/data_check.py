"""``vlsi data check``: every record read and encoded once as training would, and counted by what came of it."""

from __future__ import annotations

import json
import signal
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TextIO

from vlsi_cli import interrupts
from vlsi_cli.config.run import DataConfig
from vlsi_cli.engine.backbones.folders import resolve_folder
from vlsi_cli.engine.backbones.processors import load_processor
from vlsi_cli.engine.backbones.quiet import quiet_transformers
from vlsi_cli.engine.data.records import BadRecord, Record
from vlsi_cli.engine.data.report import DataReport
from vlsi_cli.engine.data.schedule import Draw, EndOfSource, RecordSource
from vlsi_cli.engine.data.stream import read_in_order
from vlsi_cli.engine.data.template import ChatEncoder
from vlsi_cli.engine.data.workers import Pool, Reader
from vlsi_cli.engine.files import new_file
from vlsi_cli.engine.outlets import is_outlet
from vlsi_cli.engine.places import require_writable
from vlsi_cli.engine.runs.data import cores, encoder_for, open_source
from vlsi_cli.engine.runs.data_check_reports import BadExample, BadReason, CheckReport, Lengths, SourceCheck
from vlsi_cli.errors import ConfigError, DataError, OutputError
from vlsi_cli.events import Advanced, Events, ignore

#: Records for each worker, below which reading them takes no longer than starting it.
_A_WORKER = 64
#: What cannot be encoded, half of a surrogate pair, as JSON writes it.
_AS_JSON = "backslashreplace"


def run(
    data: DataConfig,
    *,
    model: str,
    revision: str | None = None,
    held_out: DataConfig | None = None,
    limit: int | None = None,
    workers: int | None = None,
    bad: Path | None = None,
    overwrite: bool = False,
    events: Events = ignore,
) -> CheckReport:
    """Read and encode every record of every source once, in order, for a model's processor; no weights are needed.

    What training would make of a record does not depend on weights, shuffling or the policy, which are nothing here.
    Ctrl-C, SIGTERM and SIGHUP end the reading: the report is of what was read so far.

    Args:
        held_out: other data, read behind the first with the same budget of pixels.
        limit: records of each source, from the first.
        workers: processes that read; None: what the configuration says, else as many as there are cores, or fewer for
            few records. They change no result.
        bad: a JSON Lines file to write, an object for each unusable record.
        overwrite: replace that file.
        events: told of progress.

    Raises:
        ConfigError: a source without an end, or of unknown length, and no limit.
        DataError: a source that cannot be read or is empty, or a worker that was killed.
        ModelError: the model's processor cannot be found or loaded.
        OutputError: the file exists or cannot be written.
    """
    started = time.perf_counter()
    wholes = [data] if held_out is None else [data, held_out]
    if bad is not None:
        _require_place(bad, wholes, overwrite=overwrite)
    mixes = [_Mix.of(whole, limit, workers, held_out=whole is held_out) for whole in wholes]
    folder = resolve_folder(model, revision, weights=False)
    processor = load_processor(folder, min_pixels=data.min_pixels, max_pixels=data.max_pixels, shown=model)
    progress = _Progress(events, sum(sum(mix.wanted) for mix in mixes))
    stopped: str | None = None
    with ExitStack() as stack:
        stack.enter_context(interrupts.heeded())
        stack.enter_context(quiet_transformers())  # it warns of long records, which are counted
        told: TextIO | None = None
        if bad is not None:
            part = stack.enter_context(new_file(bad, flush=False))
            told = stack.enter_context(part.open("w", encoding="utf-8", errors=_AS_JSON))
        try:
            for mix in mixes:
                mix.read(processor, told, progress)
        except KeyboardInterrupt as error:
            stopped = signal.Signals(interrupts.number_of(error)).name
    parts = tuple(part for mix in mixes for part in mix.reports())
    return CheckReport(
        model=model,
        max_length=data.max_length,
        sources=parts,
        records=sum(part.records for part in parts),
        usable=sum(part.usable for part in parts),
        unusable=sum(part.unusable for part in parts),
        complete=stopped is None,
        stopped_by=stopped,
        bad=bad,
        workers=max(mix.workers for mix in mixes),
        seconds=time.perf_counter() - started,
    )


@dataclass
class _Mix:
    """Data that are read alike: their sources, how many records of each, by how many workers, and what was found."""

    data: DataConfig
    held_out: bool
    sources: list[RecordSource]
    wanted: list[int]
    workers: int
    found: list[_Found]

    @classmethod
    def of(cls, data: DataConfig, limit: int | None, workers: int | None, *, held_out: bool) -> Self:
        """The opened data.

        Raises:
            ConfigError, DataError: as :func:`run`.
        """
        sources = [open_source(source, shuffle_seed=None) for source in data.located_sources()]
        wanted = [_records_of(source, limit) for source in sources]
        if workers is None:
            workers = data.workers
        if workers is None:
            workers = _worth_while(sum(wanted))
        return cls(data, held_out, sources, wanted, workers, [_Found() for _ in sources])

    def read(self, processor: Any, told: TextIO | None, progress: Callable[[], None]) -> None:
        """Read and count the records, and write down those that cannot be used."""
        encode = partial(_measured, encoder_for(processor, self.data))
        pool = Pool(Reader(self.sources, encode, _no_length), self.workers)
        try:
            for _, draw, item in read_in_order(pool, enumerate(_draws(self.sources, self.wanted))):
                self.found[draw.source].add(draw, item)
                if told is not None and isinstance(item, BadRecord):
                    told.write(_line(self.sources[draw.source], draw, item))
                progress()
        finally:
            pool.close()

    def reports(self) -> Iterator[SourceCheck]:
        """What was found in each source."""
        for found, source in zip(self.found, self.sources, strict=True):
            yield found.report(source, self.data.max_length, held_out=self.held_out)


def _worth_while(records: int) -> int:
    """Workers for so many records: this process does next to nothing beside them, so they may have every core."""
    count = min(cores(), records // _A_WORKER)
    return count if count > 1 else 0


class _Measured(NamedTuple):
    """What is kept of an encoded record: workers send nothing else back."""

    tokens: int
    image_tokens: int
    trained_tokens: int
    images: bool
    written_image: bool


def _measured(encoder: ChatEncoder, record: Record) -> _Measured:
    encoded = encoder.encode(record)
    ids = encoded.input_ids
    return _Measured(
        tokens=len(ids),
        image_tokens=sum(int((ids == token).sum()) for token in encoder.image_token_ids),
        trained_tokens=int(encoded.trained.sum()),
        images=bool(record.images),
        written_image=encoded.written_image,
    )


def _no_length(record: Record) -> int:
    raise NotImplementedError("records are encoded here, not measured")


def _records_of(source: RecordSource, limit: int | None) -> int:
    """How many records of a source are read, at most where its length is unknown."""
    if source.size == 0:
        raise DataError(f"{source.name} holds no records")
    if source.size is not None:
        return min(source.size, limit or source.size)
    if limit is None:
        why = "is streamed, and how long it is not known" if source.streamed else "has no end"
        raise ConfigError(
            f"{source.name} {why}: say how many of its records are to be read",
            hint="--limit 1000, for example",
        )
    return limit


def _draws(sources: list[RecordSource], wanted: list[int]) -> Iterator[Draw]:
    for number, (source, count) in enumerate(zip(sources, wanted, strict=True)):
        for index in range(count):
            if not source.streamed:
                yield Draw(number, index, 0)
                continue
            record: Record | BadRecord
            try:
                record = source.read(index)
            except EndOfSource:
                break
            except BadRecord as bad:
                record = bad
            yield Draw(number, index, 0, record)


@dataclass
class _Found:
    """What was found in a source so far; figures of lengths are in 4 bytes each."""

    report_of_bad: DataReport = field(default_factory=DataReport)
    tokens: array[int] = field(default_factory=partial(array, "I"))
    image_tokens: array[int] = field(default_factory=partial(array, "I"))
    trained_tokens: array[int] = field(default_factory=partial(array, "I"))
    written_images: int = 0

    def add(self, draw: Draw, item: _Measured | BadRecord) -> None:
        """Count a record."""
        if isinstance(item, BadRecord):
            self.report_of_bad.skip(draw.key, item)
            return
        self.tokens.append(item.tokens)
        self.trained_tokens.append(item.trained_tokens)
        if item.images:
            self.image_tokens.append(item.image_tokens)
        self.written_images += item.written_image

    def report(self, source: RecordSource, max_length: int, *, held_out: bool) -> SourceCheck:
        """All of it."""
        usable, unusable = len(self.tokens), self.report_of_bad.skipped
        return SourceCheck(
            source=source.name,
            held_out=held_out,
            max_length=max_length,
            holds=source.size,
            records=usable + unusable,
            usable=usable,
            unusable=unusable,
            with_images=len(self.image_tokens),
            written_images=self.written_images,
            reasons={
                reason: BadReason(
                    count=told["count"],
                    meaning=told["meaning"],
                    hint=BadRecord(reason).hint,
                    examples=tuple(BadExample(**example) for example in told["examples"]),
                )
                for reason, told in self.report_of_bad.to_dict()["reasons"].items()
            },
            tokens=_lengths(self.tokens),
            image_tokens=_lengths(self.image_tokens),
            trained_tokens=_lengths(self.trained_tokens),
        )


def _lengths(found: array[int]) -> Lengths | None:
    if not found:
        return None
    ordered = sorted(found)

    def at_most(percent: int) -> int:
        return ordered[-(-percent * len(ordered) // 100) - 1]

    return Lengths(ordered[0], at_most(50), at_most(95), ordered[-1])


def _require_place(bad: Path, wholes: Sequence[DataConfig], *, overwrite: bool) -> None:
    """Refuse, before the work, a file that may not be written."""
    require_writable(bad)
    if not bad.exists() or is_outlet(bad):
        return
    named = [
        getattr(source, "path", None) or getattr(source, "id", None)
        for data in wholes
        for source in data.located_sources()
    ]
    if any(name is not None and Path(name).exists() and bad.samefile(name) for name in named):
        raise OutputError(f"{bad} is itself one of the data", hint="give another name to --bad")
    if not overwrite:
        raise OutputError(
            f"{bad} already exists", hint="replace it with --overwrite, or give another name to --bad"
        )


def _line(source: RecordSource, draw: Draw, bad: BadRecord) -> str:
    """An unusable record as a line of the file of them."""
    told: dict[str, Any] = {"source": source.name, "index": draw.index, "where": bad.where, "id": bad.record}
    return json.dumps({**told, "reason": bad.reason, "detail": bad.detail}, ensure_ascii=False) + "\n"


class _Progress:
    """Tells how far the reading is, at the pace so far."""

    def __init__(self, events: Events, total: int) -> None:
        self._events, self._total, self._done = events, total, 0
        self._began: float | None = None

    def __call__(self) -> None:
        self._done += 1
        now, left = time.monotonic(), None
        if self._began is None:  # by now workers have started, which takes seconds
            self._began = now
        else:
            left = (now - self._began) / (self._done - 1) * (self._total - self._done)
        self._events(Advanced("check", self._done, self._total, left))
