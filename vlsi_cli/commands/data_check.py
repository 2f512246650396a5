"""``vlsi data check``: which records a model can be trained on, before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlsi_cli.commands import _options as opt
from vlsi_cli.commands import _output, _progress, _reading, _tables_check
from vlsi_cli.config import reach
from vlsi_cli.config.presence import data_needs
from vlsi_cli.errors import ConfigError, DataError, Interrupted


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

    Every record is read once, as training would; no weights are loaded. Ends with exit code 3 when no record can be
    used, or when some cannot and `--strict` is given or `data.on_bad_record` is `refuse`. After Ctrl-C the report is of
    what was read so far.
    """
    _output.use_json(json)
    if not named and not data and recipe is None:
        raise ConfigError("no data are given", hint="name a file or a data set, or give --recipe")
    looked = _reading.resolve(named, data, recipe, sets, model)
    reach.require(list(data_needs("data", looked.data)), dry_run=False)

    from vlsi_cli.engine.runs import data_check as engine

    with _progress.RunView() as view:
        report = engine.run(
            looked.data,
            model=looked.model,
            revision=looked.revision,
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
    if not report.complete:
        _output.warn("interrupted; the report is of what was read so far")
        raise typer.Exit(Interrupted.exit_code)
    if report.unusable and (strict or not report.usable or looked.data.on_bad_record == "refuse"):
        raise typer.Exit(DataError.exit_code)
