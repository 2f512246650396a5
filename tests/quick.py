"""What makes tests quick and hides nothing from them: no waiting for disks, no searching through imports."""

from __future__ import annotations

import gc
import os
from typing import Any

#: The system's own.
real_fsync = os.fsync


def _asked(handle: Any) -> None:
    """In place of ``fsync``: an error for what is no open file, and no wait.

    A tiny run flushes more than a hundred files and folders, and on a busy disk that is a third of its time. What is
    lost is a test of a power cut, which none of them stages.
    """
    os.fstat(handle if isinstance(handle, int) else handle.fileno())


def do_not_wait() -> None:
    """Wait for no disk from here on, in this process and its forks."""
    os.fsync = _asked


def set_aside() -> None:
    """Leave what the imports made, and nothing will free, out of every later search for garbage.

    Each stage of a run and each loaded model asks for one, which otherwise walks over some 400,000 objects of torch and
    transformers: nearly half the time of a tiny run.
    """
    gc.collect()
    gc.freeze()
