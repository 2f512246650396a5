"""Records written down again: JSON Lines of ``messages``, with pictures as paths that a reader of the file can follow.

A reader looks pictures up under one folder, the file's own or the ``image_root`` of its source. Here that is the file's
own folder where all the pictures lie in it, and otherwise the nearest folder that holds them all. Pictures that are no
files (bytes of a table, puzzles), or are files elsewhere, are kept in a folder beside the file, each once, by its
content.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlsi_cli.engine.data.images import image_kind, is_address, locate
from vlsi_cli.engine.data.records import BadRecord, ImageRef, Message, Record
from vlsi_cli.engine.files import new_file
from vlsi_cli.errors import DataError


class RecordWriter:
    """Turns records into rows of one file.

    Args:
        file: where the rows will lie.
        roots: folders in which records of some sources have their pictures.
        keeps: whether there are other sources, whose pictures are kept beside the file.

    Attributes:
        root: the folder that paths in the rows start from.
        images: the folder of pictures that are kept.
        named: whether a row has named a picture under ``root``.

    Raises:
        DataError: the folders have none in common but that of the whole machine.
    """

    def __init__(self, file: Path, roots: Iterable[Path], *, keeps: bool) -> None:
        self.folder = file.absolute().parent.resolve()
        self.images = pictures_folder(file.absolute().parent.resolve() / file.name)
        self.root = _common(file, self.folder, [root.resolve() for root in roots], keeps)
        self.named = self._unflushed = False

    def flush(self) -> None:
        """Have the disk hold the pictures that were kept, all at once: thousands would wait for it one by one.

        To be called before the file gets its name. (Windows has no call for it.)
        """
        if self._unflushed and hasattr(os, "sync"):
            os.sync()
        self._unflushed = False

    def row(self, record: Record, more: Mapping[str, Any]) -> dict[str, Any]:
        """A record as an object that the format ``messages`` reads back as the same record.

        Args:
            more: further keys, which the format does not know, beside those of the record.

        Raises:
            BadRecord: a picture that is not there or is none.
            OutputError: a picture that cannot be kept.
        """
        row: dict[str, Any] = {"id": record.id, "messages": [_message(each) for each in record.messages]}
        if record.images:
            row["images"] = [self._place(ref) for ref in record.images]
        return row | dict(record.more or {}) | dict(more)

    def line(self, record: Record, more: Mapping[str, Any]) -> str:
        """:meth:`row` as a line of JSON.

        Raises:
            BadRecord, OutputError: as :meth:`row`; or another field that is too deep.
        """
        row = self.row(record, more)
        try:
            text = json.dumps(row, ensure_ascii=False)
            text.encode()
        except UnicodeEncodeError:  # half a surrogate pair in another field: JSON has a way to write it
            text = json.dumps(row)
        except RecursionError as error:
            raise BadRecord("bad-format", "lists inside lists inside lists") from error
        return text + "\n"

    def _place(self, ref: ImageRef) -> str:
        """What a row calls a picture: its address, or its path from ``root``."""
        if is_address(ref):
            return str(ref.path)
        if ref.path is None:
            return self._kept(_bytes(ref))
        found = locate(ref)
        if found.is_relative_to(self.root):
            self.named = True
            return self._name(ref, found)
        try:
            return self._kept(found.read_bytes())
        except OSError as error:
            raise BadRecord("image-unreadable", f"{ref.path}: {error.strerror or error}") from error

    def _name(self, ref: ImageRef, found: Path) -> str:
        """The path of a file as the record has it, or past links that the record's own way does not lead through."""
        assert ref.root is not None
        plain = Path(os.path.normpath(ref.root.resolve() / str(ref.path)))
        same = plain.is_relative_to(self.root) and plain.resolve() == found
        return (plain if same else found).relative_to(self.root).as_posix()

    def _kept(self, data: bytes) -> str:
        name = f"{hashlib.sha256(data).hexdigest()[:32]}.{image_kind(data)}"
        path = self.images / name[:2] / name
        # a power cut may leave a name without bytes
        if not path.is_file() or path.stat().st_size != len(data):
            with new_file(path, flush=False) as part:
                part.write_bytes(data)
            self._unflushed = True
        return path.relative_to(self.root).as_posix()


def pictures_folder(file: Path) -> Path:
    """Where the pictures that a file of records keeps lie."""
    return file.with_name(f"{file.stem}.images")


def _common(file: Path, folder: Path, roots: list[Path], keeps: bool) -> Path:
    if all(root.is_relative_to(folder) for root in roots):
        return folder
    try:
        common = Path(os.path.commonpath([*roots, *([folder] if keeps else [])]))
    except ValueError:  # two drives
        common = Path(folder.anchor)
    if common == Path(common.anchor) and common not in roots:
        raise DataError(
            f"{file} cannot name its pictures: they lie in {', '.join(map(str, dict.fromkeys(roots)))}, and what it "
            "names must lie in one folder",
            hint="answer each of the data by itself, or put --output into a folder above the pictures",
        )
    return common


def _message(message: Message) -> dict[str, Any]:
    if all(isinstance(part, str) for part in message.parts):
        return {"role": message.role, "content": message.text}
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
        for part in message.parts
    ]
    return {"role": message.role, "content": parts}


def _bytes(ref: ImageRef) -> bytes:
    if ref.data is not None:
        return ref.data
    buffer = io.BytesIO()
    ref.picture.save(buffer, format="PNG")
    return buffer.getvalue()
