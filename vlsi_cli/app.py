"""The command ``vlsi``: one table of subcommands, and the one place where an error becomes a message and a
code."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vlsi_cli import __version__
from vlsi_cli.commands import (
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
from vlsi_cli.commands._pipes import outliving_readers
from vlsi_cli.errors import SMALLER, TrainingError, VlsiError, first_line, is_out_of_memory

_DEFECT = (
    "This is a defect of vlsi, not of your input: please report it with this traceback and `vlsi --version`."
)


class _Group(TyperGroup):
    """Runs a subcommand; what it raises becomes the documented exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except VlsiError as error:
            _output.error(error)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            _output.warn("interrupted")
            raise typer.Exit(130) from error
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if is_out_of_memory(error):  # where nobody knew a better word
                problem = TrainingError(f"memory ran out: {first_line(error)}", hint=SMALLER)
                problem.__cause__ = error
                _output.error(problem)
                raise typer.Exit(problem.exit_code) from error
            error.add_note(_DEFECT)
            raise


app = typer.Typer(
    name="vlsi",
    cls=_Group,
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
