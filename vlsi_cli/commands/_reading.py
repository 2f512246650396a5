"""Whose eyes data are looked at with: what `vlsi data preview` and `vlsi data check` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from vlsi_cli.config import catalog, loading, recipes
from vlsi_cli.config.data import DataConfig
from vlsi_cli.config.words import sources_from_words

ReaderOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Whose tokenizer, template and image processor to use; default: the recipe's student, or demo/small.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Looked:
    """Data, the held-out data of a recipe that was named, and the model that they are looked at with."""

    data: DataConfig
    held_out: DataConfig | None
    model: str
    revision: str | None


def resolve(
    named: list[str] | None,
    given: list[str] | None,
    recipe: str | None,
    sets: list[str] | None,
    model: str | None,
) -> Looked:
    """The data and the model of a command line.

    Args:
        named, given: words for data, as arguments and after ``--data``; without any: those of the recipe.
        recipe: None: the defaults for data that are named, else the demo's.
        model: None: the recipe's student.

    Raises:
        ConfigError, DataError: something that cannot be read.
    """
    words, named_recipe = sources_from_words(named, given), recipe is not None
    if words and recipe is None:  # read as the defaults say, not as the demo's recipe does
        sets = ["teacher.id=demo/large", "student.id=demo/small", *(sets or ())]
    else:
        recipe = recipe or recipes.DEFAULT
    whole = loading.resolve(recipe, sets or (), {"data.sources": words}).config
    held_out = whole.evaluation.data if named_recipe else None
    if model is not None:
        return Looked(whole.data, held_out, catalog.resolve_alias(model), None)
    return Looked(whole.data, held_out, whole.student.id, whole.student.revision)
