"""Processes that do not run the main program's file again before they begin.

multiprocessing does that for the sake of what is defined there. Nothing of ours is, and a script without
``if __name__ == "__main__":`` that calls a run would start the run once more in every worker.
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
from types import ModuleType
from typing import Any

#: Elsewhere (Windows) each process starts from nothing.
FORKSERVER = "forkserver" in multiprocessing.get_all_start_methods()
_SYSTEM: Any = multiprocessing.get_context("forkserver" if FORKSERVER else "spawn")
#: Two threads would take the other's main program, which has no file, for what is to be put back.
_starting = threading.Lock()


class Apart(_SYSTEM.Process):
    """Such a process."""

    def start(self) -> None:
        """Start it; for that moment the main program has no file."""
        with _starting:
            main = sys.modules["__main__"]
            sys.modules["__main__"] = ModuleType("__main__")
            try:
                super().start()
            finally:
                sys.modules["__main__"] = main


class ApartContext(type(_SYSTEM)):  # type: ignore[misc]
    """A context of multiprocessing in which every process is such a one."""

    Process = Apart
