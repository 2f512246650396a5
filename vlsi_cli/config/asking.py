"""From what is asked for, on a command line or in Python, to what is to be done: one way for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vlsi_cli.config import folders, launching, loading, planning, reach, recipes, words
from vlsi_cli.config.complaints import complain
from vlsi_cli.config.data import DataConfig
from vlsi_cli.config.extras import require_extras
from vlsi_cli.config.loading import Resolved
from vlsi_cli.errors import ConfigError, VlsiError

#: Training data: a file, folder, hub id or ``patterns`` as after ``--data``; or a source as recipes spell it.
Data = str | Path | Mapping[str, Any]


def sources(data: Data | Sequence[Data] | None) -> list[dict[str, Any]] | None:
    """Data as the sources of a recipe; None where there are none.

    Raises:
        ConfigError, DataError: as :func:`vlsi_cli.config.words.source_from_word`.
    """
    each = [data] if isinstance(data, str | Path | Mapping) else data or ()
    found = [dict(one) if isinstance(one, Mapping) else words.source_from_word(str(one)) for one in each]
    return found or None


def data_config(data: Data | Sequence[Data]) -> DataConfig:
    """Data to be read as in training, everything else by its default.

    Raises:
        ConfigError, DataError: as :func:`sources`, or a source that is none.
    """
    try:
        return DataConfig.model_validate({"sources": sources(data) or []})
    except ValidationError as error:
        raise complain(error, {}, DataConfig) from None


def flags(
    *,
    teacher: str | Path | None = None,
    student: str | Path | None = None,
    teacher_cache: str | Path | None = None,
    teacher_verbalizers: str | Path | None = None,
    data: Data | Sequence[Data] | None = None,
    seed: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    report_to: str | Sequence[str] | None = None,
) -> dict[str, Any]:
    """The values of :data:`vlsi_cli.config.loading.FLAGS` and of those beside them, by their keys."""
    cache = Path(teacher_cache).expanduser().absolute() if teacher_cache is not None else None
    return {
        "teacher.id": str(teacher) if teacher is not None else None,
        "student.id": str(student) if student is not None else None,
        "teacher.cache": str(cache) if cache is not None else None,
        "teacher.verbalizers": str(teacher_verbalizers) if teacher_verbalizers is not None else None,
        "data.sources": sources(data),
        "seed": seed,
        "device": device,
        "precision": precision,
        "watch.report_to": ([report_to] if isinstance(report_to, str) else list(report_to or ())) or None,
    }


def distillation(
    options: Mapping[str, Any], *, resume: str | Path | None = None, skip_damaged: bool = False
) -> Resolved:
    """The configuration of a run: that of the run gone on with, or a new one.

    Args:
        options: values of the options of ``vlsi distill`` by their names, in the order in which they are told of:
            ``recipe``, ``teacher``, ``student``, ``teacher-cache``, ``data``, ``set`` (as in
            :func:`vlsi_cli.config.loading.resolve`), ``output``, ``overwrite``, ``seed``, ``device``, ``precision``,
            ``report-to``.
        resume: a run folder, or ``auto``; None for a new run.
        skip_damaged: whether damaged checkpoints are passed over.

    Raises:
        ConfigError: options that do not go together, or a value that cannot be used.
        CheckpointError: no run folder to go on with.
    """
    if skip_damaged and resume is None:
        raise ConfigError("--skip-damaged says how to resume, but there is no --resume")
    if resume == "auto" and options["overwrite"]:
        raise ConfigError("--resume auto would go on with what --overwrite removes", hint="leave one out")
    if resume not in (None, "auto"):
        extra = [f"--{name}" for name, value in options.items() if _is_given(value)]
        if extra:
            raise ConfigError(
                f"--resume continues a run with its own configuration, but {', '.join(extra)} was given too",
                hint="leave it out, or start a new run with --output",
            )
        return loading.load_saved(Path(resume).expanduser())
    given = flags(
        teacher=options["teacher"],
        student=options["student"],
        teacher_cache=options["teacher-cache"],
        data=options["data"],
        seed=options["seed"],
        device=options["device"],
        precision=options["precision"],
        report_to=options["report-to"],
    )
    recipe = recipes.choose(options["recipe"], given["teacher.id"], given["student.id"])
    return loading.resolve(recipe, options["set"] or (), given)


def _is_given(value: Any) -> bool:
    return value is not None and value is not False and (isinstance(value, int | Path) or bool(value))


def run_folder(
    resolved: Resolved, *, output: Path | None, resume: str | Path | None, overwrite: bool
) -> tuple[Path | None, bool]:
    """Where a distillation writes, and whether it goes on with what is there. Nothing is created here.

    Of several processes the first finds that out, and tells the others as the run begins. None stands for the first
    free ``runs/NAME-N``, which the run takes as it begins (:func:`vlsi_cli.config.folders.claim`).

    Args:
        resume: a run folder; ``auto`` for the one in ``output``, or the newest unfinished run of the configuration;
            None for a new run.

    Raises:
        OutputError: the folder holds something already.
    """
    going_on = Path(resume).expanduser() if resume not in (None, "auto") else None
    if launching.rank() > 0:
        return going_on or output, going_on is not None
    if resume == "auto":
        going_on = folders.to_go_on_with(output, resolved)
    if going_on is None and output is not None:
        folders.require_free(output, overwrite=overwrite)
    return going_on or output, going_on is not None


def require(resolved: Resolved, *, of_run: bool, dry_run: bool, ask_hub: bool = True) -> None:
    """See that all a distillation needs is here or can be had.

    Args:
        of_run, dry_run, ask_hub: see :func:`vlsi_cli.config.reach.require`.

    Raises:
        ConfigError, ModelError, DataError: what is missing, and how to get it.
    """
    reach.require(planning.needs(resolved.config), of_run=of_run, dry_run=dry_run, ask_hub=ask_hub)
    require_extras(resolved.config)


def obstacle(
    resolved: Resolved, *, output: Path | None, resume: str | Path | None, overwrite: bool
) -> VlsiError | None:
    """The error that a distillation would end in before it loads anything, as far as this machine can tell by itself.

    The hub is not asked: what can be fetched from it is no obstacle, unless the environment forbids fetching.

    Args:
        output, resume, overwrite: as for :func:`run_folder`.
    """
    try:
        _, goes_on = run_folder(resolved, output=output, resume=resume, overwrite=overwrite)
        require(resolved, of_run=goes_on, dry_run=False, ask_hub=False)
    except VlsiError as error:
        return error
    return None


def pair(
    recipe: str | Path | None,
    sets: Sequence[str] | Mapping[str, Any],
    given: Mapping[str, Any],
    *,
    student_verbalizers: str | Path | None,
    run: Path | None,
    history_only: bool,
    at_start: bool,
) -> Resolved:
    """The two models whose layers are compared, with their data and matching; and see that all of it is there.

    Args:
        recipe: as for a distillation.
        sets: see :func:`vlsi_cli.config.loading.resolve`.
        given: from :func:`flags`.
        student_verbalizers: the small model's set.
        run: a run folder that brings its own models, but for the large one's verbalizers where it read a cache; None
            for those of ``recipe`` and ``given``.
        history_only: whether only its matches are read, and no model.
        at_start: whether its small model is wanted as the interaction began.

    Raises:
        ConfigError: options that do not go together.
        VlsiError: as ``resolve`` and :func:`vlsi_cli.config.reach.require` have it.
    """
    own = {
        "--teacher": given["teacher.id"],
        "--student": given["student.id"],
        "--recipe": recipe,
        "--teacher-verbalizers": given["teacher.verbalizers"],
        "--student-verbalizers": student_verbalizers,
    }
    if run is not None and _lacks_its_large_sets(run):
        del own["--teacher-verbalizers"]
    if run is not None and (extra := [name for name, value in own.items() if value is not None]):
        also = ", ".join(extra)
        raise ConfigError(f"--run brings its own models, but {also} was given too", hint="leave it out")
    if run is None and (history_only or at_start):
        which = "--history" if history_only else "--at"
        raise ConfigError(f"{which} is about a run", hint="give the run with --run")
    if history_only and (given["data.sources"] or sets):
        also = "--data" if given["data.sources"] else "--set"
        raise ConfigError(f"--history reads a log alone, but {also} was given too", hint="leave it out")
    if run is not None:
        loading.load_saved(run)  # refused as a run folder before it is read as a recipe
        recipe = run / loading.CONFIG_FILE
    else:
        recipe = recipes.choose(recipe, given["teacher.id"], given["student.id"])
    resolved = loading.resolve(recipe, sets, given)
    if not history_only:
        needed = [need for need in planning.needs(resolved.config) if not need.what.startswith("evaluation")]
        reach.require(needed, dry_run=False, of_run=run is not None)
    return resolved


def _lacks_its_large_sets(run: Path) -> bool:
    """Whether a run read its large model from a cache, which has what its verbalizers say and not them."""
    try:
        teacher = loading.load_saved(run).config.teacher
    except VlsiError:  # whatever it is, another option may be wrong before it
        return False
    return teacher is not None and teacher.cache is not None
