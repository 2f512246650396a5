"""The one door to lmms-eval: its import, its chatter, and what of its manners must not reach a run.

It is imported on first use (that takes seconds), its warnings and prints go to a log, and its reading of a `.env` file
in the working directory is prevented: it would put keys into the environment that nobody asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vlsi_cli.config import harness as place
from vlsi_cli.config.redaction import redact
from vlsi_cli.engine.files import writing
from vlsi_cli.errors import ConfigError
from vlsi_cli.events import Event, Events

#: Characters after which a line is passed on without its end.
_LONGEST_LINE = 1 << 16
_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send what the harness prints, logs and warns in the block to the end of a file, without secrets.

    Whoever wants to be seen meanwhile holds on to the real streams from before, as :func:`heard` does.
    """
    with writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        opened = log.open("ab", buffering=0)
    with (
        opened as kept,
        contextlib.closing(_Redacted(kept)) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
        warnings.catch_warnings(),
        _without_env_file(),
    ):
        warnings.simplefilter("ignore")
        # Its logger keeps the stream that it was made with, so it is given the file for as long as this lasts.
        logger = importlib.import_module("loguru").logger if place.installed() else None
        if logger is not None:
            logger.remove()
            logger.add(file, level="INFO", format="{time:HH:mm:ss} {level} {message}")
        try:
            yield
        finally:
            if logger is not None:
                logger.remove()
                if sys.__stderr__ is not None:  # as where a command was started without
                    logger.add(sys.__stderr__, level="WARNING")


def heard(events: Events) -> Events:
    """An events function whose prints are seen inside :func:`quiet` too: in Python it may be ``print`` itself."""
    out, err = sys.stdout, sys.stderr

    def tell(event: Event) -> None:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            events(event)

    return tell


class _Redacted(io.TextIOBase):
    """Passes whole lines on, each without secrets: one may come in several pieces."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._line = file, ""
        self._lock = threading.Lock()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._line = (self._line + text).splitlines(keepends=True) or [""]
            if self._line.endswith(("\n", "\r")) or len(self._line) > _LONGEST_LINE:
                lines, self._line = [*lines, self._line], ""
            self._pass_on("".join(lines))
        return len(text)

    def close(self) -> None:
        if not self.closed:
            self._pass_on(self._line)
            self._line = ""
        super().close()

    def _pass_on(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a full disk: the log is worth less than the answers
            self._file.write(redact(text).encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """Hide from the harness that this is one of several processes: it would deal out the questions itself, and wait
    for the others at places of its own."""
    hidden = {name: os.environ.pop(name) for name in _LAUNCHED if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def _without_env_file() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def load() -> Any:
    """The harness's evaluator module, and its version checked; call it inside :func:`quiet`.

    Raises:
        ConfigError: it is not installed, or cannot be imported, which a torchvision built for another torch prevents.
    """
    place.require()
    try:
        return importlib.import_module("lmms_eval.evaluator")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{place.PACKAGE} cannot be imported: it needs the package {error.name}",
            hint=f"install what it needs: {place.INSTALL}",
        ) from error
    except (
        Exception
    ) as error:  # a torchvision for another torch raises RuntimeError from deep inside transformers
        raise ConfigError(
            f"{place.PACKAGE} cannot be imported: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            hint="a torchvision that was built for another torch causes this: pip uninstall torchvision "
            "(nothing here needs it), or install the one that belongs to your torch",
        ) from error
