"""Which process is at which run, so that any number of them share one grid."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from pathlib import Path

from benchmarks.proof.settings import Run


class Claims:
    """A lock a run: one byte of a file, at a place made from the run. It goes with the process that holds it.

    Args:
        file: the lock file; nothing is ever written into it.
    """

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)

    def take(self, run: Run) -> bool:
        """Whether the run is ours now; False while another process is at it."""
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(run))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            return False
        return True

    def release(self, run: Run) -> None:
        """Give the run free."""
        fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, _place(run))


def _place(run: Run) -> int:
    """A byte offset below 2^48, where no two of some hundred runs meet by chance."""
    text = json.dumps(run.to_json(), sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
