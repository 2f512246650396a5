"""Where records are read from: JSON and JSON Lines files, Hugging Face data sets, built-in puzzles.

Every source reads by index and raises :class:`BadRecord` for a record that cannot be used; what to do about
it is the stream's business. Images are only referred to here, never opened.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Protocol

from vlsi_cli.engine.data.array_places import array_places
from vlsi_cli.engine.data.formats import from_llava, from_messages
from vlsi_cli.engine.data.patterns import pattern_record
from vlsi_cli.engine.data.records import MAX_BYTES, BadRecord, ImageRef, Message, Record, make_record
from vlsi_cli.errors import DataError

Style = Literal["llava", "messages"]


#: Fields of an object that make up its record.
_READ = {"id", "image", "images", "conversations", "messages"}
#: Bytes of a line that are read at a time while lines are counted.
_PIECE = 2**20


class _Parse(Protocol):
    def __call__(
        self, row: Mapping[str, Any], *, default_id: str, where: str, root: Path | None, unanswered: bool
    ) -> Record: ...


_PARSERS: dict[Style, _Parse] = {"llava": from_llava, "messages": from_messages}


class PatternsSource:
    """Puzzles drawn on the fly, one conversation about one picture a record.

    Args:
        split: train, validation or test; they never share a puzzle.
        size: number of records; None for an endless supply, where no record comes twice.
        questions: kinds to ask; None for all.
        turns: most questions about one picture.
        seed: other records of the same split.
    """

    shuffles_itself = True
    streamed = False

    def __init__(
        self,
        split: str,
        *,
        size: int | None = None,
        questions: Sequence[str] | None = None,
        turns: int = 1,
        seed: int = 0,
    ) -> None:
        self.size = size
        self._make: Callable[[int], Any] = partial(
            pattern_record, split, seed=seed, questions=questions, turns=turns
        )
        kinds = "all" if questions is None else "+".join(questions)
        self.name = f"patterns ({split}, {kinds}, turns {turns}, seed {seed})"
        self._make(0)  # a wrong split or kind is told before the run starts

    def read(self, index: int, epoch: int = 0) -> Record:
        """The puzzle at an index."""
        puzzle = self._make(index)
        messages = []
        for number, question in enumerate(puzzle.turns):
            parts = (0, question.text) if number == 0 else (question.text,)
            messages += [Message("user", parts), Message("assistant", (question.answer,))]
        kind = puzzle.turns[-1].kind
        return make_record(puzzle.id, messages, [ImageRef(picture=puzzle.image)], where=self.name, kind=kind)


class JsonSource:
    """A JSON array or a JSON Lines file of conversations.

    Only the place of every entry or line is kept (16 bytes a record), found in one pass over the file when it is first
    needed; a record is parsed when it is read.

    Args:
        path: the file; one that starts with ``[`` is an array, anything else JSON Lines.
        style: how conversations are written down, see ``formats``.
        image_root: folder that image paths start from and must not leave; None for the file's own folder.
        unanswered: let conversations end with the user's message, and keep the other fields of each object: these are
            records to be answered and written down again.

    Raises:
        DataError: no such file, unreadable, or an array that is not valid JSON.
    """

    shuffles_itself = False
    streamed = False

    def __init__(
        self,
        path: Path | str,
        style: Style,
        *,
        image_root: Path | str | None = None,
        unanswered: bool = False,
    ) -> None:
        self.path = Path(path)
        self.name = str(self.path)
        self._parse, self._unanswered = _PARSERS[style], unanswered
        self._root = Path(image_root) if image_root is not None else self.path.parent
        if not self.path.is_file():
            raise DataError(
                f"there is no data file {self.path}", hint="check `path` in the recipe's `data.sources`"
            )
        if not self._root.is_dir():
            raise DataError(f"there is no image folder {self._root}")
        try:
            with self.path.open("rb") as file:
                head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from error
        self._is_array = head.startswith(b"[")
        if self._is_array:
            _ = self._places  # one that is broken is refused as a whole, before anything else is done

    @property
    def size(self) -> int:
        """Number of records: entries of the array, or lines that are not blank.

        Raises:
            DataError: an array that is not valid JSON, or a file that cannot be read.
        """
        return len(self._places[0])

    def read(self, index: int, epoch: int = 0) -> Record:
        """The record at an index; its place in messages is ``file:line``, or ``file[index]`` of an array."""
        offset, number = self._places[0][index], self._places[1][index]
        where = f"{self.path}[{index}]" if self._is_array else f"{self.path}:{number}"
        row = self._parsed(offset, number if self._is_array else None, where)
        if not isinstance(row, dict):
            raise BadRecord("bad-format", f"a {type(row).__name__} instead of an object", where=where)
        record = self._parse(
            row,
            default_id=where.removeprefix(f"{self.path.parent}/"),
            where=where,
            root=self._root,
            unanswered=self._unanswered,
        )
        if not self._unanswered:
            return record
        return replace(record, more={key: value for key, value in row.items() if key not in _READ})

    def _parsed(self, offset: int, length: int | None, where: str) -> Any:
        """What stands at an offset: so many bytes, or None for a line."""
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                most = MAX_BYTES + 1
                line = file.readline(most) if length is None else file.read(min(length, most))
        except OSError as error:
            raise self._unreadable(error) from error
        if len(line) > MAX_BYTES:
            raise BadRecord("too-large", f"more than {MAX_BYTES:,} bytes", where=where)
        try:
            return json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise BadRecord("broken-json", str(error), where=where) from error

    @cached_property
    def _places(self) -> tuple[array[int], array[int]]:
        """Byte offset of every record, with its length in an array, or the 1-based number of its line."""
        try:
            return array_places(self.path) if self._is_array else self._lines()
        except OSError as error:
            raise self._unreadable(error) from error

    def _lines(self) -> tuple[array[int], array[int]]:
        offsets, numbers = array("Q"), array("Q")
        begin, offset, number, blank = 0, 0, 1, True
        with self.path.open("rb") as file:
            while piece := file.readline(_PIECE):  # of a line, which may be longer than memory
                offset += len(piece)
                if blank and not piece.isspace():
                    blank = False
                    offsets.append(begin)
                    numbers.append(number)
                if piece.endswith(b"\n"):
                    begin, number, blank = offset, number + 1, True
        return offsets, numbers

    def _unreadable(self, error: OSError) -> DataError:
        """For a file that was there and is not any more, or whose disk fails: no record of it can be had."""
        return DataError(f"{self.path} cannot be read: {error.strerror or error}")
