"""Standard output and error into a pipe whose reader may go away (``vlsi distill 2>&1 | head``), into a terminal, into
a file on a disk that fills up, or into nothing.

Work is not lost for it: what nobody reads, or no disk takes, is dropped, and the command goes on. Where it was data
that nobody read, the command ends with the code of a Unix tool that SIGPIPE has ended, unless it has a code of its own;
where the disk was full, with that of an output that cannot be written.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from vlsi_cli.commands import _output
from vlsi_cli.config import launching
from vlsi_cli.errors import OutputError

#: 128 + SIGPIPE, as a shell says it.
NOBODY_READ = 141


class _Outlet(io.FileIO):
    """The writing end of a pipe, a terminal or a file; without a reader or room, what is written is dropped.

    Attributes:
        broken: whether there was no reader any more; ``full``: whether there was no room, for a while at least.
    """

    broken = full = False

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                self.full = True
            elif error.errno in (errno.EPIPE, errno.EIO):  # EIO: a terminal that was closed
                self.broken = True
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())  # for libraries that write past Python
                os.close(nowhere)
            else:
                raise
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
        if out is None or end.code not in (None, 0) or launching.is_launched():
            raise
        if out.broken:
            raise SystemExit(NOBODY_READ) from end
        if out.full:
            _output.error(OutputError("standard output cannot be written: no space is left on the disk"))
            raise SystemExit(OutputError.exit_code) from end
        raise


def _open_what_is_closed() -> None:
    """Open the standard streams that a command was started without (``>&-``); other files would get their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            opened = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, opened)
            setattr(sys, f"__{name}__", opened)  # which keeps it open, whatever takes its place


def _opened(stream: TextIO) -> _Outlet | None:
    """What is behind a stream; None where there is nothing of the system's."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or replaced by something without a number
        if os.name == "posix":
            return _Outlet(stream.fileno(), "w", closefd=False)
    return None


def _text(pipe: _Outlet, like: TextIO) -> TextIO:
    like.flush()
    lines = bool(getattr(like, "line_buffering", False))
    through = bool(getattr(like, "write_through", False))
    made = io.BufferedWriter(pipe)
    return io.TextIOWrapper(made, like.encoding, like.errors, line_buffering=lines, write_through=through)
