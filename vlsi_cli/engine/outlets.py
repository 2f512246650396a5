"""What the name of something to be written stands for: a file of its own, a link to one, a device or a stream."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def linked(target: Path) -> Path:
    """What a symbolic link leads to, there or not; any other path as it is.

    Raises:
        OSError: it leads in a circle.
    """
    if not target.is_symlink():
        return target
    found = Path(os.path.realpath(target))
    if found.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(target))
    return found


def is_outlet(target: Path) -> bool:
    """Whether this is the name of a device, a pipe, or a stream of this process: written into, and never replaced."""
    path = target.absolute()
    try:
        mode = path.stat().st_mode
        names = [path, path.parent / path.readlink()] if path.is_symlink() else [path]
    except OSError:  # not there
        return False
    if stat.S_ISDIR(mode):
        return False
    return not stat.S_ISREG(mode) or any(name.parent.resolve().is_relative_to("/proc") for name in names)
