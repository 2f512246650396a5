"""Standard output and error into a pipe whose reader may go away (``vlsi distill 2>&1 | head``), into a terminal, or
into nothing.

Work is not lost for it: what nobody reads is dropped, and the command goes on. Where it was data that nobody read, the
command ends with the code of a Unix tool that SIGPIPE has ended, unless it has a code of its own.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from vlsi_cli.config import launching

#: 128 + SIGPIPE, as a shell says it.
NOBODY_READ = 141


class _Pipe(io.FileIO):
    """The writing end of a pipe, or a terminal; without a reader, what is written is dropped.

    Attributes:
        broken: whether that has happened.
    """

    broken = False

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: a terminal that was closed
                raise
            self.broken = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for libraries that write past Python
            os.close(nowhere)
            return len(memoryview(data).cast("B"))


@contextmanager
def outliving_readers() -> Iterator[None]:
    """Inside the block (the whole of a process), go on where nobody reads what is printed any more, or ever did, and
    where it has letters that the terminal has not."""
    _open_what_is_closed()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    out, err = _opened(sys.stdout), _opened(sys.stderr)
    if out is not None:
        sys.stdout = _text(out, sys.stdout)
    if err is not None:
        sys.stderr = _text(err, sys.stderr)
    try:
        yield
    except SystemExit as end:
        sys.stdout.flush()
        # a launcher would take the code of one of its processes for a failure, and end the others
        if out is not None and out.broken and end.code in (None, 0) and not launching.is_launched():
            raise SystemExit(NOBODY_READ) from end
        raise


def _open_what_is_closed() -> None:
    """Open the standard streams that a command was started without (``>&-``); other files would get their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _opened(stream: TextIO) -> _Pipe | None:
    """The pipe or terminal behind a stream; None where it is a file or none at all."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or replaced by something without a number
        number = stream.fileno()
        mode = os.fstat(number).st_mode
        if os.name == "posix" and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stream.isatty()):
            return _Pipe(number, "w", closefd=False)
    return None


def _text(pipe: _Pipe, like: TextIO) -> TextIO:
    like.flush()
    lines = bool(getattr(like, "line_buffering", False))
    through = bool(getattr(like, "write_through", False))
    made = io.BufferedWriter(pipe)
    return io.TextIOWrapper(made, like.encoding, like.errors, line_buffering=lines, write_through=through)
