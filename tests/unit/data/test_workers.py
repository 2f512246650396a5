"""Worker processes change no record, no order, no count and no state; and they end when they should."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.data.kit import conversation, processor_of
from vlsi_cli.config.run import DataConfig
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.data import workers
from vlsi_cli.engine.data.records import BadRecord, Record
from vlsi_cli.engine.data.stream import RecordStream
from vlsi_cli.engine.data.template import ChatEncoder, Encoded
from vlsi_cli.engine.runs.data import reading_ahead, training_stream
from vlsi_cli.errors import DataError


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ChatEncoder:
    return ChatEncoder(processor_of("qwen2_vl", tmp_path_factory.mktemp("qwen")), max_length=200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and conversations of several lengths about them in an array and in lines; some cannot be used."""
    path = tmp_path_factory.mktemp("records")
    generator = np.random.default_rng(0)
    for number in range(6):
        size = (16 + 8 * number, 16, 3)
        Image.fromarray(generator.integers(0, 255, size, dtype=np.uint8)).save(path / f"{number}.png")
    (path / "5.png").write_bytes((path / "5.png").read_bytes()[:90])  # its header is whole
    rows = [
        {
            "messages": [
                {"role": "user", "content": "<image>What?" if number % 3 else "What?"},
                {"role": "assistant", "content": "It is red. " * (1 + number % 4)},
            ],
            "images": [f"{number % 7}.png"] if number % 3 else [],  # 6.png is not there
        }
        for number in range(20)
    ]
    (path / "array.json").write_text(json.dumps(rows[:8]))
    lines = [json.dumps(row) for row in rows[8:]]
    (path / "lines.jsonl").write_text("\n".join([*lines[:5], "{broken", *lines[5:]]))
    return path


def settings(folder: Path, **changes: Any) -> DataConfig:
    files = [{"kind": "messages", "path": folder / name} for name in ("array.json", "lines.jsonl")]
    return DataConfig.model_validate({"sources": files, **changes})


def assert_same(ours: Batch, theirs: Batch) -> None:
    assert ours.records == theirs.records
    assert ours.inputs.keys() == theirs.inputs.keys()
    assert all(torch.equal(ours.inputs[name], theirs.inputs[name]) for name in theirs.inputs)
    assert torch.equal(ours.targets, theirs.targets)
    assert ours.digests == theirs.digests


def numbered(stream: RecordStream[Any, Batch]) -> list[tuple[int, Any]]:
    """What `vlsi cache build` reads, from the fourth draw on: digests, and reasons of what cannot be used."""
    return [
        (number, item.reason if isinstance(item, BadRecord) else item.digest)
        for number, item in stream.numbered_pass(3)
    ]


@pytest.mark.parametrize("group", [0, 2])
def test_steps_states_and_counts_are_those_without_workers(
    encoder: ChatEncoder, folder: Path, group: int
) -> None:
    def open_stream(**changes: Any) -> RecordStream[Any, Batch]:
        config = settings(folder, group_by_length=group, **changes)
        return training_stream(config, encoder, seed=3, digests=True)

    plain = open_stream()
    with open_stream(workers=2) as ahead:
        states = []
        for _ in range(6):
            for ours, theirs in zip(ahead.next_step(2, 2), plain.next_step(2, 2), strict=True):
                assert_same(ours, theirs)
            states.append(json.loads(json.dumps(ahead.state_dict())))
            assert states[-1] == plain.state_dict()
        assert plain.report.skipped == 4
        # Going back forgets what was read ahead.
        ahead.load_state_dict(states[2])
        again = open_stream()
        again.load_state_dict(states[2])
        for ours, theirs in zip(ahead.next_step(2, 2), again.next_step(2, 2), strict=True):
            assert_same(ours, theirs)
        assert numbered(ahead) == numbered(plain)
        assert [item.record for item in ahead.one_pass(3)] == [item.record for item in plain.one_pass(3)]
    assert not active_children()


