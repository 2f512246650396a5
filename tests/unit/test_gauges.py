"""The clock counts marked blocks only, and memory is told in bytes."""

from __future__ import annotations

import mmap
import sys
import time
from pathlib import Path

import pytest
import torch

from vlsi_cli.engine import gauges
from vlsi_cli.engine.gauges import DeviceClock, forget_peak, host_memory, memory_in_use, peak_memory

CPU = torch.device("cpu")


def test_the_clock_adds_up_and_begins_anew() -> None:
    clock = DeviceClock(CPU)
    for _ in range(2):
        with clock.running():
            time.sleep(0.01)
    time.sleep(0.05)
    with pytest.raises(ValueError, match="inside"), clock.running():  # a failing block is counted too
        raise ValueError("inside")
    first = clock.take()
    assert first >= 0.02
    assert clock.take() == 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of a process")
def test_memory_of_the_process() -> None:
    size = 64 * 2**20
    before = memory_in_use(CPU)
    assert before is not None
    held = mmap.mmap(-1, size)  # from the system: an allocator may have as much left from the tests before
    for place in range(0, size, mmap.PAGESIZE):
        held[place] = 1
    now, peak = memory_in_use(CPU), peak_memory(CPU)
    assert now is not None
    assert peak is not None
    assert now - before >= 0.9 * size
    assert peak >= now * 0.99
    forget_peak(CPU)
    held.close()


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/a.slice/job\n", {"a.slice/memory.max": "4096\n", "a.slice/job/memory.max": "max\n"}, 4096),
        ("0::/\n", {"memory.max": "8192\n"}, 8192),
        (
            "9:cpu:/a\n4:memory,hugetlb:/a\n",
            {"memory/a/memory.limit_in_bytes": "4096\n", "a/memory.max": "1"},
            4096,
        ),
        ("0::/gone\n", {}, None),
        (None, {}, None),
    ],
    ids=["a parent's", "a container's", "version 1", "none", "not Linux"],
)
def test_memory_that_a_control_group_allows(
    groups: str | None,
    files: dict[str, str],
    limit: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    if groups is not None:
        (tmp_path / "cgroup").write_text(groups)
    monkeypatch.setattr(gauges, "_GROUP_FILES", tmp_path / "fs")
    monkeypatch.setattr(gauges, "_GROUPS", tmp_path / "nothing")
    whole = host_memory()
    assert whole is None or whole > 2**20
    monkeypatch.setattr(gauges, "_GROUPS", tmp_path / "cgroup")
    assert host_memory() == (limit or whole)


@pytest.mark.gpu
def test_events_measure_the_device_and_not_the_host() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    clock, x = DeviceClock(device), torch.randn(4096, 4096, device=device)
    torch.cuda.synchronize()
    with clock.running():
        for _ in range(20):
            x = x @ x / 64
    began = time.perf_counter()
    seconds = clock.take()
    waited = time.perf_counter() - began
    assert 0 < seconds < waited + 1.0
    assert clock.take() == 0.0
    forget_peak(device)
    peak, held = peak_memory(device), memory_in_use(device)
    assert peak is not None
    assert held is not None
    assert peak >= held >= x.numel() * 4
