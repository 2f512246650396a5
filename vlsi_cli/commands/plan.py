"""``vlsi plan``: what a distillation would ask of a machine, from configurations alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from vlsi_cli.commands import _options as opt
from vlsi_cli.commands import _output, _tables_plan
from vlsi_cli.config import accelerators, advice, asking, loading, planning, recipes
from vlsi_cli.config.loading import Resolved
from vlsi_cli.config.stage_plans import Records
from vlsi_cli.errors import ConfigError, RequirementError

_RECORDS, _MACHINE = "Records", "Machine"


def plan(
    recipe: opt.RecipeOption = None,
    teacher: opt.TeacherOption = None,
    student: opt.StudentOption = None,
    data: opt.DataOption = None,
    sets: opt.SetOption = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="NAME|SIZE",
            help="A device such as a100-80 or h200, or an amount of memory such as 48GiB; default: a table of all.",
            show_default=False,
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="How many of them.", rich_help_panel=_MACHINE)] = 1,
    sharding: Annotated[
        advice.Sharding,
        typer.Option(
            help="none: each holds everything; student: what trains is divided; both: the large model too; zero2: "
            "gradients and moments (DeepSpeed); zero3: as student, by DeepSpeed.",
            rich_help_panel=_MACHINE,
        ),
    ] = "none",
    efficiency: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=1.0,
            help="Share of a device's stated arithmetic that training reaches.",
            rich_help_panel=_MACHINE,
        ),
    ] = 0.4,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="N",
            help="Tokens of a record, images included; default: data.max_length.",
            show_default=False,
            rich_help_panel=_RECORDS,
        ),
    ] = None,
    response_share: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of them that is trained on.", rich_help_panel=_RECORDS),
    ] = Records.response_share,
    image_share: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Share of them that comes from pictures.", rich_help_panel=_RECORDS
        ),
    ] = Records.image_share,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Fail (exit code 10) unless every stage fits --device.",
            rich_help_panel=_MACHINE,
        ),
    ] = False,
    json: opt.JsonOption = False,
) -> None:
    """Print what a distillation asks for: memory by stage and part, arithmetic, time, and what makes it fit.

    Loads no weights and needs no network: shapes come from the built-in catalogue or a config on this machine.
    """
    _output.use_json(json)
    if strict and device is None:
        raise ConfigError("--strict asks whether the run fits, but there is no --device", hint="add it")
    flags = asking.flags(teacher=teacher, student=student, data=data)
    # what does not go with it is refused, not advised
    flags["sharding"] = sharding if sharding != "none" else None
    chosen = recipes.choose(recipe, teacher, student)

    def again(more: Sequence[str]) -> Resolved:
        return loading.resolve(chosen, [*(sets or ()), *more], flags, without_data=True)

    records = Records(tokens, response_share, image_share)
    made = planning.plan(again(()), records)
    wanted = [accelerators.accelerator(device)] if device else list(accelerators.ACCELERATORS)
    places = [advice.Placement(one, devices, sharding, efficiency) for one in wanted]
    found = [advice.advise(made, place, records, again) for place in places]
    if json:
        placed = [{**asdict(place), **asdict(one)} for place, one in zip(places, found, strict=True)]
        _output.document({**made.to_json(), "devices": placed})
    else:
        for part in _tables_plan.plan_parts(made, places, found):
            _output.data(part)
    if strict and not found[0].fits:
        _output.error(_tables_plan.does_not_fit(made, places[0], found[0]), reported=True)
        raise typer.Exit(RequirementError.exit_code)
