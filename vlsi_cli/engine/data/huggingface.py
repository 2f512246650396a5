"""Hugging Face data sets as sources: hub ids, folders, table files; in memory maps or streamed.

Rows are read in their stored form, so images arrive as bytes or paths and are decoded by this package's own
rules.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlsi_cli.engine.data.formats import from_question, from_row
from vlsi_cli.engine.data.records import BadRecord, Record
from vlsi_cli.engine.data.rows import RowStream
from vlsi_cli.errors import DataError

#: File endings and the builder that reads them.
BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}

_NOT_WRITTEN = (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
_TALKS = ("messages", "conversations", "texts")


class HuggingFaceSource:
    """A data set whose rows are conversations, or questions and answers.

    Conversations are taken from a column ``messages``, ``conversations`` or ``texts``, with images from
    ``images`` or ``image``. Anything else needs ``columns``.

    Args:
        id: hub id, folder (saved by ``save_to_disk``, or of table files) or one table file.
        name, revision: configuration, and branch, tag or commit, of a hub data set.
        split: which split.
        streaming: read while downloading; the length is then unknown, and the order is the data set's own, or that of
            shuffled files with rows shuffled in blocks of 1,000.
        shuffle_seed: seed of that order; None keeps the data set's own.
        columns: names of the ``question``, ``answer`` and (optionally) ``image`` columns.
        unanswered: let conversations end with the user's message, and do without a column of answers.

    Raises:
        DataError: not found, not reachable, no such split, or no usable columns.
    """

    def __init__(
        self,
        id: str,
        *,
        name: str | None = None,
        split: str = "train",
        streaming: bool = False,
        revision: str | None = None,
        shuffle_seed: int | None = None,
        columns: Mapping[str, str] | None = None,
        image_root: Path | None = None,
        unanswered: bool = False,
    ) -> None:
        self.name = f"{id} ({split})" if name is None else f"{id} ({name}, {split})"
        self.shuffles_itself = self.streamed = streaming
        local = Path(id)
        #: Paths in rows are looked up here; a hub data set has no local files that its rows may name.
        self._root = image_root or ((local if local.is_dir() else local.parent) if local.exists() else None)
        if image_root is not None and not image_root.is_dir():
            raise DataError(f"there is no image folder {image_root}")
        self._unanswered = unanswered
        self._columns = dict(columns) if columns else None
        with _quiet(), _told(id, split):
            data = _open(id, name, split, streaming, revision)
            self._check_columns(list(data.column_names or ()))
            # Stored form: bytes and paths instead of decoded pictures.
            self._data = data.with_format("arrow")
        self.size: int | None = None if streaming else len(data)
        self._rows = RowStream(data, self.name, shuffle_seed) if streaming else None

    def read(self, index: int, epoch: int = 0) -> Record:
        """The record at an index. Streams read on to it; going back, or another epoch, starts them anew.

        Raises:
            BadRecord: the row cannot be used.
            EndOfSource: a streamed data set has fewer rows.
            DataError: the data set cannot be read any more.
        """
        where = f"{self.name} row {index}"
        try:
            row = self._data[index] if self._rows is None else self._rows.row(index, epoch)
        except OSError as error:
            raise DataError(f"{where} cannot be read: {error.strerror or error}") from error
        try:
            values = row.to_pylist()[0]
        except (ValueError, OverflowError) as error:
            # text that is no UTF-8, a time that Python does not know
            raise BadRecord("bad-format", str(error), where=where) from error
        if self._columns:
            return from_question(
                values,
                question=self._columns["question"],
                answer=self._columns.get("answer"),
                image=self._columns.get("image"),
                default_id=where,
                where=where,
                root=self._root,
                unanswered=self._unanswered,
            )
        return from_row(values, default_id=where, where=where, root=self._root, unanswered=self._unanswered)

    def state_dict(self) -> dict[str, Any]:
        """Of a streamed data set: from where it has to be read to read on, as plain JSON values."""
        return self._rows.state_dict() if self._rows is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read on from :meth:`state_dict` when the next row is asked for."""
        if self._rows is not None:
            self._rows.load_state_dict(state)

    def _check_columns(self, names: list[str]) -> None:
        if self._columns is not None:
            needed = ("question",) if self._unanswered else ("question", "answer")
            if unnamed := [key for key in needed if key not in self._columns]:
                raise DataError(
                    f"`columns` of {self.name} names no column of the {unnamed[0]}s",
                    hint="`vlsi data answer` has a large model answer them"
                    if unnamed[0] == "answer"
                    else None,
                )
            wanted = list(self._columns.values())
            missing = [str(column) for column in wanted if column not in names]
            if missing and names:
                raise DataError(f"{self.name} has no column {', '.join(missing)}; it has {', '.join(names)}")
        elif names and not any(talk in names for talk in _TALKS):
            pictures = self._unanswered and set(names) <= {"image", "label"}
            raise DataError(
                f"{self.name} has no column {', '.join(_TALKS)}; it has {', '.join(names)}",
                hint="what is to be asked of a folder of pictures is said with --prompt 'Describe the picture.'"
                if pictures
                else "name them in the source: "
                "--set 'data.sources.0.columns={question: ..., answer: ..., image: ...}'",
            )


