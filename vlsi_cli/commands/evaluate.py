"""``vlsi eval``: models on benchmarks."""

from __future__ import annotations

from typing import Any

import typer

from vlsi_cli.commands import _launch, _output, _progress_eval, _tables_eval, evaluate_compare
from vlsi_cli.commands import _options as opt
from vlsi_cli.commands import _options_eval as ask
from vlsi_cli.config import benchmarks, evaluating, harness
from vlsi_cli.config.evaluation import OUTPUT, EvaluationConfig
from vlsi_cli.config.words import batch_size_from_word
from vlsi_cli.errors import ConfigError, EvaluationError, RequirementError

app = typer.Typer(cls=_launch.LaunchedGroup, invoke_without_command=True)


@app.callback()
def evaluate(
    context: typer.Context,
    model: ask.ModelsOption = None,
    bench: ask.BenchOption = None,
    list_: ask.ListOption = False,
    limit: ask.LimitOption = None,
    batch_size: ask.BatchOption = "auto",
    max_new_tokens: ask.LengthOption = None,
    paper: ask.PaperOption = None,
    tasks_dir: ask.TasksOption = None,
    min_pixels: ask.MinPixelsOption = None,
    max_pixels: ask.MaxPixelsOption = None,
    judge_model: ask.JudgeModelOption = None,
    judge_url: ask.JudgeUrlOption = None,
    judge_timeout: ask.JudgeTimeoutOption = None,
    skip_unjudged: ask.SkipOption = False,
    device: opt.DeviceOption = None,
    precision: opt.PrecisionOption = None,
    processes: _launch.ProcessesOption = None,
    launcher: _launch.LauncherOption = None,
    output: ask.FolderOption = OUTPUT,
    require: ask.RequireOption = None,
    html: ask.HtmlOption = False,
    json: opt.JsonOption = False,
) -> None:
    """Evaluate models on benchmarks.

    Without arguments: the demo pair on the built-in puzzles. Answers are kept as they come: the same command after
    Ctrl-C, a crash or with more benchmarks asks only what is missing. `--require` makes it fail when a score is not
    what it should be, after everything has been printed and written.

    Benchmarks run on lmms-eval; `docs/evaluation.md` says how to install it and what each benchmark needs.
    """
    if context.invoked_subcommand is not None:
        return
    _output.use_json(json)
    if list_:
        rows = [*benchmarks.table().values()]
        rows += [benchmarks.local(n, f) for n, f in harness.index(tasks_dir).items()] if tasks_dir else []
        if json:
            _output.document([_tables_eval.benchmark_row(row) for row in rows])
        else:
            _output.data(_tables_eval.benchmarks_table(rows))
        return
    given: dict[str, Any] = {
        "models": model, "benchmarks": bench, "paper": paper, "tasks_dir": tasks_dir, "limit": limit,
        "batch_size": batch_size_from_word(batch_size), "max_new_tokens": max_new_tokens, "min_pixels": min_pixels,
        "max_pixels": max_pixels, "device": device, "precision": precision, "output": output, "html": html,
        "require": require,
        "skip_unjudged": skip_unjudged, "judge": _judge(judge_model, judge_url, judge_timeout),
    }  # fmt: skip
    config = EvaluationConfig.model_validate(
        {name: value for name, value in given.items() if value is not None}
    )
    plan = evaluating.plan(config)
    _launch.start(processes, launcher)

    from vlsi_cli.engine.runs import evaluate as engine  # here, so that --help and --list import no torch

    with _progress_eval.EvaluationView() as view:
        report = engine.run(config, plan, view)
    if report is None:
        return  # the first process speaks for all
    if json:
        _output.document(report)
    else:
        for part in _tables_eval.report_parts(report):
            _output.data(part)
    if report.unscored:
        _output.warn(
            f"{len(report.unscored)} of {len(report.results)} scores are missing; the table says why"
        )
    for outcome in report.unmet:
        _output.error(RequirementError(outcome.sentence), reported=True)
    if report.unmet or report.unscored:
        raise typer.Exit((RequirementError if report.unmet else EvaluationError).exit_code)


app.command("compare")(evaluate_compare.compare)


def _judge(model: str | None, url: str | None, timeout: float | None) -> dict[str, Any] | None:
    if model is None:
        if url is not None:
            raise ConfigError(
                "--judge-url is given without --judge-model", hint="name the model on that server"
            )
        return None
    given = {"model": model, "url": url, "timeout": timeout}
    return {name: value for name, value in given.items() if value is not None}