@pytest.mark.parametrize("shared_from", [0, 1 << 30])
def test_a_parcel_brings_what_was_put_in(shared_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SHARED_FROM", shared_from)
    tensors = {
        "pixel_values": torch.rand(7, 3),
        "image_grid_thw": torch.tensor([[1, 2, 4]]),
        "none": torch.empty(0, 2),
    }
    record = Encoded("r", torch.arange(9), torch.arange(9) > 4, None, tensors)
    brought = workers._Parcel.of(record).open()
    assert brought.record == "r"
    assert torch.equal(brought.input_ids, record.input_ids)
    assert torch.equal(brought.trained, record.trained)
    assert all(torch.equal(brought.tensors[name], tensor) for name, tensor in tensors.items())
    brought.input_ids.add_(1)  # it is its own
    assert not brought.tensors["pixel_values"].is_shared()
    bad = workers._Parcel.of(BadRecord("too-long", "9 tokens", record="r", where="f:1")).open()
    assert (bad.reason, bad.detail, bad.record, bad.where) == ("too-long", "9 tokens", "r", "f:1")


class Sleepy:
    """Records named after the process that read them; at the third something goes wrong."""

    name, size, shuffles_itself, streamed, held = "sleepy", 1000, False, False, False

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def read(self, index: int, epoch: int = 0) -> Record:
        if index == 2 and self.fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 2 and self.fault == "vanished":
            raise DataError("the data file is gone", hint="bring it back")
        if index == 2 and self.fault == "defect":
            raise ZeroDivisionError
        return conversation("Q", "A", id=f"{os.getpid()}")


def record_id(record: Record) -> str:
    return record.id


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        ("killed", DataError, "a process that reads data ended unexpectedly"),
        ("vanished", DataError, "the data file is gone"),
        ("defect", ZeroDivisionError, "^$"),
    ],
)
def test_what_goes_wrong_in_a_worker_ends_the_run(fault: str, error: type[Exception], says: str) -> None:
    with RecordStream([(Sleepy(fault), 1.0)], record_id, list, seed=0, shuffle=False, workers=1) as stream:
        with pytest.raises(error, match=says) as caught:
            stream.next_step(4)
        assert getattr(caught.value, "hint", "") is not None
    assert not active_children()


PROGRAM = """
import signal
import time
from tests.unit.data.test_workers import Sleepy, record_id
from vlsi_cli.engine.data.stream import RecordStream

if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with RecordStream([(Sleepy(""), 1.0)], record_id, list, seed=0, workers=1) as stream:
        for _ in range(5):
            told = set(stream.next_batch(8))
            try:
                print(*told, flush=True)
                time.sleep(300)
            except KeyboardInterrupt:
                pass
"""


def test_workers_end_with_the_process_that_started_them_and_not_before(tmp_path: Path) -> None:
    """Ctrl-C and what a scheduler sends to a job go to all; what to do about it is the first one's business;
    killed, it can end nobody."""
    (tmp_path / "program.py").write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        text=True,
        start_new_session=True,
    ) as main:
        assert main.stdout is not None
        assert main.stderr is not None
        before = main.stdout.readline().split()
        assert before, main.stderr.read()
        assert str(main.pid) not in before
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            os.killpg(main.pid, number)
            after = main.stdout.readline().split()
            assert after == before, main.stderr.read()
        main.kill()
        assert "Traceback" not in main.stderr.read()
    left = [Path("/proc") / pid for pid in before]
    deadline = time.monotonic() + 120
    while any(path.exists() for path in left) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [path for path in left if path.exists()]


def run_program(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What a script of its own does, to its end."""
    (folder / "program.py").write_text(text)
    return subprocess.run(
        [sys.executable, str(folder / "program.py")],
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
    )


EARLY = """
import os
import signal
from multiprocessing import forkserver
from tests.unit.data.test_workers import Sleepy, record_id
from vlsi_cli.engine.data.stream import RecordStream

if __name__ == "__main__":
    with RecordStream([(Sleepy(""), 1.0)], record_id, list, seed=0, workers=1) as stream:
        server = forkserver._forkserver._forkserver_pid
        os.kill(server, signal.SIGINT)
        assert stream.next_batch(2)
        assert server == forkserver._forkserver._forkserver_pid
"""


@pytest.mark.skipif(not workers.FORKSERVER, reason="each worker starts from nothing here")
def test_ctrl_c_while_the_server_of_workers_is_still_importing_does_not_end_it(tmp_path: Path) -> None:
    """A terminal sends it to all; the run would end with a traceback instead of a checkpoint."""
    done = run_program(EARLY, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


UNGUARDED = """
import sys
import threading
print("once")
from vlsi_cli.engine.data.apart import ApartContext
from vlsi_cli.engine.data.stream import alone
from vlsi_cli.engine.data.workers import Workers
workers = Workers(alone, 1)
print(workers.give("__call__", [3]).result())
workers.close()
starting = [threading.Thread(target=ApartContext().Process(target=str).start) for _ in range(4)]
for thread in starting:
    thread.start()
for thread in starting:
    thread.join()
assert sys.modules["__main__"].__dict__ is globals()
"""


def test_workers_do_not_run_a_script_again(tmp_path: Path) -> None:
    """Not every script says `if __name__ == "__main__"`, and that of a notebook's user cannot."""
    done = run_program(UNGUARDED, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "once\n[[3]]\n", "")


@pytest.mark.parametrize(
    ("asked", "device", "cores", "here", "found"),
    [
        (None, "cuda:1", 16, 1, 4),
        (None, "cuda:1", 16, 8, 1),
        (None, "cuda:1", 2, 4, 0),
        (None, "cpu", 16, 1, 0),
        (None, None, 16, 1, 0),
        (0, "cuda:1", 16, 1, 0),
        (3, "cpu", 2, 1, 3),
    ],
)
def test_how_many_read_where_nobody_says(
    asked: int | None, device: str | None, cores: int, here: int, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    config = DataConfig(sources=[{"kind": "patterns"}], workers=asked)  # type: ignore[list-item]
    assert reading_ahead(config, torch.device(device) if device else None) == found
