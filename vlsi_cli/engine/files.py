"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed.

What is being written has a name that begins with a dot and holds ``.partial``; what is being replaced, one that ends
in ``.old``. A process that is killed leaves them behind, and :func:`sweep` takes them away.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from vlsi_cli.engine.outlets import is_outlet, linked
from vlsi_cli.errors import OutputError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


#: The file in a folder that one process at a time may hold.
LOCK_FILE = ".lock"

_UMASK = _read_umask()  # once, at import: reading it means changing it for a moment


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a folder that appears under its name only when the block ends well; what stood there goes last.

    A symbolic link stays, and what it points to is written.

    Args:
        target: the folder to make; one that exists is replaced.

    Yields:
        An empty folder beside ``target``, to be filled.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    partial: Path | None = None
    with writing(target), ExitStack() as held:
        try:
            target = linked(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            _sweep_dead(target)
            partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".partial", dir=target.parent))
            held.enter_context(_claimed(partial))
            yield partial
            flush_folder(partial)
            # mkdtemp's folders and safetensors' files are private, whatever the user's umask says
            partial.chmod(0o777 & ~_UMASK)
            for file in (path for path in partial.rglob("*") if path.is_file()):
                file.chmod(0o666 & ~_UMASK)
            replace_folder(partial, target)
        finally:
            if partial is not None:
                shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder inside another one for what nobody needs when the block ends. What a kill leaves of it is swept.

    Raises:
        OutputError: it cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".scratch-", suffix=".partial", dir=folder))
    try:
        with _claimed(made):
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def writing(target: Path, *, alone: Path | None = None) -> Iterator[None]:
    """Tell a failed write as one sentence that names ``target`` and the cause.

    ``alone`` is the only file that the block writes, where that is so: an error that names another is let through.

    Raises:
        OutputError: instead of an OSError (or safetensors' own error for a full disk) raised in the block.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        named = getattr(error, "filename", None)
        if alone is not None and isinstance(named, str) and Path(named) != alone:
            raise
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        cause = "no space is left on the disk" if full else (getattr(error, "strerror", None) or str(error))
        if isinstance(error, FileExistsError):  # where a folder was to be made
            cause = "there is a file of that name"
        hint = "free some space, or choose another disk with --output" if full else None
        raise OutputError(f"{target} cannot be written: {cause}", hint=hint) from error


@contextmanager
def new_file(target: Path, *, flush: bool = True) -> Iterator[Path]:
    """Write a file that appears under its name only when the block ends well; ``flush``: the disk holds it then.

    A device, a pipe and one of the process's own streams (``/dev/stdout``) are not replaced: they get what was written.
    A symbolic link stays, and the file that it points to is written.

    Yields:
        A path beside ``target`` (of an outlet: in the folder for temporary files), with its ending, to be written.

    Raises:
        OutputError: it cannot be written. (What the block raises of another file, which it reads, stays as it is.)
    """
    with writing(target):
        outlet, suffix = is_outlet(target), f".partial{target.suffix}"
        given, target = target, target if outlet else linked(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        place = None if outlet else target.parent
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=suffix, dir=place)
        os.close(handle)
    part = Path(name)
    try:
        with writing(given, alone=part):
            yield part
        with writing(given):
            if outlet:
                with part.open("rb") as source, target.open("ab") as sink:
                    shutil.copyfileobj(source, sink)
                return
            if flush:
                _flush(part)
            part.chmod(0o666 & ~_UMASK)
            part.replace(target)
            if flush:
                _flush(target.parent)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_json(target: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with new_file(target) as part:
        part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


@contextmanager
def only_process(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes out of a folder while the block runs (not where the system or its disk has no such locks).

    Args:
        folder: an existing folder; the lock is the file ``.lock`` in it.
        what: what it is, to follow "another process is working on".

    Raises:
        OutputError: another process is in such a block, or the folder cannot be written.
    """
    with writing(folder / LOCK_FILE):
        opened = (folder / LOCK_FILE).open("w")
    with opened as lock:
        if fcntl is not None:
            try:
                _flock(lock.fileno())
            except BlockingIOError:
                raise _taken(what) from None
            with suppress(OSError):
                if os.fstat(lock.fileno()).st_nlink == 0:  # its holder took the folder away meanwhile
                    raise _taken(what)
        yield


def _taken(what: str) -> OutputError:
    return OutputError(
        f"another process is working on {what}",
        hint="wait for it, or stop it; commands that are started together need an --output each",
    )


def flush_folder(folder: Path) -> None:
    """Have the disk hold every file of a folder, and the folders themselves."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file() or path.is_dir():
            _flush(path)


def _flush(path: Path) -> None:
    """``fsync`` of a file, or of a folder's list of names (which some file systems refuse, and Windows has not)."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_folder(new: Path, target: Path) -> None:
    """Rename a finished folder into its place; what stood there goes only after the new one stands.

    Where the system can swap two names in one step (Linux), there is no moment without a whole folder at ``target``.
    """
    if not target.exists():
        new.rename(target)
        _flush(target.parent)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".old", dir=target.parent))
    with _claimed(old):
        if _swap(new, target):
            new.rename(old / target.name)
        else:
            target.rename(old / target.name)
            new.rename(target)
        _flush(target.parent)
        shutil.rmtree(old, ignore_errors=True)


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def _swap(a: Path, b: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system has no such step."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0


# ---------------------------------------------------------------- what a killed process left


def sweep(folder: Path) -> None:
    """Take away what a killed process left half written anywhere in a folder that no other process works in.

    A half folder that a living process fills (an export beside a run) is locked, and stays.
    """
    for place, folders, files in os.walk(folder):
        half = [name for name in folders if is_half(name)]
        folders[:] = [name for name in folders if name not in half]
        for name in half:
            _take_away(Path(place, name))
        for name in files:
            if is_half(name):
                Path(place, name).unlink(missing_ok=True)


def is_half(name: str) -> bool:
    """Whether this is the name of something that is being written or replaced."""
    return re.fullmatch(r"\..*\.(partial(\.\w+)?|old)", name) is not None


def _sweep_dead(target: Path) -> None:
    """Take away what a killed writer of ``target`` left beside it; what a living one fills is locked."""
    for left in target.parent.glob(f".{glob.escape(target.name)}-*"):
        if left.suffix in (".partial", ".old") and fcntl is not None:
            _take_away(left)


def _take_away(left: Path) -> None:
    """Remove a half or replaced folder, unless a living process has it.

    Where names cannot be swapped, a kill can come when the old folder has gone and the new one has not come: the old
    one, which lies in ``left`` under its own name, is put back.
    """
    with suppress(OSError), _claimed(left):
        for old in left.iterdir() if left.suffix == ".old" else ():
            target = left.parent / old.name
            if old.is_dir() and not target.exists():
                old.rename(target)
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Lock a folder; the lock ends with the process.

    Raises:
        OSError: another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY) if fcntl is not None else -1
    try:
        if fcntl is not None:
            _flock(handle)
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def _flock(handle: int) -> None:
    """Lock an open file or folder.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # some file systems have no locks: then all is as without
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            raise
