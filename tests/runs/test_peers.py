"""A process that waits where no signal reaches it, as in a kernel of NCCL, ends when another one has ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore, TCPStore

from tests.ports import free_port
from vlsi_cli.engine import peers
from vlsi_cli.errors import ProcessError

#: A process of another machine, as it says of itself.
ELSEWHERE = ("another boot pid:[1]", 1, "1")
ROOT = Path(__file__).parents[2]
#: Seconds for what comes at once, however busy the machine is.
WAIT = 120
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")


def two(how: str, file: Path) -> list[int]:
    """How two processes of ``stuck.py`` end."""
    port = str(free_port())
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.runs.stuck", how, str(file)],
            cwd=ROOT,
            env=os.environ
            | {"RANK": str(n), "LOCAL_RANK": str(n), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stderr=subprocess.DEVNULL,
        )
        for n in range(2)
    ]
    try:
        return [process.wait(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()


@pytest.mark.parametrize("how", ["killed-writes", "fails"])
def test_it_does_not_wait_for_ever(tmp_path: Path, how: str) -> None:
    """But what it is writing alone it writes to the end."""
    file = tmp_path / "checkpoint"
    codes = two(how, file)
    assert codes[0] == -signal.SIGKILL
    assert codes[1] == (1 if how == "fails" else -signal.SIGKILL)
    assert file.exists() == ("writes" in how)


def test_one_that_is_done_waits_for_the_first_to_be_done(tmp_path: Path) -> None:
    """Which writes the report, or asks a judge for hours; it must not take the other for lost meanwhile."""
    assert two("done", tmp_path / "report") == [0, 0]
    assert (tmp_path / "report").read_text("ascii") == "whole"


def test_the_end_of_a_process_does_not_meet_a_question() -> None:
    """A thread that is in torch's C++ when the interpreter goes away would end the process by SIGABRT, not in order."""
    program = (
        "from datetime import timedelta; from torch.distributed import TCPStore; from vlsi_cli.engine import peers;"
        "peers.LOOK = timedelta(0); store = TCPStore('127.0.0.1', 0, 1, True);"
        "peers.meet(store, 0, 1); peers.watch(store, 0, 1, lambda problem: None)"
    )
    for _ in range(3):
        ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "LOOK", timedelta(seconds=0.02))
    monkeypatch.setattr(peers, "GRACE", timedelta(seconds=0.1))


class End(threading.Event):
    """What would end the process, and what was to be said."""

    problem: ProcessError | None = None

    def __call__(self, problem: ProcessError | None) -> None:
        self.problem = problem
        self.set()


def met(other: object) -> HashStore:
    """A store in which both of two processes have met; ``other``: who the second is."""
    store = HashStore()
    store.set(peers._beat(1), "0")
    store.set(peers._key(1), json.dumps(other))
    peers.meet(store, 0, 2)
    return store


@pytest.mark.usefixtures("quick")
def test_nobody_is_ended_while_all_are_there() -> None:
    ended = End()
    store = met(None)  # on a system that does not say who is there
    stop = peers.watch(store, 0, 2, ended)
    assert not ended.wait(0.4)
    stop()
    store.set(peers.ENDED, "1")
    assert not ended.wait(0.4)  # it had its word before


class Clock:
    """What the processes take for the time: it goes on when the test says so, and not while a busy machine halts."""

    sleep = time.sleep

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, quick: None) -> Clock:
    made = Clock()
    monkeypatch.setattr(peers, "time", made)
    return made


def asked_anew(store: Any) -> int:
    """Come back when a round of questions has begun and ended; how many there were."""
    before, end = int(store.get(peers._beat(0))), time.monotonic() + WAIT
    while (now := int(store.get(peers._beat(0)))) < before + 2:
        assert time.monotonic() < end, "this process gives no sign of life"
        time.sleep(0.01)
    return now


def test_a_machine_that_is_not_heard_of(clock: Clock) -> None:
    """As when it lost its power or its network: no connection is closed, and no word left."""
    ended, store = End(), met(ELSEWHERE)
    step = peers.STOPPED.total_seconds() - 1
    peers.watch(store, 0, 2, ended)
    for beat in range(1, 16):
        store.set(peers._beat(1), str(beat))
        asked_anew(store)  # this machine is heard of there
        clock.now += step
    assert not ended.wait(0.2)
    begun = clock.now
    while not ended.wait(0.05):
        asked_anew(store)
        clock.now += step
    assert clock.now - begun > peers.SILENCE.total_seconds() - 2 * step
    assert "machine of process 1 has not been heard of for 5 minutes" in str(ended.problem)


def test_a_process_that_was_stopped_listens_anew(clock: Clock) -> None:
    """A scheduler stops all processes of a job and lets them go on: by the clock none was heard of for hours."""
    ended, store = End(), met(ELSEWHERE)
    stop = peers.watch(store, 0, 2, ended)
    for _ in range(3):
        asked_anew(store)
        clock.now += 10_000
        assert not ended.wait(0.2)
    stop()


