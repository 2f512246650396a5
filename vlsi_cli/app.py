"""The command ``vlsi``: one table of subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from vlsi_cli import __version__
from vlsi_cli.commands import (
    _machine,
    _output,
    cache,
    data,
    distill,
    evaluate,
    export,
    match_layers,
    plan,
    push,
    recipes,
    verbalize,
)
from vlsi_cli.commands._group import Group
from vlsi_cli.commands._pipes import outliving_readers

app = typer.Typer(
    name="vlsi",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        _output.data(f"vlsi {__version__}")
        raise typer.Exit()


@app.callback()
def vlsi(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say more; errors keep their traceback.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only warnings and errors.")] = False,
) -> None:
    """Distil a large vision language model into a small one, layer by layer, through words (VLsI)."""
    _output.begin(verbose=verbose, quiet=quiet)
    _machine.require_start()


app.command("distill")(distill.distill)
app.command("plan")(plan.plan)
app.command("push")(push.push)
app.command("verbalize")(verbalize.verbalize)
app.command("match-layers")(match_layers.match_layers)
app.command("export")(export.export)
app.add_typer(evaluate.app, name="eval")
app.add_typer(cache.app, name="cache")
app.add_typer(data.app, name="data")
app.add_typer(recipes.app, name="recipes")


def main() -> None:
    """Entry point of the command ``vlsi``."""
    with outliving_readers():
        try:
            app(prog_name="vlsi")
        except Exception as defect:
            _output.defect(defect)
            raise SystemExit(1) from defect
