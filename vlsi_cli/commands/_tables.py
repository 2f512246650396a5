"""Plans, reports and recipes as tables. Makes them; ``_output`` prints them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vlsi_cli.commands._fitting import FittingTable
from vlsi_cli.commands._progress import duration, number, percent
from vlsi_cli.config.plans import Plan, SidePlan, StagePlan
from vlsi_cli.config.recipes import Recipe
from vlsi_cli.events import Report

if TYPE_CHECKING:
    from vlsi_cli.engine.runs.fetch import FetchReport
    from vlsi_cli.engine.runs.preview import PreviewReport


def plan_tables(plan: Plan) -> Iterator[RenderableType]:
    """Everything that a dry run shows, part by part."""
    yield f"Plan of {plan.name}" + (f" (recipe {plan.recipe})" if plan.recipe else "")
    yield _settings(plan)
    yield from plan_models(plan)
    yield _needs(plan)
    for note in plan.notes:
        yield f"note: {note}"


def plan_models(plan: Plan) -> Iterator[RenderableType]:
    """The models, their target layers, and the stages with their memory."""
    sides = [side for side in (plan.teacher, plan.student) if side is not None]
    yield _sides(sides)
    for side in sides:
        if side.facts:
            yield f"target layers, {side.side}: {_layers(side.targets)} of {side.facts.layers}"
    if plan.pairs:
        yield _pairs(plan)
    yield _stages(plan)


def report_table(report: Report) -> Table:
    """Small before, small after, large, on the held-out data."""
    kinds = list(dict.fromkeys(kind for score in report.scores for kind in score.by_kind))
    table = new_table("Held-out data", "model", "accuracy", "loss", "questions", *kinds)
    for score in report.scores:
        by_kind = [percent(score.by_kind.get(kind)) for kind in kinds]
        table.add_row(score.who, percent(score.accuracy), number(score.loss), str(score.n), *by_kind)
    return table


def stages_table(report: Report) -> Table:
    """What each stage did."""
    table = new_table("Stages", "stage", "trains", "steps", "time", "final loss")
    for stage in report.stages:
        row = (stage.stage, stage.side, str(stage.steps), duration(stage.seconds), number(stage.final_loss))
        table.add_row(*row)
    return table


def recipes_table(recipes: list[Recipe]) -> Table:
    """The shipped recipes."""
    table = new_table("Recipes", "name", "large", "small", "about")
    for recipe in recipes:
        large, small = recipe.model("teacher"), recipe.model("student")
        table.add_row(recipe.name, large or "-", small or "-", recipe.description)
    return table


def preview_parts(report: PreviewReport, *, colours: bool) -> Iterator[RenderableType]:
    """One record: where it is from, its tokens with the trained ones marked, and its numbers."""
    named = "" if report.where.endswith(report.record) else f", record {report.record}"
    held = "" if report.records is None else f" ({counted(report.records, 'record')} in all)"
    yield f"{report.where}{named}{held}, as {report.model} sees it"
    text, open_mark = Text(), False
    for piece in report.pieces:
        if not colours and piece.trained != open_mark:
            text.append("⟦" if piece.trained else "⟧")
            open_mark = piece.trained
        shown = f"{piece.text} x {piece.tokens} " if piece.image else piece.text
        text.append(shown, style="bold green" if piece.trained else "cyan" if piece.image else "dim")
    if open_mark:
        text.append("⟧")
    yield text
    yield f"{counted(report.tokens, 'token')}: {report.image_tokens} of images, {report.trained_tokens} trained"
    for name, shape in report.tensors.items():
        yield f"{name}: {' x '.join(map(str, shape))}"


def fetch_parts(report: FetchReport) -> Iterator[RenderableType]:
    """How many images there are, and why others are not."""
    table = new_table("Images", "", "addresses", figures=slice(1, None))
    for name, found in {"fetched": report.fetched, "there before": report.kept, **report.failed}.items():
        table.add_row(name, f"{found:,}")
    table.add_row("of", f"{report.addresses:,}")
    yield table
    for reason, some in report.examples.items():
        for each in some:
            yield f"{reason}: {each}"
    unusable = f", {report.unusable:,} of them unusable" if report.unusable else ""
    folders = ", ".join(map(str, report.folders))
    yield f"{counted(report.records, 'record')} read{unusable}; images are kept in {folders}"


def _settings(plan: Plan) -> Table:
    table = new_table("Configuration", "key", "value", "from")
    for key, value, origin in plan.settings:
        style = "dim" if origin == "default" else None
        table.add_row(key, _value(value), origin, style=style)
    return table


def _sides(sides: list[SidePlan]) -> Table:
    names = (
        "model",
        "id",
        "layers",
        "width",
        "vocabulary",
        "head",
        "parameters",
        "vision side",
        "verbalizers",
    )
    table = new_table("Models", *names)
    for side in sides:
        facts = side.facts
        if facts is None:
            table.add_row(side.side, side.id, *["unknown"] * 7)
            continue
        head = "tied" if facts.tied else "own"
        verbalizers = f"{len(side.targets)} x {count(side.verbalizer_parameters)}"
        vision = "unknown" if facts.vision is None else count(facts.vision)
        shape = (str(facts.layers), str(facts.hidden), str(facts.vocab), head)
        parameters = count(facts.parameters)
        if facts.experts is not None:
            parameters += f", {count(facts.parameters - facts.idle_parameters)} a token"
        table.add_row(side.side, side.id, *shape, parameters, vision, verbalizers)
    return table


def _pairs(plan: Plan) -> Table:
    table = new_table("Pairs of target layers", "small layer", "large layers it may meet")
    for pair in plan.pairs:
        table.add_row(str(pair.small), _layers(pair.large))
    return table


def _stages(plan: Plan) -> Table:
    names = (
        "stage",
        "model",
        "steps",
        "records a step",
        "trains",
        "trained",
        "weights",
        "verbalizers",
        "gradients",
        "AdamW",
    )
    table = new_table("Stages", *names, "activations", "losses", "peak memory (estimate)")
    for stage in plan.stages:
        memory = stage.memory
        sizes = ["?"] * 7
        if memory:
            sizes = [size(part) for part in (*astuple(memory), memory.total)]
        batch = f"{stage.batch_size} x {stage.gradient_accumulation} = {stage.effective_batch}"
        steps = steps_of(stage)
        trained = "?" if stage.trained_parameters is None else count(stage.trained_parameters)
        table.add_row(stage.stage, stage.side, steps, batch, stage.trains, trained, *sizes)
    return table


def _needs(plan: Plan) -> Table:
    table = new_table("Needs", "what", "where", "on this machine", "fetch with")
    for need in plan.needs:
        present = "yes" if need.present else "no"
        table.add_row(need.what, need.where, present, need.fetch if need.fetch and not need.present else "")
    return table


def new_table(title: str, *columns: str, figures: slice = slice(0)) -> Table:
    """An empty table in the style of all of them; columns in ``figures`` hold figures, units below units."""
    table = FittingTable(title, *columns)
    for column in table.columns[figures]:
        column.justify = "right"
    return table


def _layers(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers)) or "none"


def _value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def steps_of(stage: StagePlan) -> str:
    """The optimizer steps of a planned stage; `?` while nobody knows."""
    return "?" if stage.steps is None else f"{'about ' if stage.estimated else ''}{stage.steps:,}"


def count(parameters: int) -> str:
    """A number of parameters, three digits and a unit."""
    for unit, factor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= factor:
            amount = parameters / factor
            return f"{amount:.3g}{unit}" if amount < 999.5 else f"{amount:.0f}{unit}"
    return str(parameters)


def counted(number: int, what: str) -> str:
    """So many of something that has a plain plural: ``1 shard``, ``1,024 shards``."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def size(count_of_bytes: int) -> str:
    """Bytes in binary units."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if count_of_bytes >= factor:
            return f"{count_of_bytes / factor:,.1f} {unit}"
    return f"{count_of_bytes / 2**10:,.1f} KiB"
