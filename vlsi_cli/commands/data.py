"""``vlsi data``: look at training data as a model would, check them, fetch what they name, have them answered."""

from __future__ import annotations

from typing import Annotated

import typer

from vlsi_cli.commands import _launch, _output, _progress, _reading, _tables, data_answer, data_check
from vlsi_cli.commands import _options as opt
from vlsi_cli.config import loading, reach, recipes
from vlsi_cli.config.presence import data_needs
from vlsi_cli.config.words import sources_from_words
from vlsi_cli.errors import ConfigError, DataError

app = typer.Typer(
    help="Look at training data, check them, fetch their images, and have a model answer them.",
    no_args_is_help=True,
)


@app.callback()
def _data() -> None:
    """Look at training data, check them, fetch their images, and have a model answer them."""


@app.command("preview")
def preview(
    named: opt.NamedArgument = None,
    data: opt.DataOption = None,
    recipe: opt.RecipeOption = None,
    sets: opt.SetOption = None,
    model: _reading.ReaderOption = None,
    source: Annotated[int, typer.Option(min=0, help="Which source, counted from 0.")] = 0,
    index: Annotated[int, typer.Option("--index", "-n", min=0, help="Which record, counted from 0.")] = 0,
    json: opt.JsonOption = False,
) -> None:
    """Print one record as tokens, with those that are trained on in colour (in ⟦ ⟧ without a terminal).

    Without DATA: the data of `--recipe`, by default those of the demo.
    """
    _output.use_json(json)
    looked = _reading.resolve(named, data, recipe, sets, model)
    needs = data_needs("data", looked.data)
    reach.require(
        [need for need in needs if f"{need.what}.".startswith(f"data.sources.{source}.")], dry_run=False
    )

    from vlsi_cli.engine.runs import preview as engine

    report = engine.run(looked.data, model=looked.model, index=index, source=source, revision=looked.revision)
    if json:
        _output.document(report)
    else:
        for part in _tables.preview_parts(report, colours=_output.has_colours()):
            _output.data(part)


app.command("check")(data_check.check)


@app.command("fetch")
def fetch(
    named: opt.NamedArgument = None,
    data: opt.DataOption = None,
    recipe: opt.RecipeOption = None,
    sets: opt.SetOption = None,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Images fetched at a time.")] = 16,
    again: Annotated[bool, typer.Option("--again", help="Ask also for what has failed before.")] = False,
    json: opt.JsonOption = False,
) -> None:
    """Fetch the images that records name by address, before a run needs them.

    They are kept in the folder `data.image_urls.folder`, from which runs with `data.image_urls.fetch: true` read them.
    With `--recipe` also those of its held-out data. What was stopped goes on with the same command. Where images could
    not be fetched, it ends with exit code 3.
    """
    _output.use_json(json)
    words = sources_from_words(named, data)
    if words is None and recipe is None:
        raise ConfigError("no data are given", hint="name a file or a data set, or give --recipe")
    config = loading.resolve(recipe or recipes.DEFAULT, sets or (), {"data.sources": words}).config
    wanted = {"data": config.data}
    if recipe is not None and config.evaluation.data is not None:
        wanted["evaluation.data"] = config.evaluation.data
    reach.require([need for place, each in wanted.items() for need in data_needs(place, each)], dry_run=False)

    from vlsi_cli.engine.runs import fetch as engine

    with _progress.RunView() as view:
        report = engine.run(list(wanted.values()), threads=threads, again=again, events=view)
    if json:
        _output.document(report)
    else:
        for part in _tables.fetch_parts(report):
            _output.data(part)
    if lacking := sum(report.failed.values()):
        _output.warn(f"{lacking:,} of {report.addresses:,} images are not there; the report says why")
        raise typer.Exit(DataError.exit_code)


app.command("answer", cls=_launch.Launched)(data_answer.answer)
