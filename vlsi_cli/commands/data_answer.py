"""``vlsi data answer``: a model answers records, and its answers become training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vlsi_cli.commands import _launch, _output, _progress, _tables_answer
from vlsi_cli.commands import _options as opt
from vlsi_cli.commands import _options_eval as ask
from vlsi_cli.config import answering, reach
from vlsi_cli.config.folders import model_of_run
from vlsi_cli.config.missing import model_need
from vlsi_cli.config.presence import data_needs
from vlsi_cli.config.words import batch_size_from_word, sources_from_words
from vlsi_cli.errors import ConfigError

_ANSWERS = "Answers"


def answer(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The .jsonl file to write.", show_default=False)
    ],
    named: opt.NamedArgument = None,
    data: opt.DataOption = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="Who answers: hub id, folder, run folder (its student), or "
                     "a name such as Qwen2-VL-72B; default: the recipe's teacher.", show_default=False),
    ] = None,
    recipe: opt.RecipeOption = None,
    sets: opt.SetOption = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Answer every turn anew, each behind the new answers before it.",
                     rich_help_panel=_ANSWERS),
    ] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest answer; a record with a longer one is left out. Default: 1024.",
                     show_default=False, rich_help_panel=_ANSWERS),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, max=100.0, help="Draw answers at this temperature. Default: 0, the likeliest token each "
                     "time.", show_default=False, rich_help_panel=_ANSWERS),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of what is drawn.", show_default=False, rich_help_panel=_ANSWERS),
    ] = None,
    think: Annotated[
        bool,
        typer.Option("--think", help="Have a model that can think do so, and keep its thoughts.",
                     rich_help_panel=_ANSWERS),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Take this many records of each of the data, from the first.", show_default=False),
    ] = None,
    batch_size: ask.BatchOption = "auto",
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that read pictures ahead of the model. Default: data.workers, or 4 beside "
                     "a GPU.", show_default=False, rich_help_panel="Run"),
    ] = None,
    overwrite: opt.OverwriteOption = False,
    device: opt.DeviceOption = None,
    precision: opt.PrecisionOption = None,
    processes: _launch.ProcessesOption = None,
    launcher: _launch.LauncherOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what there is to answer; load no weights, write nothing.")
    ] = False,
    json: opt.JsonOption = False,
) -> None:  # fmt: skip
    """Have a model answer records, and write them with their answers.

    Records that end with the user's message are answered; those that have their answers are kept as they are. The file
    is data for `vlsi distill --data`. What was stopped goes on with the same command, and nothing is asked twice.
    """
    _output.use_json(json)
    words = sources_from_words(named, data)
    if words is None and recipe is None:
        raise ConfigError("no data are given", hint="name a file or a data set, or give --recipe")
    given: dict[str, Any] = {
        "output": output, "max_new_tokens": max_new_tokens, "batch_size": batch_size_from_word(batch_size),
        "workers": workers, "limit": limit, "temperature": temperature, "replace": replace, "think": think,
        "overwrite": overwrite,
    }  # fmt: skip
    asked = answering.AnsweringConfig.model_validate(
        {name: value for name, value in given.items() if value is not None}
    )
    config = answering.resolve(
        recipe,
        sets or (),
        model=model_of_run(model) if model is not None else None,
        flags={"data.sources": words, "seed": seed, "device": device, "precision": precision},
    )
    answering.check(asked, config)
    needs = [] if dry_run else [model_need("teacher", answering.who(config))]
    reach.require([*needs, *data_needs("data", config.data)], dry_run=False)
    if not dry_run:
        _launch.start(processes, launcher)

    from vlsi_cli.engine.runs import answer as engine  # here, so that --help imports no torch

    if dry_run:
        plan = engine.plan(config, asked)
        _show(plan, _tables_answer.plan_parts(plan), json)
        return
    with _progress.RunView() as view:
        report = engine.run(config, asked, view)
    if report is None:
        return  # the first process speaks for all
    _show(report, _tables_answer.report_parts(report), json)
    if report.left_out or report.unusable:
        _output.warn(_tables_answer.missing(report))


def _show(report: Any, parts: Any, json: bool) -> None:
    if json:
        _output.document(report)
    else:
        for part in parts:
            _output.data(part)
