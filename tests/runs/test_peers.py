"""A process that waits where no signal reaches it, as in a kernel of NCCL, ends when another one has ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import HashStore

from vlsi_cli.engine import peers

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")


@pytest.mark.parametrize("how", ["killed-writes", "fails"])
def test_it_does_not_wait_for_ever(tmp_path: Path, how: str) -> None:
    """But what it is writing alone it writes to the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = tmp_path / "checkpoint"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.runs.stuck", how, str(file)],
            cwd=ROOT,
            env=os.environ
            | {"RANK": str(n), "LOCAL_RANK": str(n), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stderr=subprocess.DEVNULL,
        )
        for n in range(2)
    ]
    try:
        codes = [process.wait(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes[0] == -signal.SIGKILL
    assert codes[1] == (1 if how == "fails" else -signal.SIGKILL)
    assert file.exists() == ("writes" in how)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "LOOK", timedelta(seconds=0.02))
    monkeypatch.setattr(peers, "GRACE", timedelta(seconds=0.1))


@pytest.mark.usefixtures("quick")
def test_nobody_is_ended_while_all_are_there() -> None:
    store, ended = HashStore(), threading.Event()
    store.set(peers._key(1), "null")  # on a system that does not say who is there
    over = peers.watch(store, 0, 2, ended.set)
    assert not ended.wait(0.4)
    over.set()
    store.set(peers.ENDED, "1")
    assert not ended.wait(0.4)  # it had its word before


@pytest.mark.usefixtures("quick")
def test_work_of_one_process_is_not_cut_short() -> None:
    store, ended = HashStore(), threading.Event()
    store.set(peers._key(1), "null")
    store.set(peers.ENDED, "1")
    with peers.undisturbed():
        with peers.undisturbed():
            peers.watch(store, 0, 2, ended.set)
        assert not ended.wait(0.4)
    assert ended.wait(10)


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
