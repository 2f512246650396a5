"""How many records the data of a run hold, counted as far as that is quick: no record is understood, no picture opened.

Lines of JSON Lines are counted as a run counts them, arrays are parsed, tables say it themselves. What takes longer
than a moment is estimated from its beginning.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vlsi_cli.config.data import DataConfig, HubSource, ImagesSource, PatternsSource, Source, unanswered
from vlsi_cli.config.repos import JSON
from vlsi_cli.errors import DataError

#: Seconds after which a file is estimated from what was read.
PATIENCE = 1.0
#: Bytes of an array that is parsed; in a longer one the key that every record has is counted.
MOST_PARSED = 64 * 2**20
_PIECE = 2**20


@dataclass(frozen=True)
class Count:
    """Records of a source, or draws of an epoch.

    Attributes:
        records: how many.
        about: whether that is an estimate.
    """

    records: int
    about: bool = False

    def __str__(self) -> str:
        return f"about {self.records:,}" if self.about else f"{self.records:,}"


def epoch(data: DataConfig) -> Count | None:
    """Draws of one pass over the data, `round(weight * records)` of each source; None when one does not tell."""
    counts = [count(source) for source in data.located_sources()]
    known = [one for one in counts if one is not None]
    if len(known) < len(counts):
        return None
    shares = (
        max(1, round(source.weight * one.records)) for source, one in zip(data.sources, known, strict=True)
    )
    return Count(sum(shares), any(one.about for one in known))


def require_some(data: DataConfig) -> None:
    """Refuse a source that has no answers, and one on this machine that is empty.

    Raises:
        DataError: there is one.
    """
    for source in data.located_sources():
        if isinstance(source, ImagesSource):
            raise unanswered(source)
        if not isinstance(source, PatternsSource) and _here(source) == Count(0):
            raise DataError(f"{source.id if isinstance(source, HubSource) else source.path} holds no records")


def notes(data: DataConfig) -> Iterator[str]:
    """What was counted or estimated on this machine, a sentence a source."""
    for number, source in enumerate(data.located_sources()):
        if not isinstance(source, PatternsSource) and (here := _here(source)) is not None:
            yield f"data.sources.{number} holds {here} records; those that cannot be used are among them"


def count(source: Source) -> Count | None:
    """The records of a source: those on this machine, else what the configuration says (`records`), else None."""
    if isinstance(source, PatternsSource):
        return Count(source.size) if source.size is not None else None
    here = _here(source)
    return here if here is not None or source.records is None else Count(source.records)


def _here(source: Source) -> Count | None:
    if isinstance(source, PatternsSource):
        return None
    if isinstance(source, HubSource):
        path = Path(source.id)
        if source.streaming or (path.is_dir() and not _is_saved(path)):
            return None
        path = path / source.split if (path / "dataset_dict.json").is_file() else path
    else:
        path = source.path
    if not path.is_dir() and not path.is_file():
        return None  # not there, or nothing that can be read twice
    with suppress(OSError):
        state = (path / "state.json" if path.is_dir() else path).stat()
        return _counted(path, state.st_size, state.st_mtime_ns)
    return None


@cache
def _counted(path: Path, size: int, changed: int) -> Count | None:
    """A file or saved data set as it is at this moment; a plan is made many times in a command."""
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        if path.is_dir():
            return _saved(path)
        if path.suffix == ".parquet":
            return _parquet(path)
        if path.suffix.lower() in JSON:
            with path.open("rb") as file:
                is_array = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
            if not is_array:
                return _estimated(path, size, None)
            return _array(path) if size <= MOST_PARSED else _estimated(path, size, _key_of(path))
    return None


def _array(path: Path) -> Count:
    return Count(len(json.loads(path.read_text(encoding="utf-8-sig"))))


def _key_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return b'"conversations"' if b'"conversations"' in file.read(_PIECE) else b'"messages"'


def _estimated(path: Path, size: int, key: bytes | None) -> Count | None:
    """Lines that are not blank, or places of a key where one is given; from the beginning where time runs out."""
    found = done = 0
    until = time.monotonic() + PATIENCE
    begun = False  # whether the line has something in it
    end = b""  # of the piece before: a key can be cut in two
    with path.open("rb") as file:
        while piece := file.read(_PIECE) if key else file.readline(_PIECE):
            done += len(piece)
            if key:
                found += (end + piece).count(key)
                end = piece[-len(key) + 1 :]
            else:
                found += not begun and not piece.isspace()
                begun = (begun or not piece.isspace()) and not piece.endswith(b"\n")
            if done < size and time.monotonic() > until:
                return Count(max(1, round(found * size / done)), about=True) if found else None
    # a file without a line has no records; an array without the key may have others
    return Count(found, about=key is not None) if found or key is None else None


def _is_saved(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _saved(path: Path) -> Count:
    """A folder of `save_to_disk`; its `dataset_info.json` may speak of the data set that it was cut out of."""
    import pyarrow as arrow

    rows = 0
    for each in json.loads((path / "state.json").read_text(encoding="utf-8"))["_data_files"]:
        with arrow.memory_map(str(path / each["filename"])) as file, arrow.ipc.open_stream(file) as stream:
            rows += sum(batch.num_rows for batch in stream)
    return Count(rows)


def _parquet(path: Path) -> Count:
    from pyarrow import parquet

    return Count(parquet.read_metadata(path).num_rows)
