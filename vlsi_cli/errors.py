"""Every way in which a run can end by the user's or the machine's doing: one tree, one exit code a branch.

A :class:`VlsiError` is shown as one sentence (and a hint) without a traceback. Anything else that escapes is
a defect of this program and keeps its traceback. The table of codes is in ``docs/reference/errors.md``.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class VlsiError(Exception):
    """An error whose message is enough to act upon: it names the value and the cause.

    Args:
        message: one sentence, starting in lower case, without a final stop or a traceback.
        hint: the next thing to do (often a command); printed on its own line, and under a traceback of Python's.

    Attributes:
        shared: in a run of several processes: all of them raise this error, and the first tells it.
        process: in such a run: the number of the one process that this error belongs to, which tells it.
    """

    exit_code: int = 1
    shared: bool = False
    process: int | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message

    @property
    def hint(self) -> str | None:
        """The next thing to do."""
        return self._hint

    @hint.setter
    def hint(self, hint: str | None) -> None:
        """A note too (PEP 678): whoever calls the engine from Python sees no message of ours, but a traceback."""
        before = {f"hint: {line}" for line in (getattr(self, "_hint", None) or "").splitlines()}
        kept = [note for note in getattr(self, "__notes__", ()) if note not in before]
        self._hint = hint
        self.__notes__ = [*kept, *(f"hint: {line}" for line in (hint or "").splitlines())]


class ConfigError(VlsiError):
    """A recipe, key or value that cannot be used (the code of a wrong command line)."""

    exit_code = 2


class DataError(VlsiError):
    """Data or pictures that are missing, unreadable or empty."""

    exit_code = 3


class ModelError(VlsiError):
    """A model that cannot be found, fetched or loaded, or whose family has no adapter."""

    exit_code = 4


class CompatibilityError(VlsiError):
    """Two models that load, but cannot be distilled into one another (tokenizer, image tokens, target
    layers)."""

    exit_code = 5


class OutputError(VlsiError):
    """A folder that cannot be written, already holds something else, or has no space left."""

    exit_code = 6


class CheckpointError(VlsiError):
    """A checkpoint, verbalizers or a teacher cache that is damaged, or belongs to another model or run."""

    exit_code = 7


class TrainingError(VlsiError):
    """A run that went wrong while training, such as a loss that is no longer finite; or work that memory is too small
    for."""

    exit_code = 8


class HubError(VlsiError):
    """A hub that refuses, fails or cannot be reached, or files that must not be sent to one."""

    exit_code = 9


class RequirementError(VlsiError):
    """The work was done, and what was required of its outcome does not hold: a score, no loss against another model, a
    run that fits a device."""

    exit_code = 10


class EvaluationError(VlsiError):
    """An evaluation that could not go on or whose figures would not be true: a judge that fails, a score of the wrong
    kind, no memory left."""

    exit_code = 11


class ProcessError(VlsiError):
    """The processes of a run cannot reach each other, or one of them has ended before its time.

    Attributes:
        told: the process that ended has said why, so that nothing is left to say.
    """

    exit_code = 12
    told: bool = False


class Interrupted(VlsiError):
    """The run was asked to stop and left a checkpoint.

    Args:
        resume: the command that continues the run, or None when there is nothing to continue.
        exit_code: 130 after Ctrl-C (SIGINT), 143 after SIGTERM, 138 after SIGUSR1, 129 after SIGHUP.
    """

    exit_code = 130

    def __init__(
        self, message: str, *, resume: str | None = None, hint: str | None = None, exit_code: int = 130
    ) -> None:
        super().__init__(
            message, hint=hint if hint is not None else (f"resume with: {resume}" if resume else None)
        )
        self.resume = resume
        self.exit_code = exit_code


#: What to do where memory ran out and nothing better is known.
SMALLER = "take a smaller model, fewer or shorter records at a time, or a machine with more memory"
#: What those say who have no error of their own for it: torch's allocator on the host and on MPS, cuBLAS, cuDNN, the
#: CUDA runtime, onnxruntime, safetensors, C++.
_NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "failed to allocate memory",
    "status_alloc_failed",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the host or on a device. Python, torch and others say so in many ways."""
    if isinstance(error, VlsiError):
        return False
    if (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    ):  # torch's, which is not imported
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return any(sign in str(error).lower() for sign in _NO_MEMORY)


def first_line(error: BaseException) -> str:
    """What an error says, in a line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def fitting(problem: VlsiError) -> Iterator[None]:
    """Have ``problem`` raised where memory runs out inside the block."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise problem from error


def did_you_mean(word: str, options: Iterable[str]) -> str | None:
    """The option that ``word`` most probably stood for, or None when nothing is near.

    Case and the difference between ``-``, ``_`` and ``.`` are ignored; ties go to the first in order.
    """
    plain = {_plain(option): option for option in reversed(list(options))}
    near = difflib.get_close_matches(_plain(word), list(plain), n=1, cutoff=0.6)
    return plain[near[0]] if near else None


def _plain(word: str) -> str:
    return word.casefold().replace("-", "_").replace(".", "_")
