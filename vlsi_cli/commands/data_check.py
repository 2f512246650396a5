"""``vlsi data check``: which records a model can be trained on, before a run."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlsi_cli.commands import _options as opt
from vlsi_cli.commands import _output, _progress, _reading, _tables_check
from vlsi_cli.config import reach
from vlsi_cli.config.data import DataConfig
from vlsi_cli.config.presence import data_needs
from vlsi_cli.errors import ConfigError, DataError

if TYPE_CHECKING:
    from vlsi_cli.engine.runs.data_check_reports import CheckReport


def check(
    named: opt.NamedArgument = None,
    data: opt.DataOption = None,
    recipe: opt.RecipeOption = None,
    sets: opt.SetOption = None,
    model: _reading.ReaderOption = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Read this many records of each of the data, from the first.", show_default=False
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that read. Default: as data.workers says, else as many as there are cores.",
            show_default=False,
        ),
    ] = None,
    bad: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a .jsonl file that names every record that cannot be used, and why.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --bad.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if any record cannot be used.")] = False,
    json: opt.JsonOption = False,
) -> None:
    """Say how many records a run could use, why it could not use the others, and how long they are.

    Every record is read once, as training would; no weights are loaded. With `--recipe` its held-out data are checked
    too. Ends with exit code 3 when no record can be used, or when some cannot and `--strict` is given or
    `on_bad_record` is `refuse`. After Ctrl-C or SIGTERM
    the report is of what was read so far.
    """
    _output.use_json(json)
    if not named and not data and recipe is None:
        raise ConfigError("no data are given", hint="name a file or a data set, or give --recipe")
    looked = _reading.resolve(named, data, recipe, sets, model)
    needs = list(data_needs("data", looked.data))
    if looked.held_out is not None:
        needs += data_needs("evaluation.data", looked.held_out)
    reach.require(needs, dry_run=False)

    from vlsi_cli.engine.runs import data_check as engine

    with _progress.RunView() as view:
        report = engine.run(
            looked.data,
            model=looked.model,
            revision=looked.revision,
            held_out=looked.held_out,
            limit=limit,
            workers=workers,
            bad=bad,
            overwrite=overwrite,
            events=view,
        )
    if json:
        _output.document(report)
    else:
        for part in _tables_check.check_parts(report):
            _output.data(part)
    if report.unusable:
        _output.warn(_tables_check.complaint(report))
    if report.stopped_by is not None:
        _output.warn("interrupted; the report is of what was read so far")
        raise typer.Exit(128 + signal.Signals[report.stopped_by])
    if report.unusable and (strict or _would_end(looked.data, report, held_out=False)):
        raise typer.Exit(DataError.exit_code)
    if looked.held_out is not None and _would_end(looked.held_out, report, held_out=True):
        raise typer.Exit(DataError.exit_code)


def _would_end(data: DataConfig, report: CheckReport, *, held_out: bool) -> bool:
    """Whether a run could not use a record of these data, or not go on behind one that it cannot use."""
    found = [source for source in report.sources if source.held_out == held_out]
    unusable = sum(source.unusable for source in found)
    return unusable > 0 and (data.on_bad_record == "refuse" or not sum(source.usable for source in found))
