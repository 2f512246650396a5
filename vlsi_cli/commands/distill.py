"""``vlsi distill``: plan it, or run it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vlsi_cli.commands import _launch, _output, _progress, _reproduce, _tables, _tables_push
from vlsi_cli.commands import _options as opt
from vlsi_cli.commands import push as _push
from vlsi_cli.config import asking, planning
from vlsi_cli.config.repos import check_repo_name


def distill(
    recipe: opt.RecipeOption = None,
    teacher: opt.TeacherOption = None,
    student: opt.StudentOption = None,
    teacher_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Read the large model from this cache (`vlsi cache build`) instead of loading it.",
            show_default=False,
            rich_help_panel="Models",
        ),
    ] = None,
    data: opt.DataOption = None,
    sets: opt.SetOption = None,
    output: opt.OutputOption = None,
    overwrite: opt.OverwriteOption = False,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|auto",
            help="Continue this run folder, with its own configuration; `auto`: continue the run in --output, or the "
            "newest unfinished run of the same configuration, or else start one.",
            show_default=False,
        ),
    ] = None,
    skip_damaged: Annotated[
        bool,
        typer.Option("--skip-damaged", help="With --resume: go on from the newest undamaged checkpoint."),
    ] = False,
    seed: opt.SeedOption = None,
    device: opt.DeviceOption = None,
    precision: opt.PrecisionOption = None,
    report_to: opt.ReportToOption = None,
    push: opt.PushOption = None,
    processes: _launch.ProcessesOption = None,
    launcher: _launch.LauncherArgument = None,
    reproduce: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Run one step again that was not finite, from failures/ in a run folder, and show where it happens.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print configuration, origins and plan; load nothing. Ends as the run would where "
            "something is missing that cannot be fetched.",
        ),
    ] = False,
    json: opt.JsonOption = False,
) -> None:
    """Distil a large vision language model into a small one.

    Without arguments: the recipe `demo`, offline, in minutes. With the models of a shipped recipe as
    `--teacher` and `--student`: that recipe. With any other pair: the defaults, on `--data`.

    Values come from the defaults, then the recipe, then `--set`, then the other options; `--dry-run` shows
    which.
    """
    _output.use_json(json)
    if push is not None:
        check_repo_name(push)
    chosen: dict[str, Any] = {
        "recipe": recipe,
        "teacher": teacher,
        "student": student,
        "teacher-cache": teacher_cache,
        "data": data,
        "set": sets,
        "output": output,
        "overwrite": overwrite,
        "seed": seed,
        "device": device,
        "precision": precision,
        "report-to": report_to,
    }
    if reproduce is not None:
        others = chosen | {"resume": resume, "push": push, "processes": processes, "dry-run": dry_run}
        _reproduce.show(reproduce, others=others, json=json)
        return
    resolved = asking.distillation(chosen, resume=resume, skip_damaged=skip_damaged)

    if dry_run:
        plan = planning.plan(resolved)
        problem = asking.obstacle(resolved, output=output, resume=resume, overwrite=overwrite)
        if json:
            _output.document({**plan.to_json(), "problem": problem and problem.message})
        else:
            for part in _tables.plan_tables(plan):
                _output.data(part)
        if problem is not None:
            _output.error(problem, reported=True)
            raise typer.Exit(problem.exit_code)
        return

    run, goes_on = asking.run_folder(resolved, output=output, resume=resume, overwrite=overwrite)
    asking.require(resolved, of_run=goes_on, dry_run=True)

    if push is not None and _launch.is_first():
        from vlsi_cli.engine.runs import push as hub

        target = hub.Target(push)
        hub.check(target)  # before the first step: after a day of training it would be late
    _launch.start(processes, launcher)

    from vlsi_cli.engine.runs import distill as engine  # here, so that --help and --dry-run import no torch

    with _progress.RunView() as view:
        report = engine.run(
            resolved,
            output=run,
            events=view,
            resume=goes_on,
            overwrite=overwrite,
            skip_damaged=skip_damaged,
        )
    if not json:
        _output.data(_tables.stages_table(report))
        if report.scores:
            _output.data(_tables.report_table(report))
        _output.data(f"student: {report.student}")
    sent = hub.after_run(report.run, target, _push.tell) if push is not None and _launch.is_first() else None
    if json:
        _output.document(report if sent is None else {**asdict(report), "push": sent})
    elif sent is not None:
        for part in _tables_push.push_parts(sent):
            _output.data(part)
