"""What the machine refuses and nobody knew a better word for: memory, space, rights, names, a folder that is gone."""

from __future__ import annotations

import errno
import os
import sys

from vlsi_cli.errors import (
    SMALLER,
    ConfigError,
    OutputError,
    TrainingError,
    VlsiError,
    first_line,
    is_out_of_memory,
)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EIO, errno.ESTALE)
#: Letters of a name that are shown.
_SHOWN = 200


def refusal(error: Exception) -> VlsiError | None:
    """What to say of an error that is the machine's; None for one that may be a defect."""
    problem: VlsiError | None = None
    if is_out_of_memory(error):
        problem = TrainingError(f"memory ran out: {first_line(error)}", hint=SMALLER)
    elif isinstance(error, OSError) and error.errno in _FULL:
        problem = OutputError(f"{_name(error) or 'a file'} cannot be written: no space is left on the disk")
    elif isinstance(error, OSError) and error.errno in _REFUSED and _name(error):
        problem = VlsiError(f"{_name(error)} cannot be used: {error.strerror}")
    elif isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        problem = VlsiError(
            "too many files are open",
            hint="raise the limit (ulimit -n), or take fewer workers (data.workers)",
        )
    elif isinstance(error, RuntimeError) and "home directory" in str(error):  # pathlib's
        problem = ConfigError(
            "the home folder that ~ stands for is not known here", hint="write the path out, or set HOME"
        )
    if problem is not None:
        problem.__cause__ = error
    return problem


def require_start() -> None:
    """Refuse to work where nothing can: in a folder that was removed (relative names mean nothing, and torch cannot be
    loaded), or in a Python without docstrings, which transformers reads.

    Raises:
        ConfigError: it is such a place.
    """
    if sys.flags.optimize > 1:
        raise ConfigError(
            "Python was started without docstrings (-OO, or PYTHONOPTIMIZE=2), and transformers reads them",
            hint="unset PYTHONOPTIMIZE, or set it to 1",
        )
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ConfigError(
            "the folder in which this command was started does not exist any more", hint="cd to one that does"
        ) from None


def _name(error: OSError) -> str:
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else ""
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