@pytest.mark.usefixtures("quick")
def test_one_that_waits_in_the_store_is_still_heard_of() -> None:
    """Whoever waits over a connection keeps others from it: signs of life go over one of their own (`processes`)."""
    store = TCPStore("127.0.0.1", 0, 1, True, timeout=timedelta(seconds=WAIT), wait_for_workers=False)
    for number, who in enumerate((peers._self(), ELSEWHERE)):
        store.set(peers._beat(number), "0")
        store.set(peers._key(number), json.dumps(who))
    far, own = store.clone(), store.clone()
    stop = peers.watch(own.clone(), 0, 2, End())
    waiting = threading.Thread(target=own.wait, args=(["what comes late"], timedelta(seconds=WAIT)))
    waiting.start()
    for _ in range(5):
        asked_anew(far)
    assert waiting.is_alive()
    far.set("what comes late", "1")
    waiting.join()
    stop()


@pytest.mark.usefixtures("quick")
def test_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its machine may be gone, and whoever asks it waits."""
    monkeypatch.setattr(peers, "SILENCE", timedelta(seconds=0.3))
    ended, held = End(), threading.Event()

    class Mute:
        """A store whose every answer is waited for once all have met."""

        def __init__(self, store: HashStore) -> None:
            self.multi_get = store.multi_get

        def check(self, keys: list[str]) -> bool:
            held.wait(WAIT)
            raise RuntimeError("the connection is closed")

    peers.watch(Mute(met(ELSEWHERE)), 0, 2, ended)
    assert ended.wait(WAIT)
    held.set()
    assert "the process that all others meet at has not been heard of" in str(ended.problem)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("far", [True, False])
def test_one_that_told_why_it_ended(far: bool) -> None:
    """On another machine nobody hears what it said: what is to be read there is told here."""
    own = peers._self()
    ended, store = End(), met(ELSEWHERE if far else own)
    store.set(peers.ENDED, "1")
    peers.watch(store, 0, 2, ended)
    assert ended.wait(WAIT)
    assert ("process 1, on another machine, has ended" in str(ended.problem)) == far
    assert (ended.problem is None) != far


@pytest.mark.parametrize("begun", [True, False])
def test_one_that_has_not_begun_is_ended_sooner(monkeypatch: pytest.MonkeyPatch, begun: bool) -> None:
    """Ctrl-C while processes find each other reaches those only that do not wait for another just then."""
    monkeypatch.setattr(peers, "LOOK", timedelta(seconds=0.02))
    monkeypatch.setattr(peers, "BEGINNING", timedelta(0))
    ended, store = End(), met(peers._self())
    store.set(peers.ENDED, "1")
    stop = peers.watch(store, 0, 2, ended, lambda: begun)
    assert ended.wait(0.4 if begun else WAIT) == (not begun)
    stop()


def test_processes_that_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "COMING", timedelta(seconds=0.1))
    store = HashStore()
    store.set(peers._key(1), "null")
    with pytest.raises(ProcessError, match="of the 2 processes of this run, number 0 did not come within"):
        peers.meet(store, 1, 2)
    with pytest.raises(ProcessError, match="of the 4 processes of this run, numbers 2 to 3 did not come"):
        peers.meet(store, 0, 4)


@pytest.mark.usefixtures("quick")
def test_work_of_one_process_is_not_cut_short() -> None:
    ended, store = End(), met(None)
    store.set(peers.ENDED, "1")
    with peers.undisturbed():
        with peers.undisturbed():
            peers.watch(store, 0, 2, ended)
        assert not ended.wait(0.4)
    assert ended.wait(WAIT)


def test_who_is_gone() -> None:
    own = peers._self()
    assert own is not None
    assert not peers._is_gone(*own[1:])
    assert peers._is_gone(own[1], "0")  # another process has its number now
    child = subprocess.Popen([sys.executable, "-c", ""])
    state = None
    while state is None or state[0] != "Z":  # it has ended, and nobody has asked how
        state = peers._state(child.pid)
        time.sleep(0.01)
    assert peers._is_gone(child.pid, state[1])
    child.wait()
    assert peers._is_gone(child.pid, state[1])


def test_a_terminal_that_takes_nothing_more_does_not_keep_a_process() -> None:
    """As under a pager: the main thread may be waiting for it, with its hand on all that can be said."""
    program = (
        "import threading; from datetime import timedelta; from vlsi_cli.engine import peers;"
        "from vlsi_cli.errors import ProcessError; peers.ANSWER = timedelta(seconds=0.2);"
        "peers.end(ProcessError('it is lost'), threading.Event().wait)"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, timeout=WAIT)
    assert ended.returncode == ProcessError.exit_code
