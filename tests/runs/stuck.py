"""Two processes for ``test_peers.py``: the second ends before its time, the first waits where no signal reaches it.

``python -m tests.runs.stuck HOW FILE`` as one of two processes. ``HOW`` is how the second ends: ``killed``, or
``fails`` with an error of its own. With ``writes`` behind it the first is at work alone then, and leaves ``FILE``. Or
it is ``done``, in order, while the first has something left to do.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch

from vlsi_cli.engine import peers, processes
from vlsi_cli.errors import DataError


def wait_inside() -> None:
    """As in a kernel of NCCL: outside of Python, and signals go to another thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ctypes.CDLL(None).pause()


def main() -> None:
    how, file = sys.argv[1].split("-"), Path(sys.argv[2])
    peers.LOOK, processes.MOMENT = timedelta(seconds=0.1), timedelta(seconds=0.2)
    if processes.is_first():
        peers.GRACE = timedelta(seconds=0.3)

    with processes.joined(torch.device("cpu")):
        processes.wait()
        if "done" in how:
            if processes.is_first():
                time.sleep(2)
                file.write_text("whole", encoding="ascii")
            return
        if processes.is_first():
            if "writes" in how:
                with peers.undisturbed():
                    time.sleep(1.5)
                    file.write_text("whole", encoding="ascii")
            wait_inside()
        if "killed" in how:
            os.kill(os.getpid(), signal.SIGKILL)
        raise DataError("the second process has no data")


if __name__ == "__main__":
    main()
