"""How the program reads its words and how it ends: options that are taken everywhere, errors as messages and codes."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import typer
from typer.core import TyperGroup

from vlsi_cli import interrupts
from vlsi_cli.commands import _launch, _machine, _output
from vlsi_cli.errors import ConfigError, Interrupted, VlsiError

_DEFECT = (
    "This is a defect of vlsi, not of your input: please report it with this traceback and `vlsi --version`."
)
#: Options of the program that every command takes too.
_EVERYWHERE = ("verbose", "quiet")
#: What the parser raises; of its kinds Typer has names for a part only.
_UsageError: Any = typer.BadParameter.__base__


class Group(TyperGroup):
    """Runs a subcommand; what it raises becomes the documented exit code."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        _share([_added(option) for option in self.params if option.name in _EVERYWHERE], self.commands)
        _launch.keep_alone(self.commands, "vlsi")

    def main(self, args: Iterable[str] | None = None, *more: Any, **settings: Any) -> Any:
        """Run the program with these words, or with those of the command line."""
        words = sys.argv[1:] if args is None else list(args)
        self._wants_json = "--json" in (words[: words.index("--")] if "--" in words else words)
        with interrupts.heeded() as self._seen:
            return super().main(words, *more, **settings)

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **settings: Any) -> Any:
        """Read the words before the subcommand."""
        with self._told(), self._telling_of_wrong_words():
            _output.begin()
            _output.use_json(self._wants_json)
            _require_words(args)
            return super().make_context(info_name, args, *more, **settings)

    def invoke(self, ctx: Any) -> Any:
        """Read the other words and run the subcommand."""
        with self._told(), self._telling_of_wrong_words():
            return super().invoke(ctx)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell what ends the block, and end with its code."""
        try:
            yield
        except (typer.Exit, typer.Abort, _UsageError):
            raise
        except KeyboardInterrupt as error:
            raise _interrupted(interrupts.number_of(error)) from error
        except Exception as error:
            if self._seen.number is not None and not isinstance(error, Interrupted):
                # a library has made this of it, as of an import that was broken off
                raise _interrupted(self._seen.number) from error
            problem = error if isinstance(error, VlsiError) else _machine.refusal(error)
            if problem is not None:
                _output.error(problem)
                raise typer.Exit(problem.exit_code) from error
            error.add_note(_DEFECT)
            raise

    @contextmanager
    def _telling_of_wrong_words(self) -> Iterator[None]:
        """Where JSON is wanted, tell there too of words that cannot be read; Typer tells of them on standard error."""
        try:
            yield
        except _UsageError as error:
            if self._wants_json:
                told = " ".join(error.format_message().split())
                where = error.ctx.command_path if error.ctx else "vlsi"
                problem = ConfigError(told[:1].lower() + told[1:].rstrip("."), hint=f"see {where} --help")
                _output.error_document(problem)
            raise


def _require_words(words: list[str]) -> None:
    """Refuse an empty word: as a path it would be the folder that one is in, and nobody means that.

    Raises:
        ConfigError: there is one.
    """
    for before, word in pairwise(["vlsi", *words]):
        if word == "--":
            return
        option = re.fullmatch(r"(--[a-z-]+)=", word)
        if not word or option:
            raise ConfigError(
                f"an empty word stands behind {option[1] if option else before}",
                hint="perhaps a variable of the shell is not set",
            )


def _interrupted(number: int) -> typer.Exit:
    _output.warn("interrupted")
    return typer.Exit(128 + number)


def _share(options: list[Any], commands: Mapping[str, Any]) -> None:
    for command in commands.values():
        command.params.extend(options)
        _share(options, getattr(command, "commands", {}))


def _added(option: Any) -> Any:
    """An option of the program as one of a command: the command is not told of it, and what stood before it stays."""
    again = copy.copy(option)
    again.expose_value = False
    again.callback = lambda ctx, asked, given: _output.also(**{asked.name: given})
    return again
