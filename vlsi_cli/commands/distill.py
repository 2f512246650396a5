"""``vlsi distill``: plan it, or run it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vlsi_cli.commands import _launch, _output, _progress, _reproduce, _tables, _tables_push
from vlsi_cli.commands import _options as opt
from vlsi_cli.commands import push as _push
from vlsi_cli.config import folders, loading, planning, reach, recipes, words
from vlsi_cli.config.extras import require_extras
from vlsi_cli.config.repos import check_repo_name
from vlsi_cli.errors import ConfigError


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
        bool, typer.Option("--dry-run", help="Print configuration, origins and plan; load nothing.")
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
    going_on: Path | None = None
    if skip_damaged and resume is None:
        raise ConfigError("--skip-damaged says how to resume, but there is no --resume")
    if resume == "auto" and overwrite:
        raise ConfigError("--resume auto would go on with what --overwrite removes", hint="leave one out")
    if resume not in (None, "auto"):
        going_on = Path(resume)
        extra = [f"--{name}" for name, value in chosen.items() if value not in (None, False, [])]
        if extra:
            raise ConfigError(
                f"--resume continues a run with its own configuration, but {', '.join(extra)} was given too",
                hint="leave it out, or start a new run with --output",
            )
        resolved = loading.load_saved(going_on)
    else:
        flags = {
            "teacher.id": teacher,
            "student.id": student,
            "teacher.cache": str(teacher_cache.absolute()) if teacher_cache else None,
            "data.sources": [words.source_from_word(word) for word in data] if data else None,
            "seed": seed,
            "device": device,
            "precision": precision,
            "watch.report_to": report_to or None,
        }
        resolved = loading.resolve(recipes.choose(recipe, teacher, student), sets or (), flags)

    if dry_run:
        plan = planning.plan(resolved)
        if json:
            _output.document(plan.to_json())
        else:
            for part in _tables.plan_tables(plan):
                _output.data(part)
        return

    run = going_on or output or folders.RUNS
    if _launch.is_first():  # the others are told where it is, and whether it is gone on with
        if resume == "auto":
            going_on = folders.to_go_on_with(output, resolved)
        run = going_on or folders.for_new_run(output, resolved.config.name, overwrite=overwrite)
    reach.require(planning.needs(resolved.config), of_run=going_on is not None)
    require_extras(resolved.config)

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
            resume=going_on is not None,
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
