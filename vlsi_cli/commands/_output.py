"""The only place that prints. Data go to standard output, speech goes to standard error.

Of several processes the first speaks; another one tells nothing but an error that is its own.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from vlsi_cli.config import launching
from vlsi_cli.config.redaction import redact
from vlsi_cli.errors import Interrupted, ProcessError, VlsiError


@dataclass
class _State:
    """How much is said. One command runs in a process, so one state is enough."""

    verbose: bool = False
    quiet: bool = False
    json: bool = False
    silent: bool = False


_state = _State()


def begin(*, verbose: bool = False, quiet: bool = False) -> None:
    """Start a command with these manners."""
    _state.verbose, _state.quiet, _state.json = verbose, quiet, False
    _state.silent = launching.rank() > 0
    _hush()


def also(*, verbose: bool = False, quiet: bool = False) -> None:
    """Add to these manners."""
    _state.verbose, _state.quiet = _state.verbose or verbose, _state.quiet or quiet
    _hush()


def speak() -> None:
    """Speak, whichever process of several this would be: the command runs in one."""
    _state.silent = False


def _hush() -> None:
    """Keep the bars of downloads back where little is said, or nobody looks at them; the hub's client reads this when
    it is imported."""
    if _state.quiet or _state.silent or _is_ci():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def use_json(asked: bool) -> None:
    """Whether data, and errors too, are wanted as JSON on standard output."""
    _state.json = asked


def speech() -> Console:
    """The console of standard error; made anew, since tests and redirections change what that is.

    It is interactive, and so has bars that move, on a terminal that somebody looks at: not where `FORCE_COLOR` asks a
    log for colours, and not on the terminal that some services give to a job (they all set `CI`).
    """
    terminal = sys.stderr.isatty()
    return Console(
        file=sys.stderr,
        soft_wrap=not terminal,
        highlight=False,
        markup=False,
        quiet=_state.silent,
        force_interactive=None if terminal and not _is_ci() else False,
    )


def data(value: RenderableType) -> None:
    """Print data for people. Without a terminal, tables are wide enough to be cut by no one."""
    if _state.silent:
        return
    width = None if sys.stdout.isatty() else 200
    console = Console(file=sys.stdout, highlight=False, markup=False, width=width)  # names may hold [ ]
    console.print(value, soft_wrap=isinstance(value, str))


def document(value: Any) -> None:
    """Print one JSON document."""
    if _state.silent:
        return
    try:
        text = json.dumps(value, default=_plain, ensure_ascii=False, indent=1, allow_nan=False)
    except (
        ValueError
    ):  # infinities and the like, which Python would write as words that no other reader knows
        known = json.loads(json.dumps(value, default=_plain), parse_constant=lambda word: None)
        text = json.dumps(known, ensure_ascii=False, indent=1)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (
        UnicodeEncodeError
    ):  # a terminal of few letters, or a name that is no text: JSON has a way to write them
        text = json.dumps(json.loads(text), indent=1)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say(text: RenderableType) -> None:
    """Say something in passing."""
    if not _state.quiet:
        speech().print(redact(text) if isinstance(text, str) else text)


def warn(text: str) -> None:
    """Say something that wants attention; not even `--quiet` hides it."""
    speech().print(Text.assemble(("warning: ", "yellow"), redact(text)))


def defect(problem: Exception) -> None:
    """Show what nobody foresaw, as Python would, but without secrets."""
    sys.stderr.write(redact("".join(traceback.format_exception(problem))))


def error(problem: VlsiError, *, reported: bool = False) -> None:
    """Show the user's or the machine's error: one sentence and, on a line of its own, what to do next.

    A process other than the first shows what is its own, or what may be its machine's: an error from before the
    processes were joined, of the first one on a machine.

    Args:
        problem: the error.
        reported: whether the document that was printed tells of it already; there is to be only one.
    """
    own = problem.process is not None or (not problem.shared and launching.local_rank() == 0)
    if (_state.silent and not own) or (isinstance(problem, ProcessError) and problem.told):
        return
    console = Console(file=sys.stderr, soft_wrap=not sys.stderr.isatty(), highlight=False)
    if _state.verbose:
        console.print(redact("".join(traceback.format_exception(problem))), markup=False)
    label = "stopped: " if isinstance(problem, Interrupted) else "error: "
    if label == "stopped: " and problem.message.startswith("stopped "):
        label = ""  # it says so itself
    if _state.silent:
        label = f"process {launching.rank()}: {label}"
    message, hint = redact(problem.message), redact(problem.hint) if problem.hint is not None else None
    console.print(Text.assemble((label, "bold red"), message))
    for line in (hint or "").splitlines():
        console.print(Text.assemble(("hint: ", "cyan"), line))
    if _state.json and not reported:
        error_document(problem)


def error_document(problem: VlsiError) -> None:
    """Print an error as a JSON document."""
    hint = redact(problem.hint) if problem.hint is not None else None
    fields = {
        "type": type(problem).__name__,
        "message": redact(problem.message),
        "hint": hint,
        "exit_code": problem.exit_code,
    }
    document({"error": fields})


def _is_ci() -> bool:
    return os.environ.get("CI", "").casefold() not in ("", "0", "false", "no", "off")


def has_colours() -> bool:
    """Whether standard output is a terminal that shows colours."""
    console = Console(file=sys.stdout)
    return console.is_terminal and console.color_system is not None


def width() -> int:
    """Columns for data that are laid out by hand: those of the terminal, 80 without one."""
    console = Console(file=sys.stdout)
    return console.width if console.is_terminal else 80


def is_quiet() -> bool:
    """Whether progress is unwanted."""
    return _state.quiet


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
