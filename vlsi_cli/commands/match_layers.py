"""``vlsi match-layers``: which layers of two models say the nearest things."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vlsi_cli.commands import _options as opt
from vlsi_cli.commands import _output, _progress, _tables_match
from vlsi_cli.config import asking, reading

_SETS, _RUN, _FILES = "Verbalizers", "A run", "Files"


class At(StrEnum):
    """Which small model of a run is read."""

    start = "start"
    end = "end"


def _set_option(which: str) -> Any:
    told = (
        f"Trained verbalizers of the {which} model: a set's folder, a run, or the hub id of a model pushed with them; "
        "default: the logit lens."
    )
    return typer.Option(metavar="DIR|RUN|ID", help=told, show_default=False, rich_help_panel=_SETS)


def _file_option(told: str) -> Any:
    return typer.Option(metavar="FILE", help=told, show_default=False, rich_help_panel=_FILES)


def match_layers(
    teacher: opt.TeacherOption = None,
    student: opt.StudentOption = None,
    recipe: opt.RecipeOption = None,
    data: opt.DataOption = None,
    samples: Annotated[int, typer.Option(min=1, help="Records to read.")] = reading.SAMPLES,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Records that share a draw; default: as in the interaction.", show_default=False),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of each batch for the drawn matches.")] = reading.DRAWS,
    teacher_verbalizers: Annotated[str | None, _set_option("large")] = None,
    student_verbalizers: Annotated[str | None, _set_option("small")] = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Read the models, verbalizers and matches of this run folder.",
                     show_default=False, rich_help_panel=_RUN),
    ] = None,
    at: Annotated[
        At, typer.Option(help="Whether its small model is read as step 2 began or ended.", rich_help_panel=_RUN)
    ] = At.end,
    history: Annotated[
        bool, typer.Option("--history", help="Only its logged matches; no model is loaded.", rich_help_panel=_RUN)
    ] = False,
    ends: Annotated[
        float, typer.Option(min=0.0, max=50.0, help="Per cent of its steps that are its start, and its end.",
                            rich_help_panel=_RUN)
    ] = 10.0,
    png: Annotated[Path | None, _file_option("Write the heat maps as PNG.")] = None,
    svg: Annotated[Path | None, _file_option("Write the heat maps as SVG.")] = None,
    html: Annotated[Path | None, _file_option("Write a page of its own with maps and numbers.")] = None,
    sets: opt.SetOption = None,
    seed: opt.SeedOption = None,
    device: opt.DeviceOption = None,
    precision: opt.PrecisionOption = None,
    json: opt.JsonOption = False,
) -> None:  # fmt: skip
    """Show how far every layer of one model is from every layer of another, and which are matched.

    Without arguments: the demo pair. With `--run`: a run's own models and verbalizers, and how its matches moved.
    Target layers are set as for `distill`, e.g. `--set teacher.targets.layers=[2,4,6]`.
    """
    _output.use_json(json)
    given = asking.flags(
        teacher=teacher,
        student=student,
        teacher_verbalizers=teacher_verbalizers,
        data=data,
        seed=seed,
        device=device,
        precision=precision,
    )
    resolved = asking.pair(
        recipe,
        sets or (),
        given,
        student_verbalizers=student_verbalizers,
        run=run,
        history_only=history,
        at_start=at is At.start,
    )

    from vlsi_cli.engine.runs import match_layers as engine

    with _progress.RunView() as view:
        report = engine.run(
            resolved,
            events=view,
            samples=samples,
            draws=draws,
            batch_size=batch_size,
            student_verbalizers=student_verbalizers,
            run_folder=run,
            at=at.value,
            ends=ends / 100,
            history_only=history,
            png=png,
            svg=svg,
            html=html,
        )
    if json:
        _output.document(report)
        return
    for part in _tables_match.report_parts(report, width=_output.width()):
        _output.data(part)
    for path in (png, svg, html):
        if path is not None:
            _output.say(f"written: {path}")
