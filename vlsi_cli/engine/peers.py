"""Whether the other processes of a run are still there, asked by a thread while the main one waits inside a device.

Over gloo a process learns at its next exchange that another has ended. With GPUs it may by then wait in a kernel of
NCCL for what the other will never send. Python runs no signal handler there, so that SIGTERM does not reach it;
torchrun kills it once the time is over that a checkpoint may take, and other launchers wait for NCCL's own timeout.
Here a thread looks every few seconds, and ends the process when it has not ended by itself after a while.

Three signs say that a process has ended before its time: what it told in the store that all of them share, wherever it
ran; for those on this machine, that the system does not have it any more, which is how SIGKILL looks; and for other
machines, that nothing has been heard of one for :data:`SILENCE`. A machine that loses its power or its network closes
no connection: whoever waits for it would wait for hours.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from vlsi_cli.errors import ProcessError

#: How long a process that lost another gets to end in order; and while they still find each other, which no signal
#: interrupts either, as when Ctrl-C came just then.
GRACE, BEGINNING = timedelta(seconds=60), timedelta(seconds=15)
#: How often it is asked whether all are there.
LOOK = timedelta(seconds=2)
#: How long nothing may be heard of another machine, or of the store: a switch may start anew meanwhile.
SILENCE = timedelta(minutes=5)
#: A thread that looks every few seconds and did not for so long was stopped with its process, as schedulers stop jobs.
STOPPED = timedelta(seconds=30)
#: How long processes wait for the last one to be started, as torchrun's own rendezvous does.
COMING = timedelta(minutes=10)
#: How long one waits for a thread that is in the middle of a question: it may never get an answer.
ANSWER = timedelta(seconds=5)
#: How often a process that is done asks whether the others are, at first and in the long run.
DONE = timedelta(seconds=0.02), timedelta(seconds=1)
#: Key in the store: some process has ended with a message of its own; the value is its number.
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


def meet(store: Any, rank: int, size: int) -> None:
    """Come back when every process of the run has come here.

    Raises:
        ProcessError: some have not within :data:`COMING`, or nobody keeps the store any more.
    """
    store.set(_beat(rank), "0")
    store.set(_key(rank), json.dumps(_self()))
    missing, end = set(range(size)) - {rank}, time.monotonic() + COMING.total_seconds()
    while missing:
        missing = {number for number in missing if not store.check([_key(number)])}
        if missing and time.monotonic() > end:
            raise ProcessError(
                f"of the {size} processes of this run, {_numbers(missing)} did not come within "
                f"{_minutes(COMING)}",
                hint="look at what their machines say; each needs the same command, and a launcher of its own",
            )
        if missing:
            time.sleep(0.2)


def part(store: Any, rank: int, size: int) -> None:
    """Come back when every process has come here, or one has ended before its time.

    Whoever is done waits here for the others: the first may be writing its report, or waiting for a judge, for longer
    than :data:`GRACE`, and one that is gone would be taken for lost meanwhile (see :func:`watch`).
    """
    pause, longest = (each.total_seconds() for each in DONE)
    try:
        store.set(_done(rank), "1")
        near, _ = _neighbours(store, rank, size)
        while not (
            store.check([_done(number) for number in range(size)])
            or store.check([ENDED])
            or any(_is_gone(*other) for other in near.values())
        ):
            time.sleep(pause)
            pause = min(2 * pause, longest)
    except RuntimeError:  # whoever keeps the store has ended, or cannot be reached
        return


def _neighbours(store: Any, rank: int, size: int) -> tuple[dict[int, Any], list[Any]]:
    """The processes of this machine, and what tells each one's machine from others; all have :func:`met <meet>`."""
    known = [json.loads(found) for found in store.multi_get([_key(number) for number in range(size)])]
    machines = [each[0] if each is not None else number for number, each in enumerate(known)]
    near = {
        number: each[1:]
        for number, each in enumerate(known)
        if each is not None and machines[number] == machines[rank]
    }
    return near, machines


def _numbers(missing: set[int]) -> str:
    found = sorted(missing)
    if len(found) > 1 and found[-1] - found[0] == len(found) - 1:
        return f"numbers {found[0]} to {found[-1]}"
    return f"number{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"


def _minutes(time: timedelta) -> str:
    seconds = time.total_seconds()
    return f"{seconds / 60:.0f} minutes" if seconds >= 60 else f"{seconds:g} seconds"


def end(problem: ProcessError | None, say: Callable[[], object]) -> None:
    """By SIGKILL, as the launcher would, which then tells which process ended first, and why; or with what is told."""
    if problem is not None:
        # a terminal that is gone must not keep it, nor one that takes nothing more, which the main thread may wait for
        def try_to_say() -> None:
            with suppress(Exception):
                say()

        telling = threading.Thread(target=try_to_say, daemon=True)
        telling.start()
        telling.join(ANSWER.total_seconds())
        os._exit(problem.exit_code)
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


