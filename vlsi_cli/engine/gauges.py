"""What a device is busy with: seconds of a part of its work, and bytes in use. Cheap enough for every step."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_GROUPS = Path("/proc/self/cgroup")
_GROUP_FILES = Path("/sys/fs/cgroup")


class DeviceClock:
    """Adds up the time that a device spends on marked blocks.

    On CUDA by a pair of events in the stream, which makes nobody wait; they are read in :meth:`take`, when the step's
    loss has been read and the work is done anyway. Elsewhere by the host's clock.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._pairs: list[tuple[Any, Any]] = []
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the block."""
        if self._cuda is None:
            began = time.perf_counter()
            try:
                yield
            finally:
                self._seconds += time.perf_counter() - began
            return
        stream = torch.cuda.current_stream(self._cuda)
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record(stream)
        yield
        last.record(stream)
        self._pairs.append((first, last))

    def take(self) -> float:
        """Seconds since the last call; the count begins anew."""
        for first, last in self._pairs:
            last.synchronize()
            self._seconds += first.elapsed_time(last) / 1e3
        seconds, self._seconds, self._pairs = self._seconds, 0.0, []
        return seconds


def memory_in_use(device: torch.device) -> int | None:
    """Bytes held now: tensors on a CUDA or MPS device, elsewhere what is resident of this process; None: unknown."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return int(torch.mps.current_allocated_memory())
    return _status("VmRSS")


def peak_memory(device: torch.device) -> int | None:
    """The most bytes held so far: on CUDA since :func:`forget_peak`, elsewhere by this process in its life.

    None on MPS, which keeps no such count, and where the system tells nothing.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return None
    known = _status("VmHWM")
    if known is not None or sys.platform == "win32":
        return known
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def forget_peak(device: torch.device) -> None:
    """Begin a new count of the peak, where the device allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def host_memory() -> int | None:
    """Bytes of host memory that this process may have in all: the machine's, or what its control groups allow of it.

    A container or a job of a scheduler is such a group. None: the system does not say.
    """
    whole = machine_memory()
    return min([*_control_groups(), *([] if whole is None else [whole])], default=None)


def machine_memory() -> int | None:
    """Bytes of memory that the machine has in all, whoever may use them; None: the system does not say."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _control_groups() -> list[int]:
    """Limits of this process's control group and of those around it, of Linux's version 2 or 1."""
    found: list[int] = []
    try:
        lines = _GROUPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (
            (_GROUP_FILES / "memory", "memory.limit_in_bytes")
            if controllers
            else (_GROUP_FILES, "memory.max")
        )
        group = top / path.lstrip("/")
        for each in (group, *group.parents[: len(group.parts) - len(top.parts)]):
            with suppress(OSError, ValueError):  # no such limit, or the word "max"
                found.append(int((each / name).read_text("ascii")))
    return found


def _status(name: str) -> int | None:
    """A line of Linux's account of this process, in bytes."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith(f"{name}:")), None)
    return None if found is None else 1024 * int(found)
