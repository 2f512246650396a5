"""``vlsi eval compare``: stored evaluations side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlsi_cli.commands import _options as opt
from vlsi_cli.commands import _options_eval as ask
from vlsi_cli.commands import _output, _tables_eval
from vlsi_cli.errors import ConfigError, RequirementError


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Output folder of an evaluation.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Output folder of another.")],
    bench: ask.StoredBenchOption = None,
    of_first: ask.FirstOption = None,
    of_second: ask.SecondOption = None,
    no_worse: ask.NoWorseOption = False,
    margin: ask.MarginOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Compare stored evaluations, question by question where both asked the same.

    With `--no-worse` it fails when B is worse than A on any benchmark that A was asked, or cannot be compared there.
    """
    _output.use_json(json)
    if margin is not None and not no_worse:
        raise ConfigError("--margin says how much worse B may be, but there is no --no-worse")

    from vlsi_cli.engine.runs import compare as engine

    report = engine.run(
        first,
        second,
        benchmarks=bench or (),
        of_first=of_first,
        of_second=of_second,
        gate=no_worse,
        margin=margin,
    )
    if json:
        _output.document(report)
    else:
        for part in _tables_eval.comparison_parts(report):
            _output.data(part)
    for verdict in report.worse:
        _output.error(RequirementError(verdict.sentence), reported=True)
    if report.worse:
        raise typer.Exit(RequirementError.exit_code)
