"""Tests do not wait for disks: what they lose is a test of a power cut, which none of them stages."""

from __future__ import annotations

import os
from typing import Any

#: The system's own.
real_fsync = os.fsync


def _asked(handle: Any) -> None:
    """In place of ``fsync``: an error for what is no open file, and no wait.

    A tiny run flushes more than a hundred files and folders, and on a busy disk that is a third of its time.
    """
    os.fstat(handle if isinstance(handle, int) else handle.fileno())


def do_not_wait() -> None:
    """From here on, and in forks of this process."""
    os.fsync = _asked
