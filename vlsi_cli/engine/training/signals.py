"""Ctrl-C and SIGTERM as a wish that the loop fulfils at the end of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Wish:
    """Whether the run was asked to stop, and by which signal."""

    signal: int | None = None

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program ended by the signal: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + (self.signal or signal.SIGINT)


@contextmanager
def heed_signals() -> Iterator[Wish]:
    """Turn the first SIGINT or SIGTERM inside the block into a wish; a second one acts as it always did.

    Outside the main thread, where Python delivers no signals, the wish never comes true.
    """
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        wish.signal = number
        for each, handler in before.items():
            signal.signal(each, handler)

    try:
        for number in before:
            signal.signal(number, note)
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
