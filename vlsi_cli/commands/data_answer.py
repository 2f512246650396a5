"""``vlsi data answer``: a model answers records, and its answers become training data."""

from __future__ import annotations

from typing import Any

from vlsi_cli.commands import _launch, _output, _progress, _tables_answer
from vlsi_cli.commands import _options as opt
from vlsi_cli.commands import _options_answer as own
from vlsi_cli.commands import _options_eval as ask
from vlsi_cli.config import answering, reach
from vlsi_cli.config.folders import model_of_run
from vlsi_cli.config.missing import model_need
from vlsi_cli.config.presence import data_needs
from vlsi_cli.config.words import batch_size_from_word, sources_from_words
from vlsi_cli.errors import ConfigError


def answer(
    output: own.FileOption,
    named: opt.NamedArgument = None,
    data: opt.DataOption = None,
    prompt: own.PromptOption = None,
    model: own.ModelOption = None,
    recipe: opt.RecipeOption = None,
    sets: opt.SetOption = None,
    replace: own.ReplaceOption = False,
    max_new_tokens: own.LengthOption = None,
    temperature: own.TemperatureOption = None,
    seed: own.SeedOption = None,
    think: own.ThinkOption = False,
    limit: own.LimitOption = None,
    batch_size: ask.BatchOption = "auto",
    workers: own.WorkersOption = None,
    overwrite: opt.OverwriteOption = False,
    device: opt.DeviceOption = None,
    precision: opt.PrecisionOption = None,
    processes: _launch.ProcessesOption = None,
    launcher: _launch.LauncherOption = None,
    dry_run: own.DryOption = False,
    json: opt.JsonOption = False,
) -> None:
    """Have a model answer records, and write them with their answers.

    Records that end with the user's message are answered; those that have their answers are kept as they are. With
    --prompt, one question is asked of every picture in a folder. The file is data for `vlsi distill --data`. What was
    stopped goes on with the same command, and nothing is asked twice.
    """
    _output.use_json(json)
    words = sources_from_words(named, data, prompt=prompt)
    if words is None and recipe is None:
        raise ConfigError(
            "no data are given",
            hint="name a file, a data set or (with --prompt) a folder of pictures, or give --recipe",
        )
    given: dict[str, Any] = {
        "output": output, "max_new_tokens": max_new_tokens, "batch_size": batch_size_from_word(batch_size),
        "limit": limit, "temperature": temperature, "replace": replace, "think": think,
        "overwrite": overwrite,
    }  # fmt: skip
    asked = answering.AnsweringConfig.model_validate(
        {name: value for name, value in given.items() if value is not None}
    )
    config = answering.resolve(
        recipe,
        sets or (),
        model=model_of_run(model) if model is not None else None,
        flags={
            "data.sources": words,
            "data.workers": workers,
            "seed": seed,
            "device": device,
            "precision": precision,
        },
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
