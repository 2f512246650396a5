"""``vlsi data fetch``: the images that data name by address, fetched before a run needs them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from vlsi_cli.config.run import DataConfig, PatternsSource
from vlsi_cli.engine.data.addresses import shown
from vlsi_cli.engine.data.fetched import ImageFetcher
from vlsi_cli.engine.data.images import is_address
from vlsi_cli.engine.data.records import BadRecord
from vlsi_cli.engine.data.schedule import EndOfSource
from vlsi_cli.engine.runs.data import image_fetcher, open_source
from vlsi_cli.events import Advanced, Events, Note, ignore

#: Failed addresses named for each reason.
EXAMPLES = 5
#: Addresses that each thread is ahead.
_AHEAD = 4
_NOTE_EVERY = 10.0


@dataclass
class FetchReport:
    """What is in the folders now.

    Attributes:
        folders: where images are kept.
        records: read; ``unusable`` of them could not be.
        addresses: different ones that they name.
        kept: images that were there before; ``fetched``: that came now.
        failed: addresses without an image, by reason, and some of each in ``examples``.
    """

    folders: list[Path] = field(default_factory=list)
    records: int = 0
    unusable: int = 0
    addresses: int = 0
    kept: int = 0
    fetched: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)


def run(
    data: Sequence[DataConfig], *, threads: int = 16, again: bool = False, events: Events = ignore
) -> FetchReport:
    """Fetch every image of some data that is named by an address, whether the data say that it may be fetched or not.

    Args:
        data: each with its own folder, hosts and limits. Puzzles are left out; streamed data are read to their end.
        threads: images fetched at a time.
        again: ask also for what has failed before.
        events: told of progress.

    Raises:
        DataError: a source that cannot be opened, or no network.
        OutputError: an image cannot be kept.
    """
    report, seen = FetchReport(), set[tuple[int, str]]()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for number, config in enumerate(data):
                fetcher = image_fetcher(config.image_urls.model_copy(update={"fetch": True}))
                assert fetcher is not None
                report.folders = list(dict.fromkeys([*report.folders, config.image_urls.place]))
                begun: deque[tuple[str, Future[bool]]] = deque()
                for address in _addresses(config, report, events):
                    if (number, address) in seen:
                        continue
                    seen.add((number, address))
                    report.addresses += 1
                    begun.append((address, pool.submit(_fetch, fetcher, address, again)))
                    if len(begun) > threads * _AHEAD:
                        _take(report, *begun.popleft())
                while begun:
                    _take(report, *begun.popleft())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # those under way end by their time limit
            raise
    return report


def _fetch(fetcher: ImageFetcher, address: str, again: bool) -> bool:
    """Whether an image had to be asked for; then it is in the folder."""
    if again:
        fetcher.forget_failure(address)
    known = fetcher.knows(address)
    fetcher(address)
    return not known


def _take(report: FetchReport, address: str, result: Future[bool]) -> None:
    try:
        if result.result():
            report.fetched += 1
        else:
            report.kept += 1
    except BadRecord as bad:
        report.failed[bad.reason] = report.failed.get(bad.reason, 0) + 1
        some = report.examples.setdefault(bad.reason, [])
        if len(some) < EXAMPLES:
            some.append(bad.detail or shown(address))


def _addresses(config: DataConfig, report: FetchReport, events: Events) -> Iterator[str]:
    """Every address of an image, as the records name them."""
    opened = [
        open_source(source, shuffle_seed=None)
        for source in config.located_sources()
        if not isinstance(source, PatternsSource)
    ]
    sizes = [source.size for source in opened]
    total = sum(size for size in sizes if size is not None)
    started = told = time.monotonic()
    done = 0
    for source in opened:
        for index in range(source.size) if source.size is not None else count():
            try:
                record = source.read(index)
            except EndOfSource:
                break
            except BadRecord:
                report.unusable += 1
                record = None
            yield from (str(ref.path) for ref in (record.images if record else ()) if is_address(ref))
            report.records += 1
            done += 1
            now = time.monotonic()
            if None not in sizes:
                left = (now - started) / done * (total - done)
                events(Advanced("fetch", done, total, left))
            elif now - told >= _NOTE_EVERY:
                told = now
                events(
                    Note(
                        f"fetch: {done:,} records, {report.fetched:,} images, {sum(report.failed.values()):,} failed"
                    )
                )
