"""How work ends that keeps each answer as it comes: what a signal, or the end of another process, is told as."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vlsi_cli import interrupts
from vlsi_cli.engine import processes
from vlsi_cli.errors import Interrupted, ProcessError

_GOES_ON = "the same command goes on from here"


@contextmanager
def keeping_answers() -> Iterator[None]:
    """Tell Ctrl-C, SIGTERM, SIGHUP and the end of another process as what they are here: a pause.

    Raises:
        Interrupted: Ctrl-C, SIGTERM or SIGHUP.
        ProcessError: another process has ended before its time.
    """
    try:
        with _told_to_end():
            yield
    except KeyboardInterrupt as error:
        code = 128 + interrupts.number_of(error)
        stopped = Interrupted("interrupted; the answers so far are kept", hint=_GOES_ON, exit_code=code)
        stopped.shared = True  # it reaches every process
        raise stopped from error
    except ProcessError as error:
        error.hint = f"the answers so far are kept: {_GOES_ON}"
        raise


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Let the first process say what SIGTERM means. The others end at once, with every answer on the disk."""
    if threading.current_thread() is not threading.main_thread() or not processes.is_first():
        yield
        return
    if processes.size() == 1:
        with interrupts.heeded(launched=True):
            yield
        return

    def end(number: int, frame: Any) -> None:
        # once: a launcher passes it on to processes that the scheduler has told already, and what ends now ends whole
        signal.signal(number, lambda *_: None)
        raise processes.Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
