"""Where the entries of a JSON array lie in its file, so that it need not be held in memory.

Instruction data are often one array of a gigabyte, which takes several times its size as Python objects, in every
process that trains. Here one pass finds the place of every entry, 16 bytes each, a piece of the file at a time; an
entry is read when it is wanted, as a line of JSON Lines is.
"""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import BinaryIO

from vlsi_cli.errors import DataError

#: Bytes that are read at a time; more where an entry is longer.
_PIECE = 8 << 20
_BOM, _BLANKS = "\ufeff".encode().decode("latin-1"), " \t\n\r"
#: A word or number that is cut off is wrong at most so many characters before its end (``-Infinity``).
_LONGEST_WORD = 12
#: What may stand behind a number that is cut off, and does not yet belong to it: ``1`` of ``1e+5``.
_LONGEST_TAIL = 2


def array_places(path: Path, piece: int = _PIECE) -> tuple[array[int], array[int]]:
    """Byte offset and length of every entry of a file that holds one JSON array.

    Args:
        path: the file. Whether its text is UTF-8 is seen where an entry is read.
        piece: bytes read at a time.

    Raises:
        DataError: it is not valid JSON, with line and column.
        OSError: it cannot be read.
    """
    offsets, lengths = array("Q"), array("Q")
    with path.open("rb") as file:
        scan = _Scan(file, path, piece)
        scan.take(_BOM)
        if not scan.take("["):
            raise scan.wrong("Expecting '['")
        ended = scan.take("]")
        while not ended:
            offset, length = scan.entry()
            offsets.append(offset)
            lengths.append(length)
            ended = scan.take("]")
            if not ended and not scan.take(","):
                raise scan.wrong("Expecting ',' delimiter")
        if not scan.at_end():
            raise scan.wrong("Extra data")
    return offsets, lengths


class _Scan:
    """A walk through a file.

    Bytes are taken for Latin-1, in which every byte is a character: JSON's own are ASCII, the bytes of longer
    characters stand in strings only, and a place in the text is one in the file.
    """

    def __init__(self, file: BinaryIO, path: Path, piece: int) -> None:
        self._file, self._path, self._piece = file, path, piece
        # numbers are only stepped over: Python refuses those of more than 4,300 digits
        self._decoder = json.JSONDecoder(parse_int=len, parse_float=len)
        self._text, self._at = "", 0
        #: Of what was let go: its bytes, line breaks, and bytes before its last line.
        self._gone, self._breaks, self._line = 0, 0, 0

    def take(self, sign: str) -> bool:
        """Step over a sign behind blanks, if it is the next."""
        if self.at_end():
            return False
        while len(self._text) - self._at < len(sign) and self._more():
            pass
        if not self._text.startswith(sign, self._at):
            return False
        self._at += len(sign)
        return True

    def at_end(self) -> bool:
        """Whether nothing but blanks is left; steps over them."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANKS:
                self._at += 1
            if self._at < len(self._text):
                return False
            if not self._more():
                return True

    def entry(self) -> tuple[int, int]:
        """Step over a value: its offset in the file, and its length."""
        self.at_end()
        offset = self._gone + self._at
        while True:
            try:
                _, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos + _LONGEST_WORD >= len(self._text) or error.msg.startswith("Unterminated")
                if not (cut and self._more()):
                    raise self.wrong(error.msg, error.pos) from error
            except RecursionError as error:
                raise self.wrong(str(error)) from error
            else:
                if end + _LONGEST_TAIL < len(self._text) or not self._more():
                    length, self._at = end - self._at, end
                    return offset, length

    def wrong(self, what: str, place: int | None = None) -> DataError:
        """The error that the file is no JSON array, at a place of the text or where the walk is."""
        place = self._at if place is None else place
        before = self._text[:place]
        begin = before.rfind("\n") + 1
        if begin:
            column = len(before[begin:].encode("latin-1").decode("utf-8", "replace"))
        else:
            column = self._gone + place - self._line
        line = 1 + self._breaks + before.count("\n")
        return DataError(f"{self._path}:{line}: not valid JSON: {what} (column {column + 1})")

    def _more(self) -> bool:
        """Read on, as much again as is held, and let go of what lies behind; False at the end of the file."""
        read = self._file.read(max(self._piece, len(self._text) - self._at))
        if not read:
            return False
        behind = self._text[: self._at]
        if breaks := behind.count("\n"):
            self._breaks += breaks
            self._line = self._gone + behind.rfind("\n") + 1
        self._gone += self._at
        self._text, self._at = self._text[self._at :] + read.decode("latin-1"), 0
        return True
