"""Whether there is a place for what is going to be written, asked before the work."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from vlsi_cli.engine.files import writing
from vlsi_cli.engine.outlets import is_outlet, linked
from vlsi_cli.errors import OutputError

#: Bytes that are written, and gone at once, to see whether a disk takes any.
_PROBE = 4096


def require_writable(target: Path) -> None:
    """Refuse, before the work, a file that could not be written after it; nothing is left there.

    Raises:
        OutputError: it is a folder, or a device or pipe that may not be written; the nearest folder that exists is none
            or may not be written; or its disk is full.
    """
    if target.is_dir():
        raise OutputError(f"{target} cannot be written: it is a folder", hint="give the name of a file")
    if is_outlet(target):
        if not os.access(target, os.W_OK):  # whoever reads a pipe would take its opening for its end
            raise OutputError(f"{target} cannot be written: it may not be")
        return
    with writing(target):
        place = linked(target)
    above = next(folder for folder in place.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "is not a folder" if not above.is_dir() else "may not be written"
        raise OutputError(f"{target} cannot be written: {above} {why}")
    # permissions do not tell of a full disk, a quota, or what a server allows
    with writing(target), tempfile.TemporaryFile(dir=above) as probe:
        probe.write(bytes(_PROBE))
        probe.flush()
        os.fsync(probe.fileno())


def require_space(target: Path, needed: int, what: str) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        target: an existing folder on the disk.
        needed: bytes.
        what: what they are for, to follow "for".

    Raises:
        OutputError: less is free.
    """
    free = shutil.disk_usage(target).free
    if free < needed:
        has, lacks = (f"{count / 2**30:.2f} GiB" for count in (free, needed))
        raise OutputError(
            f"{target} is on a disk with {has} free, and {lacks} are needed for {what}",
            hint="free some space, or choose another disk with --output",
        )
