"""``vlsi cache``: the large model's answers on disk, built once and read by any number of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vlsi_cli.commands import _options as opt
from vlsi_cli.commands import _output, _progress, _tables_cache
from vlsi_cli.config import asking, loading, planning, reach, recipes
from vlsi_cli.errors import CheckpointError, ConfigError

app = typer.Typer(help="Build, describe and verify caches of a large model's answers.", no_args_is_help=True)

_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The cache's folder.", show_default=False)]


@app.command("build")
def build(
    folder: _Folder,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="A run whose large model has its verbalizers: its configuration and those are used.",
            show_default=False,
        ),
    ] = None,
    verbalizers: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|MODEL",
            help="The large model's trained verbalizers: a folder, or a hub id that has them.",
            show_default=False,
        ),
    ] = None,
    recipe: opt.RecipeOption = None,
    teacher: opt.TeacherOption = None,
    student: opt.StudentOption = None,
    data: opt.DataOption = None,
    sets: opt.SetOption = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Keep the K likeliest tokens of each layer and the mass of the rest, instead of exact states.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Records at a time; default: as in step 2 of the run.", show_default=False),
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Size of a shard in MiB.")] = 256,
    overwrite: opt.OverwriteOption = False,
    device: opt.DeviceOption = None,
    precision: opt.PrecisionOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how large it would be; load no weights, write nothing.")
    ] = False,
    json: opt.JsonOption = False,
) -> None:
    """Run the large model over the data once and keep what a distillation needs of it.

    Its verbalizers must be trained: `--run` takes them and everything else from a run, `--verbalizers` from a
    folder. The data must have an end. A build that was stopped goes on with the same command.
    """
    _output.use_json(json)
    flags = asking.flags(
        teacher=teacher,
        student=student,
        teacher_verbalizers=_placed(verbalizers),
        data=data,
        device=device,
        precision=precision,
    )
    if run is None:
        resolved = loading.resolve(recipes.choose(recipe, teacher, student), sets or (), flags)
    else:
        if recipe or teacher or student:
            raise ConfigError(
                "--run has its own configuration, but --recipe, --teacher or --student was given too",
                hint="leave them out, or give --verbalizers RUN/verbalizers/large instead of --run",
            )
        loading.load_saved(run)  # refuses what is no run folder
        trained = run / "verbalizers" / "large"
        if verbalizers is None and trained.is_dir():
            flags["teacher.verbalizers"] = str(trained.absolute())
        resolved = loading.resolve(run / loading.CONFIG_FILE, sets or (), flags)
    reach.require(planning.needs(resolved.config), dry_run=False, of_run=run is not None)

    from vlsi_cli.engine.runs import cache as engine

    with _progress.RunView() as view:
        report = engine.build(
            resolved,
            path=folder,
            top_k=top_k,
            batch_size=batch_size,
            shard_bytes=shard_size * 2**20,
            events=view,
            overwrite=overwrite,
            dry_run=dry_run,
        )
    _show(report, json)


@app.command("info")
def info(folder: _Folder, json: opt.JsonOption = False) -> None:
    """Say what a cache is of and how large it is; its shards are not read."""
    _output.use_json(json)
    from vlsi_cli.engine.runs import cache as engine

    _show(engine.info(folder), json)


@app.command("verify")
def verify(folder: _Folder, json: opt.JsonOption = False) -> None:
    """Compare every byte of a cache with what was written; exit code 7 when any differs."""
    _output.use_json(json)
    from vlsi_cli.engine.runs import cache as engine

    report = engine.verify(folder)
    if report.problems:
        raise CheckpointError(
            f"the teacher cache {folder} is not sound: {'; '.join(report.problems)}",
            hint="remove the damaged files and run the same `vlsi cache build` again: it makes them anew",
        )
    if json:
        _output.document(report)
    else:
        for part in _tables_cache.verify_parts(report):
            _output.data(part)


def _placed(place: str | None) -> str | None:
    """A folder by its whole path, since the configuration may be read from elsewhere; a hub id as it is."""
    return str(Path(place).absolute()) if place and Path(place).exists() else place


def _show(report: Any, json: bool) -> None:
    if json:
        _output.document(report)
    else:
        for part in _tables_cache.cache_parts(report):
            _output.data(part)
