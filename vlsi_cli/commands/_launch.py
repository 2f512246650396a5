"""A command in several processes: the options for it, and the start."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from vlsi_cli.commands import _output
from vlsi_cli.config import launching
from vlsi_cli.errors import ConfigError

ProcessesOption = Annotated[
    str | None,
    typer.Option(
        "--processes",
        metavar="N|auto",
        help="Run in N processes, one a GPU, through torchrun, which gets what stands behind --; auto: one for each "
        "GPU of this machine.",
        show_default=False,
        rich_help_panel="Run",
    ),
]
LauncherArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="-- LAUNCHER",
        help="With --processes: more arguments for torchrun, such as those of several machines.",
        show_default=False,
    ),
]
#: The same for a command with words of its own or with subcommands, which :class:`Launched` and :class:`LaunchedGroup`
#: tell from those of the launcher.
LauncherOption = Annotated[list[str] | None, typer.Option("--launcher", hidden=True)]
_USAGE = "[-- LAUNCHER]..."


class Launched(TyperCommand):
    """A command that hands what stands behind ``--`` to its option ``--launcher``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words."""
        return super().parse_args(ctx, _handed_on(args))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What the line of usage says."""
        return [*super().collect_usage_pieces(ctx), _USAGE]


class LaunchedGroup(TyperGroup):
    """The same for a command that has subcommands, which are not launched."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words before the subcommand."""
        return super().parse_args(
            ctx, args if any(word in self.commands for word in args) else _handed_on(args)
        )

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What the line of usage says."""
        return [*super().collect_usage_pieces(ctx), _USAGE]


def _handed_on(words: Sequence[str]) -> list[str]:
    end = words.index("--") if "--" in words else len(words)
    return [*words[:end], *(f"--launcher={word}" for word in words[end + 1 :])]


def is_first() -> bool:
    """Whether this process is the one that speaks and hands out data."""
    return launching.rank() == 0


def start(processes: str | None, launcher: list[str] | None) -> None:
    """Start the processes that were asked for and end as they end; return where this is to be one of them.

    Raises:
        ConfigError: words that belong to no option, or a number that is none.
    """
    count = launching.processes(processes)
    if launcher and count is None:
        raise ConfigError(
            f"'{launcher[0]}' is not an option of this command", hint="arguments after -- need --processes"
        )
    if launching.is_launched() or count is None or (count == 1 and not launcher):
        return
    from vlsi_cli.engine.runs.launch import launch

    raise typer.Exit(launch(count, sys.argv[1:], launcher or ()))


def keep_alone(commands: Mapping[str, Any], above: str) -> None:
    """Have every command that is not made for several processes refuse to be one of them."""
    for name, command in commands.items():
        if hasattr(command, "commands"):
            keep_alone(command.commands, f"{above} {name}")
        elif all(option.name != "launcher" for option in command.params):
            command.callback = _alone(command.callback, f"{above} {name}")


def _alone(run: Callable[..., Any], name: str) -> Callable[..., Any]:
    @wraps(run)
    def refusing(*given: Any, **named: Any) -> Any:
        if launching.is_launched() and launching.size() > 1:
            raise ConfigError(
                f"{name} runs in one process, and {launching.size()} were started",
                hint="start it without torchrun or accelerate launch",
            )
        _output.speak()  # whatever a cluster has put into RANK
        return run(*given, **named)

    return refusing
