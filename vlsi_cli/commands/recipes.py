"""``vlsi recipes``: list, show, copy and check recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlsi_cli.commands import _options as opt
from vlsi_cli.commands import _output, _tables
from vlsi_cli.config import loading, planning, recipes
from vlsi_cli.errors import ConfigError, VlsiError

app = typer.Typer(help="List, show, copy and check recipes.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped recipe or a YAML file.")]


@app.command("ls")
def ls(json: opt.JsonOption = False) -> None:
    """List the shipped recipes."""
    _output.use_json(json)
    found = [recipes.read(name) for name in recipes.names()]
    if json:
        _output.document(
            [
                {
                    "name": recipe.name,
                    "path": recipe.path,
                    "teacher": recipe.model("teacher"),
                    "student": recipe.model("student"),
                    "description": recipe.description,
                }
                for recipe in found
            ]
        )
    else:
        _output.data(_tables.recipes_table(found))


@app.command("show")
def show(recipe: _Name, json: opt.JsonOption = False) -> None:
    """Print a recipe as it is written, or with `--json` its values together with every default."""
    _output.use_json(json)
    if json:
        resolved = loading.resolve(recipe)
        _output.document(resolved.config.model_dump(mode="json"))
    else:
        _output.data(recipes.read(recipe).path.read_text(encoding="utf-8").rstrip("\n"))


@app.command("cp")
def cp(
    recipe: _Name,
    target: Annotated[Path, typer.Argument(help="A folder, or a .yaml file to write.")] = Path("."),
    overwrite: opt.OverwriteOption = False,
    json: opt.JsonOption = False,
) -> None:
    """Copy a recipe, to change it and run it with `vlsi distill --recipe FILE`."""
    _output.use_json(json)
    written = recipes.copy(recipe, target, overwrite=overwrite)
    if json:
        _output.document({"path": written})
    else:
        _output.data(str(written))


@app.command("check")
def check(
    recipe: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME|FILE|all", help="Which to check.", show_default="all"),
    ] = None,
    json: opt.JsonOption = False,
) -> None:
    """Check that recipes are valid and that their target layers fit, without loading anything."""
    _output.use_json(json)
    results: list[dict[str, str | bool | None]] = []
    names = [each for word in recipe or ["all"] for each in (recipes.names() if word == "all" else [word])]
    for name in names:
        try:
            planning.plan(loading.resolve(name))
            results.append({"recipe": name, "valid": True, "problem": None})
        except VlsiError as error:
            if len(names) == 1:
                raise
            results.append({"recipe": name, "valid": False, "problem": str(error)})
    if json:
        _output.document(results)
    else:
        for result in results:
            _output.data(f"{result['recipe']}: {result['problem'] or 'valid'}")
    if bad := [str(result["recipe"]) for result in results if not result["valid"]]:
        _output.error(ConfigError(f"not valid: {', '.join(bad)}"), reported=True)
        raise typer.Exit(ConfigError.exit_code)
