"""Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP as a wish that the loop fulfils at the end of a step.

Job schedulers warn before they take a machine away: SLURM with the signal that ``--signal`` names (SIGUSR1 by
custom), others with SIGTERM. SIGHUP comes when a terminal is closed or a connection lost. All leave a checkpoint.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

#: SIGINT first: it alone acts as it always did when it comes a second time. (Windows has not the last two.)
HEEDED = (
    *(signal.SIGINT, signal.SIGTERM),
    *((signal.SIGUSR1, signal.SIGHUP) if hasattr(signal, "SIGUSR1") else ()),
)


@dataclass
class Wish:
    """Whether the run was asked to stop, and by which signal."""

    signal: int | None = None

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program ended by the signal: 130 for SIGINT, 143 for SIGTERM, 138 for SIGUSR1,
        129 for SIGHUP."""
        return 128 + (self.signal or signal.SIGINT)


@contextmanager
def heed_signals() -> Iterator[Wish]:
    """Turn the first of SIGINT, SIGTERM, SIGUSR1 and SIGHUP inside the block into a wish.

    A SIGHUP that is ignored stays so: that is what ``nohup`` is for. So does a handler that was not installed from
    Python, which could not be put back. After the first, Ctrl-C acts as it always did. The others that come again
    change nothing: launchers pass them on to processes that the scheduler has signalled already, and schedulers send
    one after the other.

    Outside the main thread, where Python delivers no signals, the wish never comes true.
    """
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    handlers = {number: signal.getsignal(number) for number in HEEDED}
    before = {number: handler for number, handler in handlers.items() if handler is not None}
    if hasattr(signal, "SIGHUP") and before.get(signal.SIGHUP) is signal.SIG_IGN:
        del before[signal.SIGHUP]

    def note(number: int, frame: FrameType | None) -> None:
        if wish.signal is None:
            wish.signal = number
        if signal.SIGINT in before:
            signal.signal(signal.SIGINT, before[signal.SIGINT])

    try:
        for number in before:
            signal.signal(number, note)
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
