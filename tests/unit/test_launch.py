"""How a launch ends: whose exit code it takes, and the sentence where the process that speaks was killed."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from vlsi_cli.engine import processes
from vlsi_cli.engine.runs.launch import launch
from vlsi_cli.errors import ConfigError, ProcessError


@pytest.fixture(autouse=True)
def loggers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a launch sets for its own process alone."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = {name: logging.getLogger(name).level for name in list(logging.root.manager.loggerDict)}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def ended(monkeypatch: pytest.MonkeyPatch, *ends: tuple[int, int]) -> int:
    """What comes of processes that end one after the other: the number of each, and its code."""
    failures = {}
    for moment, (rank, code) in enumerate(ends):
        failures[rank] = ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file="")
        failures[rank].timestamp = moment

    def fail(_: Any) -> None:
        raise ChildFailedError("vlsi", failures)

    monkeypatch.setattr(run, "run", fail)
    return launch(2, ["eval"])


def test_the_first_process_speaks_or_the_launch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(monkeypatch, (1, 11), (0, 12)) == 11  # the first only lost the other
    assert ended(monkeypatch, (1, -9), (0, 12)) == 137  # and has said so
    with pytest.raises(ProcessError, match="process 0 of 2 was ended by SIGKILL"):
        ended(monkeypatch, (0, -9), (1, 12))  # which lost the first, and is silent
    for number, other in ((0, 1), (1, 0)):
        with pytest.raises(ProcessError, match=f"process {number} of 2 was ended by SIGKILL") as caught:
            ended(monkeypatch, (number, -9), (other, -15))
        assert "what was written is kept" in str(caught.value.hint)


def test_runs_on_one_machine_do_not_meet_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a port of their own, whatever the version of torch, unless the user names one."""
    begun: list[Any] = []
    monkeypatch.setattr(run, "run", begun.append)
    given = ([], ["--max-restarts=0"], ["--nnodes=2"], ["--master-port=1"], ["--rdzv_endpoint", "host:1"])
    assert [launch(2, ["eval"], words) for words in given] == [0] * 5
    assert [each.standalone for each in begun] == [True, True, False, False, False]


def test_what_torchrun_logs_of_an_end_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(monkeypatch, (1, 11)) == 11
    logger = logging.getLogger("torch.distributed.elastic.agent.server.api")
    assert not logger.isEnabledFor(logging.WARNING)


def test_every_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert processes.own_device(cuda, chosen=True) == cuda
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert processes.own_device(cpu, chosen=False) == cpu
    assert processes.own_device(cuda, chosen=False) == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="each of 8 processes needs a GPU of its own"):
        processes.own_device(cuda, chosen=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="process 2 of this machine has no GPU of its own: it has 1"):
        processes.own_device(cuda, chosen=False)


@pytest.mark.skipif(sys.platform != "linux", reason="children are looked for in /proc")
@pytest.mark.parametrize(
    ("ends", "code"),
    [
        (["raise SystemExit(12)", "raise SystemExit(11)"], 11),  # 12: it lost another
        (["raise SystemExit(0)", "import os; os.kill(os.getpid(), 9)"], 137),
        (
            ["raise SystemExit(12)", "import os; os.kill(os.getpid(), 9)"],
            12,
        ),  # both lost another; the first speaks
        (["raise SystemExit(0)", "raise SystemExit(0)"], 0),
    ],
)
def test_a_launcher_that_waits_for_a_lost_machine_ends_as_its_processes(ends: list[str], code: int) -> None:
    """It is in a call that does not come back, and has not asked how its processes ended."""
    program = f"""
import subprocess, sys, time
from datetime import timedelta
from vlsi_cli.engine.runs import launch
launch.STUCK, launch.LOOK = timedelta(seconds=1), timedelta(seconds=0.05)
with launch._not_stuck():
    ended = [subprocess.Popen([sys.executable, "-c", end]) for end in {ends!r}]
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"])
    other.wait()
    print("waited", flush=True)
    time.sleep(200)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=150)
    assert (done.returncode, done.stdout) == (code, "waited\n"), done.stderr
