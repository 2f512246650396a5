"""Ctrl-C, SIGTERM and SIGHUP, where a command has nothing of its own to say of them: it ends in order.

What is half written goes, workers end, and the exit code is the one that a shell expects. An interrupt may come while a
library is being imported, and the library may make another error of it (transformers says that a module is missing):
that it came is noted here, so that the command can tell what really happened.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from vlsi_cli.config import launching

#: (Windows has only the first.)
_ENDS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


#: Seconds after which a signal is sent again whose interrupt was lost.
_MOMENT = 0.05


class Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP, which here stop a command as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@dataclass
class Seen:
    """The signal that came first, None before."""

    number: int | None = None


_active: Seen | None = None  # blocks inside each other note the same: signals are the process's


def number_of(error: KeyboardInterrupt) -> int:
    """The signal that an interrupt stands for."""
    return error.number if isinstance(error, Ended) else int(signal.SIGINT)


@contextmanager
def heeded(*, launched: bool = False) -> Iterator[Seen]:
    """Inside the block SIGTERM and SIGHUP are raised as :class:`Ended`, once, and interrupts are noted.

    A signal that is ignored (``nohup``, a command in the background of a script) or has a handler stays as it is.
    Outside the main thread, where Python delivers no signals, all is as without.

    Args:
        launched: also where a launcher has started this process. Else SIGTERM and SIGHUP do there what they always do:
            a launcher must be able to end its processes at any moment.
    """
    global _active
    outer, seen = _active, _active or Seen()
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        seen.number = seen.number or number
        raise KeyboardInterrupt

    def end(number: int, frame: FrameType | None) -> None:
        if seen.number is None:  # schedulers and launchers may tell it twice, and what ends now ends whole
            seen.number = number
            raise Ended(number)

    handlers: dict[int, tuple[Any, Any]] = {signal.SIGINT: (signal.default_int_handler, interrupt)}
    if launched or not launching.is_launched():
        handlers |= dict.fromkeys(_ENDS, (signal.SIG_DFL, end))

    def again(lost: sys.UnraisableHookArgs) -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt):  # it came in a callback, which could not pass it on
            number, seen.number = number_of(lost.exc_value), None
            threading.Timer(_MOMENT, os.kill, (os.getpid(), number)).start()
        else:
            unraisable(lost)

    unraisable, sys.unraisablehook = sys.unraisablehook, again
    before = {
        number: signal.signal(number, own)
        for number, (usual, own) in handlers.items()
        if signal.getsignal(number) is usual
    }
    _active = seen
    try:
        yield seen
    finally:
        _active, sys.unraisablehook = outer, unraisable
        for number, handler in before.items():
            signal.signal(number, handler)


def leave() -> None:
    """Let Ctrl-C end this process at once: all is done, and Python, which is ending, would show where it was."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