class _Shared:
    """What a thread last found in the store; it may wait there for ever when the network is gone, so another one acts.

    Args:
        store: torch's, the same for all processes.
        rank: number of this process, if it speaks for its machine; else None.
        others: numbers of those that speak for the other machines.
    """

    def __init__(self, store: Any, rank: int | None, others: list[int]) -> None:
        self._store, self._rank = store, rank
        self._heard = dict.fromkeys(others, (b"0", 0.0))
        self._beats = 0
        self.ended: int | None = None
        self.begin_anew()

    def begin_anew(self) -> None:
        """Take all to have been heard of just now: this process could not listen meanwhile."""
        now = self._answered = time.monotonic()
        self._heard = {other: (value, now) for other, (value, _) in self._heard.items()}

    def ask(self) -> bool:
        """One round; whether there is any use in another one."""
        try:
            if self.ended is None and self._store.check([ENDED]):
                self.ended = int(self._store.get(ENDED))
            if self._rank is not None:
                self._beats += 1
                self._store.set(_beat(self._rank), str(self._beats))
                found = self._store.multi_get([_beat(other) for other in self._heard])
                for other, value in zip(self._heard, found, strict=True):
                    if self._heard[other][0] != value:
                        self._heard[other] = (value, time.monotonic())
        except RuntimeError:
            # whoever keeps the store has ended, or cannot be reached; torch does not connect again
            return False
        self._answered = time.monotonic()
        return True

    def silent(self, now: float) -> str | None:
        """Who has not been heard of for too long.

        Args:
            now: the moment of which it is known that this process was not stopped just before.
        """
        if self._rank is None:
            return None
        oldest = now - SILENCE.total_seconds()
        if self._answered < oldest:
            return "the process that all others meet at"
        lost = [other for other, (_, when) in self._heard.items() if when < oldest]
        return f"the machine of process {min(lost)}" if lost else None


def watch(
    store: Any,
    rank: int,
    size: int,
    end: Callable[[ProcessError | None], None],
    begun: Callable[[], bool] = lambda: True,
) -> Callable[[], None]:
    """From here on, end this process when another one has ended and this one has not within :data:`GRACE`.

    Likewise when nothing was heard of another machine for :data:`SILENCE`; a process of each speaks for all of it.

    Args:
        store: torch's, the same for all processes, which have :func:`met <meet>`.
        rank: number of this process.
        size: how many there are.
        end: ends this process; given what is to be said, or None where others say it.
        begun: whether this process has anything to end in order.

    Returns:
        What is to be called when processes may end as they like; the interpreter calls it when it ends.
    """
    near, machines = _neighbours(store, rank, size)
    speakers = [number for number, each in enumerate(machines) if machines.index(each) == number]
    speaks = rank in speakers and len(speakers) > 1
    over = threading.Event()
    shared = _Shared(store, rank if speaks else None, [number for number in speakers if number != rank])

    def ask() -> None:
        while not over.wait(LOOK.total_seconds()) and shared.ask():
            pass

    def look() -> None:
        lost, before = None, time.monotonic()
        while not over.wait(LOOK.total_seconds()):
            now = time.monotonic()
            if now - before > STOPPED.total_seconds():
                shared.begin_anew()
            before = now
            if lost is None and (
                shared.ended is not None or any(_is_gone(*other) for other in near.values())
            ):
                lost = now
            if _working.is_set():
                continue
            if (who := shared.silent(now)) is not None:
                end(_lost(f"{who} has not been heard of for {_minutes(SILENCE)}"))
                return
            if lost is not None and now - lost > (GRACE if begun() else BEGINNING).total_seconds():
                far = speaks and shared.ended is not None and machines[shared.ended] != machines[rank]
                end(_lost(f"process {shared.ended}, on another machine, has ended") if far else None)
                return

    threads = [
        threading.Thread(target=work, name=f"peers that {work.__name__}", daemon=True) for work in (ask, look)
    ]

    def stop() -> None:
        # A thread that comes back from torch's C++ when the interpreter is gone takes the process with it (SIGABRT).
        over.set()
        for thread in threads:
            thread.join(ANSWER.total_seconds())
        if not any(thread.is_alive() for thread in threads):  # else the end of the process waits once more
            atexit.unregister(stop)

    atexit.register(stop)
    for thread in threads:
        thread.start()
    return stop


def _lost(what: str) -> ProcessError:
    return ProcessError(
        f"{what}, and the run cannot go on without it",
        hint="see what that machine says, and the network; then go on from the last checkpoint",
    )


def _key(rank: int) -> str:
    return f"vlsi/process/{rank}"


def _done(rank: int) -> str:
    return f"vlsi/done/{rank}"


def _beat(rank: int) -> str:
    return f"vlsi/beat/{rank}"


def children_ended() -> list[int] | None:
    """The exit codes of all children that nobody has asked how they ended, oldest first; Linux only.

    None where there are none, or one is still there. A signal that ended one is its number, negative.
    """
    try:
        files = Path("/proc/self/task").glob("*/children")
        children = sorted(int(child) for file in files for child in file.read_text("ascii").split())
        states = [_state(child) for child in children]
        if not states or any(state is None or state[0] != "Z" for state in states):
            return None
        found = [os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) for child in children]
    except OSError:  # one has been asked for meanwhile
        return None
    ended = [each for each in found if each is not None]
    return [each.si_status if each.si_code == os.CLD_EXITED else -each.si_status for each in ended] or None


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
