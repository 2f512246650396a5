"""Whether the other processes of a run are still there, asked by a thread while the main one waits inside a device.

Over gloo a process learns at its next exchange that another has ended. With GPUs it may by then wait in a kernel of
NCCL for what the other will never send. Python runs no signal handler there, so that SIGTERM does not reach it;
torchrun kills it once the time is over that a checkpoint may take, and other launchers wait for NCCL's own timeout.
Here a thread looks every few seconds, and ends the process when it has not ended by itself after a while.

Two signs say that a process has ended before its time: what it told in the store that all of them share, wherever it
ran; and, for those on this machine, that the system does not have it any more, which is how SIGKILL looks.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

#: How long a process that lost another gets to end in order.
GRACE = timedelta(seconds=60)
#: How often it is asked whether all are there.
LOOK = timedelta(seconds=2)
#: Key in the store: some process has ended with a message of its own.
ENDED = "vlsi/ended"

_working = threading.Event()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let work that no other process takes part in, such as writing a checkpoint, come to its end first."""
    outer = _working.is_set()
    _working.set()
    try:
        yield
    finally:
        if not outer:
            _working.clear()


def _end() -> None:
    """By SIGKILL, as the launcher would: it then tells which process ended first, and why."""
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def watch(store: Any, rank: int, size: int, end: Callable[[], None] = _end) -> threading.Event:
    """From here on, end this process when another one has ended and this one has not within :data:`GRACE`.

    Args:
        store: torch's, the same for all processes, which are all here.
        rank: number of this process.
        size: how many there are.
        end: ends this process.

    Returns:
        What is to be set when processes may end as they like.
    """
    own = _self()
    store.set(_key(rank), json.dumps(own))
    others = [json.loads(found) for found in store.multi_get([_key(n) for n in range(size) if n != rank])]
    near = [other[1:] for other in others if own is not None and other is not None and other[0] == own[0]]
    over = threading.Event()

    def look() -> None:
        lost = None
        while not over.wait(LOOK.total_seconds()):
            if lost is None and (any(_is_gone(*other) for other in near) or _has_ended(store)):
                lost = time.monotonic()
            if lost is not None and time.monotonic() - lost > GRACE.total_seconds() and not _working.is_set():
                end()
                return

    threading.Thread(target=look, name="peers", daemon=True).start()
    return over


def _key(rank: int) -> str:
    return f"vlsi/process/{rank}"


def _has_ended(store: Any) -> bool:
    try:
        return bool(store.check([ENDED]))
    except RuntimeError:  # whoever keeps the store has ended; the launcher's end is looked for elsewhere
        return False


def _self() -> tuple[str, int, str] | None:
    """What numbers processes here, this one's number, and when it began; None where the system does not say.

    Containers number their processes each for itself, and may still call themselves by one name.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        state = _state(os.getpid())
        return (
            None if state is None else (f"{boot} {os.readlink('/proc/self/ns/pid')}", os.getpid(), state[1])
        )
    except OSError:
        return None


def _state(pid: int) -> tuple[str, str] | None:
    """Linux's letter for the state of a process, and when it began, in its own ticks; None: there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], fields[19]


def _is_gone(pid: int, began: str) -> bool:
    state = _state(pid)
    return state is None or state[0] in "ZX" or state[1] != began
