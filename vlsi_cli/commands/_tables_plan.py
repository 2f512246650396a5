"""Plans on devices as tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from vlsi_cli.commands import _tables
from vlsi_cli.commands._progress import duration
from vlsi_cli.config.advice import Advice, Placement
from vlsi_cli.config.plans import Plan
from vlsi_cli.errors import RequirementError


def plan_parts(plan: Plan, places: list[Placement], found: list[Advice]) -> Iterator[RenderableType]:
    """Memory by part, then each device: whether it fits, how long it takes, what would make it fit."""
    yield from _tables.plan_models(plan)
    yield _arithmetic(plan)
    if len(places) == 1:
        yield _one(plan, places[0], found[0])
        if found[0].ladder:
            yield _ladder(places[0], found[0])
    else:
        yield _all(plan, places, found)
    for note in plan.notes:
        yield f"note: {note}"
    if places[0].count > 1:
        yield "note: for several devices this is arithmetic; what this version runs on is said in the documentation"


def does_not_fit(plan: Plan, place: Placement, found: Advice) -> RequirementError:
    """What `--strict` says of a run that does not fit, or of which it cannot be told."""
    unknown = [stage for stage, peak in zip(plan.stages, found.peaks, strict=True) if peak is None]
    if unknown:
        return RequirementError(
            f"nothing says whether the run fits {_name(place)}: the shapes of a model are not known here",
            hint="name a model of the catalogue, or have its config.json on this machine",
        )
    known = zip(plan.stages, (peak or 0 for peak in found.peaks), strict=True)
    stage, peak = max(known, key=lambda pair: pair[1])
    held, least = _tables.size(place.device.memory), found.ladder[-1] if found.ladder else None
    hint = "take a larger device, or more of them with --sharding both"
    if least is not None and least.fits:
        last = dict(
            one.split("=", 1) for rung in found.ladder for one in rung.settings
        )  # later rungs take some back
        hint = "it fits with " + " ".join(f"--set {key}={value}" for key, value in last.items())
    return RequirementError(
        f"the run does not fit {_name(place)}: {stage.stage} ({stage.side}) asks for {_tables.size(peak)} of {held}",
        hint=hint,
    )


def _arithmetic(plan: Plan) -> Table:
    table = _tables.new_table("Arithmetic", "stage", "model", "steps", "PFLOP a step", "PFLOP in all")
    for stage in plan.stages:
        step = stage.step_flops
        whole = None if step is None or stage.steps is None else step * stage.steps
        table.add_row(stage.stage, stage.side, _tables.steps_of(stage), _peta(step), _peta(whole))
    return table


def _one(plan: Plan, place: Placement, found: Advice) -> Table:
    table = _tables.new_table(f"On {_name(place)}", "stage", "model", "peak", "of", "fits", "time, at least")
    for stage, peak, seconds in zip(plan.stages, found.peaks, found.seconds, strict=True):
        fits = "?" if peak is None else "yes" if peak <= place.device.memory else "no"
        table.add_row(
            stage.stage,
            stage.side,
            "?" if peak is None else _tables.size(peak),
            _tables.size(place.device.memory),
            fits,
            "?" if seconds is None else duration(seconds),
        )
    return table


def _ladder(place: Placement, found: Advice) -> Table:
    table = _tables.new_table(
        "What to change, in this order", "--set", "largest peak", "fits", "what it costs"
    )
    for rung in found.ladder:
        table.add_row(
            "\n".join(rung.settings), _tables.size(rung.peak), "yes" if rung.fits else "no", rung.why
        )
    if not found.ladder[-1].fits:
        wanted = _tables.size(found.ladder[-1].peak)
        table.add_row(
            "",
            wanted,
            "no",
            f"{_name(place)} cannot hold it: a larger device, or more of them with --sharding both",
        )
    if found.cached is not None:
        fits = "yes" if found.cached <= place.device.memory else "no"
        why = "instead of all of these: the large model from a teacher cache"
        if found.building is not None:
            why += f", behind a run of verbalization alone ({_tables.size(found.building)})"
        table.add_row("teacher.cache=DIR", _tables.size(found.cached), fits, why)
    return table


def _all(plan: Plan, places: list[Placement], found: list[Advice]) -> Table:
    table = _tables.new_table(
        "Devices", "device", "memory", "largest peak", "fits", "fits with changes", "time, at least"
    )
    for place, one in zip(places, found, strict=True):
        known = [peak for peak in one.peaks if peak is not None]
        times = [seconds for seconds in one.seconds if seconds is not None]
        changed = "-" if one.fits else "yes" if one.ladder and one.ladder[-1].fits else "no"
        table.add_row(
            _name(place),
            _tables.size(place.device.memory),
            _tables.size(max(known)) if known else "?",
            "?" if one.fits is None else "yes" if one.fits else "no",
            "?" if one.fits is None else changed,
            duration(sum(times)) if len(times) == len(plan.stages) else "?",
        )
    return table


def _name(place: Placement) -> str:
    shared = "" if place.sharding == "none" else f", sharding {place.sharding}"
    return place.device.name if place.count == 1 else f"{place.count} x {place.device.name}{shared}"


def _peta(operations: int | None) -> str:
    return "?" if operations is None else f"{operations / 1e15:,.3g}"
