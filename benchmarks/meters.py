"""How a benchmark takes time and memory on the machine that it runs on: a processor, or a CUDA device."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch


class Meter(Protocol):
    """Seconds of a call, and the most memory that it took beyond what was there."""

    def seconds(self, function: Callable[[], object]) -> float:
        """Seconds of a call."""

    def reset_peak(self) -> int:
        """Give back what the allocator keeps in case, forget the peak so far; bytes in use now."""

    def peak_bytes(self) -> int:
        """Most bytes in use since :meth:`reset_peak`."""


class HostMeter:
    """Processor seconds of this process, which a busy machine changes little, and its resident bytes."""

    def seconds(self, function: Callable[[], object]) -> float:
        """Processor seconds of a call."""
        start = time.process_time()
        function()
        return time.process_time() - start

    def reset_peak(self) -> int:
        """Resident bytes, after the allocator has given back what it can."""
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")

    def peak_bytes(self) -> int:
        """Most resident bytes since then."""
        return _status("VmHWM")


class CudaMeter:
    """Seconds between two events on the current CUDA stream, and the allocator's own count of bytes."""

    def seconds(self, function: Callable[[], object]) -> float:
        """Seconds on the device, all its work done."""
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        function()
        stop.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(stop)) / 1000

    def reset_peak(self) -> int:
        """Allocated bytes."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())

    def peak_bytes(self) -> int:
        """Most allocated bytes since then."""
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated())


def meter_for(device: str) -> Meter:
    """The meter of a device; a GPU becomes the current one, whose events and bytes torch counts by default."""
    if torch.device(device).type != "cuda":
        return HostMeter()
    torch.cuda.set_device(torch.device(device).index or 0)
    return CudaMeter()


def device_name(device: str) -> str:
    """What a page calls the device."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "cpu"


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: this measurement needs Linux")
