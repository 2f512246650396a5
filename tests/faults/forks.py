"""One warm process that has imported everything, and children of it that run the real command and are killed.

Importing torch and transformers takes longer than a whole run of a tiny model, so it is done once. A child is a fork:
it gets its own output, calls the entry point of ``vlsi`` with its own command line, and dies where it is told to:

- before its n-th file operation (open for writing, rename, remove, make a folder), which reaches each state of the
  disk that Python code can leave, the same on every machine;
- or at some moment of its own CPU time, which also falls inside a computation or a write, and does not depend on how
  busy the machine is: the system itself keeps the clock (SIGPROF), and nobody has to wake up in time.

The warm process computes nothing itself: autograd that has run before a fork does not survive it.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import signal
import struct
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.quick import set_aside

#: What counts as a file operation: audit events of CPython, raised before the operation is done.
_OPERATIONS = {
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
    "tempfile.mkdtemp",
    "tempfile.mkstemp",
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class AtOperation:
    """Die before file operation number ``number``, from 1."""

    number: int

    def __str__(self) -> str:
        return f"file operation {self.number}"


@dataclass(frozen=True)
class AtMoment:
    """Get a signal, one that ends it at once unless it is another, once so many seconds of CPU time are used."""

    seconds: float
    signal: signal.Signals = signal.SIGKILL

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s of CPU"


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: its exit code, 128 more than the signal where it died of another than SIGKILL; None when it was killed.
        operations: file operations it came to.
        seconds: CPU time that it used.
        said: what it wrote to standard error; ``data`` to standard output.
    """

    code: int | None
    operations: int
    seconds: float
    said: str
    data: str


def run(
    words: Sequence[str | Path],
    folder: Path,
    kill: AtOperation | AtMoment | None = None,
    *,
    before: Callable[[], Any] = lambda: None,
) -> Ended:
    """Run ``vlsi WORDS`` in a child, in a working folder, and wait for its end.

    Args:
        kill: when it is to die; None lets it live.
        before: called in the child first: what it is to find changed.
    """
    counter = mmap.mmap(-1, 8)
    out, err, seen = folder / ".stdout", folder / ".stderr", folder / ".modules"
    started = os.times()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of forking with threads: the importing ones are idle
        pid = os.fork()
    if pid == 0:
        _live([str(word) for word in words], folder, (out, err, seen), counter, kill, before)
    _, status = os.waitpid(pid, 0)
    ended = os.times()
    (count,) = struct.unpack("q", counter[:8])
    code: int | None = os.waitstatus_to_exitcode(status)
    if code is not None and code < 0:
        code = None if -code in (signal.SIGKILL, signal.SIGPROF) else 128 - code
    else:
        _learn(seen)
    used = sum(ended[2:4]) - sum(started[2:4])
    return Ended(code, count, used, err.read_text("utf-8"), out.read_text("utf-8"))


def _at_moment(kill: AtMoment) -> None:
    """Be signalled once this process has used so much CPU time; SIGPROF ends it as SIGKILL does."""
    if kill.signal != signal.SIGKILL:
        signal.signal(signal.SIGPROF, lambda *_: os.kill(os.getpid(), kill.signal))
    signal.setitimer(signal.ITIMER_PROF, max(kill.seconds, 1e-6))


def _live(
    words: list[str],
    folder: Path,
    files: tuple[Path, Path, Path],
    counter: mmap.mmap,
    kill: AtOperation | AtMoment | None,
    before: Callable[[], Any],
) -> None:
    """The child's whole life."""
    code = 70
    try:
        for number, path in zip((1, 2), files, strict=False):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.chdir(folder)
        sys.argv = ["vlsi", *words]
        before()
        if isinstance(kill, AtOperation):
            at_operation(folder, kill.number, lambda: os.kill(os.getpid(), signal.SIGKILL), counter)
        else:
            at_operation(folder, 0, lambda: None, counter)
        if isinstance(kill, AtMoment):
            _at_moment(kill)
        from vlsi_cli.app import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - a child must not live on as a second parent
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        with suppress(Exception):
            names = [name for name, module in sys.modules.items() if getattr(module, "__file__", None)]
            files[2].write_text(json.dumps(names))
        os._exit(code)


def at_operation(
    folder: Path, number: int, act: Callable[[], None], counter: mmap.mmap | None = None
) -> None:
    """Act before file operation number ``number`` inside a folder, and count them all. There is no way back."""
    place, here, count = str(folder.resolve()), os.getcwd(), 0

    def heard(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            if not isinstance(args[2], int) or not args[2] & _WRITING:
                return
        elif event not in _OPERATIONS:
            return
        path = args[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        if not os.path.join(here, os.fsdecode(path)).startswith(place):
            return
        count += 1
        if counter is not None:
            counter[:8] = struct.pack("q", count)
        if count == number:
            act()

    sys.addaudithook(heard)


def _learn(seen: Path) -> None:
    """Import what a child had to import, so that the next one need not."""
    if not seen.is_file():
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in json.loads(seen.read_text()):
            if name not in sys.modules and not name.startswith(("__", "tests.")):
                with suppress(Exception):
                    importlib.import_module(name)
    seen.unlink()
    set_aside()
