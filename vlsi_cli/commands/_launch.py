"""A command in several processes: the options for it, and the start."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vlsi_cli.config import launching
from vlsi_cli.errors import ConfigError

ProcessesOption = Annotated[
    str | None,
    typer.Option(
        "--processes",
        metavar="N|auto",
        help="Run in N processes, one a GPU, through torchrun; auto: one for each GPU of this machine.",
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
