"""What bad input must end in: our error, its exit code, one sentence; never a traceback, never a hang."""

from __future__ import annotations

import inspect
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from unittest import mock

from typer.testing import CliRunner, Result

from vlsi_cli import errors
from vlsi_cli.app import app

CODES = {
    kind.exit_code
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.VlsiError)
}
#: What one case may take: seconds of computing, and of waiting on a busy machine.
COMPUTING, WAITING = 30, 300


class Hangs(BaseException):
    """A case that does not end. No Exception, so that nothing on the way takes it for bad input."""


@contextmanager
def in_time() -> Iterator[None]:
    """Raise :class:`Hangs` in what takes longer."""

    def late(number: int, frame: FrameType | None) -> None:
        raise Hangs(f"no end after {COMPUTING} s of computing or {WAITING} s of waiting")

    before = [(number, signal.signal(number, late)) for number in (signal.SIGALRM, signal.SIGPROF)]
    signal.setitimer(signal.ITIMER_PROF, COMPUTING)
    signal.alarm(WAITING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in before:
            signal.signal(number, handler)


def vlsi(*words: object) -> Result:
    # transformers' log handler holds the stream of an earlier command of this process, closed by now
    with in_time(), mock.patch.object(logging, "raiseExceptions", False):
        return CliRunner().invoke(app, [str(word) for word in words], prog_name="vlsi")


def ends_well(done: Result, *codes: int) -> str:
    """The sentence that a command ended in, "" when it did what it says.

    Args:
        codes: exit codes that are allowed; none: any documented one.
    """
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise AssertionError(f"a traceback: {done.exception!r}") from done.exception
    assert "Traceback" not in done.output
    assert done.exit_code in (codes or {0, *CODES}), f"exit code {done.exit_code}: {done.output}"
    if done.exit_code == 0:
        return ""
    if done.exit_code == 2 and (
        "Usage:" in done.stderr or "─ Error ─" in done.stderr
    ):  # what Typer itself refuses
        return done.stderr
    found = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(found) == 1, done.stderr
    sentence = found[0].removeprefix("error: ")
    assert 10 < len(sentence) < 2000, f"{len(sentence)} characters: {sentence[:300]}"
    return sentence