def _open(id: str, name: str | None, split: str, streaming: bool, revision: str | None) -> Any:
    import datasets

    path = Path(id)
    if path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
        saved = datasets.load_from_disk(str(path))
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise ValueError(f"splits are {', '.join(saved)}")
            saved = saved[split]
        return saved.to_iterable_dataset() if streaming else saved
    if path.suffix in BUILDERS:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        builder, files = BUILDERS[path.suffix], {split: str(path)}
        return datasets.load_dataset(builder, data_files=files, split=split, streaming=streaming)
    if path.is_dir():
        _require_one_kind(path, datasets.load_dataset_builder(id, name).config.data_files or {})
    return datasets.load_dataset(id, name, split=split, streaming=streaming, revision=revision)


def _require_one_kind(folder: Path, read: Mapping[str, Iterable[str]]) -> None:
    """Refuse a folder of which only the files of one kind would be read: the library takes the kind with most files.

    Raises:
        DataError: it has files of records in another format.
    """
    kinds = used = {Path(file).suffix for files in read.values() for file in files}
    if not kinds or not kinds <= set(BUILDERS):  # pictures, which may have a table beside them
        return
    page = folder / "README.md"
    if page.is_file() and re.search(r"^configs:", page.read_text("utf-8", errors="replace"), re.MULTILINE):
        return  # it says which
    if kinds & {".json", ".jsonl"}:
        kinds = kinds | {".json", ".jsonl"}
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)
        if file.suffix in BUILDERS and file.suffix not in kinds and not hidden and _holds_records(file):
            raise DataError(
                f"the folder {folder} has data in several formats, and only {' and '.join(sorted(used))} would be "
                f"read, not {file.relative_to(folder)}",
                hint="name the files that are meant, or say in the folder's README.md (`configs`) which they are",
            )


def _holds_records(file: Path) -> bool:
    """Whether a file is one of records; of JSON, which may be anything, one that begins with conversations."""
    if not file.is_file():
        return False
    if file.suffix != ".json":
        return True
    with file.open("rb") as opened:
        start = opened.read(1 << 16)
    return any(f'"{talk}"'.encode() in start for talk in _TALKS)


@contextmanager
def _told(id: str, split: str) -> Iterator[None]:
    """Whatever the library raises while opening, as one DataError that names the data set."""
    try:
        yield
    except DataError:
        raise
    except ConnectionError as error:
        raise DataError(
            f"data set {id!r} is neither a local path nor in the cache, and the hub cannot be reached",
            hint=f"where there is a network: hf download --repo-type dataset {id}",
        ) from error
    except Exception as error:
        kept = isinstance(error, OSError) and (error.errno in _NOT_WRITTEN or "disk space" in str(error))
        raise DataError(
            f"data set {id!r} (split {split!r}) cannot be opened: {error}",
            hint="the datasets library keeps what it reads in the folder HF_DATASETS_CACHE" if kept else None,
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bars and words, errors among them: speech is the commands' business."""
    import datasets

    hidden, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not hidden:
            datasets.enable_progress_bars()
