"""What ``vlsi_cli`` offers to Python beside its losses: the runs of the commands, called as functions.

A door and no room: each function puts together what a command would and calls the same engine. Arguments have the
names of its options, ``teacher_cache`` of ``--teacher-cache``, and ``overrides`` is ``--set``; messages name options
too. What is None is left to the recipe and to the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from vlsi_cli.config import asking, catalog, evaluating, reading
from vlsi_cli.config.asking import Data
from vlsi_cli.config.complaints import complain
from vlsi_cli.config.evaluation import EvaluationConfig
from vlsi_cli.errors import ConfigError
from vlsi_cli.events import Events, Report, ignore

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from vlsi_cli.engine.runs.evaluate import EvaluationReport
    from vlsi_cli.engine.runs.layers import LayerReader
    from vlsi_cli.engine.runs.match_reports import MatchReport
    from vlsi_cli.engine.runs.run_files import Run


def distill(
    recipe: str | Path | None = None,
    *,
    teacher: str | Path | None = None,
    student: str | Path | None = None,
    teacher_cache: str | Path | None = None,
    data: Data | Sequence[Data] | None = None,
    overrides: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    resume: str | Path | None = None,
    skip_damaged: bool = False,
    seed: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    report_to: str | Sequence[str] | None = None,
    events: Events = ignore,
) -> Report:
    """Distil a large vision-language model into a small one, as ``vlsi distill`` does.

    In a process that torchrun or ``accelerate launch`` has started this is one of the run's processes. What belongs to
    the whole process (random states, threads, accelerate's state) is afterwards as it was before. In the main thread
    Ctrl-C ends the run after its step, with a checkpoint; elsewhere Python delivers no signals.

    Args:
        recipe: name or file; None: that of the two models, or the demo's without any.
        teacher, student: hub id, folder, or name; for the student also a size of the teacher's family.
        teacher_cache: folder of ``vlsi cache build``, read in place of the large model.
        data: a file, folder, hub id, the word ``patterns``, a source as recipes spell it, or several.
        overrides: dotted keys of the configuration with their values, ``{"interaction.steps": 100}``.
        output: the run folder; None: ``runs/NAME-N``, the first free N.
        overwrite: replace a run that is there.
        resume: a run folder to go on with, by its own configuration; or ``auto``: the run in ``output``, or the newest
            unfinished one of this configuration, or else a new one.
        skip_damaged: with ``resume``: go on from the newest undamaged checkpoint.
        seed, device, precision, report_to: see the configuration.
        events: called with every event (:mod:`vlsi_cli.events`), in this thread, between two steps. What it raises
            ends the run, which can be resumed from its last checkpoint.

    Returns:
        What became of it: run folder, student, scores, stages.

    Raises:
        VlsiError: any branch of :mod:`vlsi_cli.errors`; ``Interrupted`` when the run was asked to stop.
    """
    options = {
        "recipe": recipe,
        "teacher": teacher,
        "student": student,
        "teacher-cache": teacher_cache,
        "data": data,
        "set": overrides,
        "output": output,
        "overwrite": overwrite,
        "seed": seed,
        "device": device,
        "precision": precision,
        "report-to": report_to,
    }
    resolved = asking.distillation(options, resume=resume, skip_damaged=skip_damaged)
    where = Path(output).expanduser() if output is not None else None
    run, goes_on = asking.run_folder(resolved, output=where, resume=resume, overwrite=overwrite)
    asking.require(resolved, of_run=goes_on, dry_run=False)

    from vlsi_cli.engine.runs import distill as engine

    return engine.run(
        resolved, output=run, events=events, resume=goes_on, overwrite=overwrite, skip_damaged=skip_damaged
    )


def load_layers(
    model: str | Path | PreTrainedModel,
    *,
    processor: ProcessorMixin | str | Path | None = None,
    verbalizers: str | Path | Sequence[str | Path] = (),
    logit_lens: bool = False,
    layers: Sequence[int] | None = None,
    device: str | None = None,
    precision: str | None = None,
) -> LayerReader:
    """Load a model with what reads its layers, as ``vlsi verbalize`` does, and keep it; or read one that is in memory.

    Args:
        model: hub id, folder, name, or a run folder: its student, with the verbalizers of its step 2.
            ``RUN/stages/interaction`` is the small model as step 2 left it. Or a model of transformers, head included
            and all of it on one device, which is neither copied nor changed: it is read in eval mode and without
            gradients, and after each call its modes are what they were. It can be trained on between two calls.
        processor: of a model in memory: what ``AutoProcessor`` gives, or a folder or hub id whose processor is loaded.
        verbalizers: sets, runs, or hub ids of models pushed with some; the first that fits is taken.
        logit_lens: read by the model's own final norm and head even where there are verbalizers.
        layers: decoder layers, counted from 1; None: those with a verbalizer, or all. The last is always read.
        device, precision: as for a run; None: ``auto``. A model in memory has its own.

    Returns:
        The model, to be asked with ``answers``, ``read`` and ``read_data``. It takes memory as long as it is held.

    Raises:
        ModelError: it cannot be found or loaded, or is none that can be read; or the processor is not its own.
        CheckpointError: verbalizers that cannot be read, or belong to another model.
        ConfigError: no such layer, device or precision; or arguments that do not go together.
    """
    from vlsi_cli.engine.runs import layers as engine

    sets = [verbalizers] if isinstance(verbalizers, str | Path) else verbalizers
    if not isinstance(model, str | Path):
        if device is not None or precision is not None:
            raise ConfigError(
                "a model in memory has a device and a precision already, but another was given",
                hint="leave device and precision out, or move the model before",
            )
        if isinstance(processor, str | Path):
            processor = catalog.resolve_alias(str(processor))
        return engine.given_layers(model, processor, verbalizers=sets, logit_lens=logit_lens, layers=layers)
    if processor is not None:
        raise ConfigError(
            "processor belongs to a model in memory, but the model was given by its name",
            hint="leave it out: the processor is loaded with the model",
        )
    return engine.load_layers(
        catalog.resolve_alias(str(model)),
        verbalizers=sets,
        logit_lens=logit_lens,
        layers=layers,
        device=device or "auto",
        precision=precision or "auto",
    )


def match_layers(
    recipe: str | Path | None = None,
    *,
    teacher: str | Path | None = None,
    student: str | Path | None = None,
    teacher_verbalizers: str | Path | None = None,
    student_verbalizers: str | Path | None = None,
    run: str | Path | None = None,
    at: Literal["start", "end"] = "end",
    history: bool = False,
    ends: float = reading.ENDS,
    data: Data | Sequence[Data] | None = None,
    overrides: Mapping[str, Any] | None = None,
    samples: int = reading.SAMPLES,
    batch_size: int | None = None,
    draws: int = reading.DRAWS,
    seed: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    events: Events = ignore,
) -> MatchReport:
    """Compare the target layers of two models over records, as ``vlsi match-layers`` does.

    Args:
        recipe, teacher, student, data, overrides, seed, device, precision, events: as for :func:`distill`.
        teacher_verbalizers, student_verbalizers: trained sets; None: the logit lens.
        run: a run folder, whose models, verbalizers and matches are read in place of those.
        at: whether its small model is read as its interaction began or ended.
        history: read only its matches, and load no model.
        ends: share of its steps that are its start, and its end, 0..0.5.
        samples: records to read.
        batch_size: records that share a draw; None: as in the interaction.
        draws: draws of every batch for the drawn matches.

    Returns:
        ``survey.divergence`` is ``[n_small][n_large]``, mean KL(large || small) a response token in nats;
        ``survey.best`` the large layer of each small one in the ascending assignment of least total divergence.

    Raises:
        VlsiError: as ``vlsi match-layers``.
    """
    reading.require_counts(samples=samples, batch_size=batch_size, draws=draws)
    if not 0 < ends <= 0.5:
        raise ConfigError(f"ends is {ends!r}, and must be a share of the steps, at most 0.5")
    given = asking.flags(
        teacher=teacher,
        student=student,
        teacher_verbalizers=teacher_verbalizers,
        data=data,
        seed=seed,
        device=device,
        precision=precision,
    )
    folder = Path(run).expanduser() if run is not None else None
    resolved = asking.pair(
        recipe,
        overrides or (),
        given,
        student_verbalizers=student_verbalizers,
        run=folder,
        history_only=history,
        at_start=at == "start",
    )

    from vlsi_cli.engine.runs import match_layers as engine

    return engine.run(
        resolved,
        events=events,
        samples=samples,
        draws=draws,
        batch_size=batch_size,
        student_verbalizers=student_verbalizers,
        run_folder=folder,
        at=at,
        ends=ends,
        history_only=history,
    )


def evaluate(
    models: str | Path | Sequence[str | Path] | None = None,
    benchmarks: str | Sequence[str] | None = None,
    *,
    events: Events = ignore,
    **settings: Any,
) -> EvaluationReport | None:
    """Evaluate models on benchmarks, as ``vlsi eval`` does; it needs lmms-eval.

    Answers are kept in ``output`` as they come, and asked again by no call with the same weights and settings.

    Args:
        models: hub ids, folders or run folders; None: the demo pair.
        benchmarks: names that ``vlsi eval --list`` shows; None: the built-in puzzles.
        events: called with every event, in this thread.
        settings: other fields of ``EvaluationConfig``: ``output``, ``limit``, ``batch_size``, ``max_new_tokens``,
            ``tasks_dir``, ``paper``, ``judge`` (``{"model": ..., "url": ...}``), ``skip_unjudged``, ``device``,
            ``precision``, ...

    Returns:
        The report; a score that is missing is None, and says why. None in every process but the first.

    Raises:
        VlsiError: as ``vlsi eval``.
    """
    given = {"models": _each(models), "benchmarks": _each(benchmarks), **settings}
    try:
        config = EvaluationConfig.model_validate({key: one for key, one in given.items() if one is not None})
    except ValidationError as error:
        raise complain(error, {}, EvaluationConfig) from None

    from vlsi_cli.engine.runs.models import own_device
    from vlsi_cli.engine.runs.surroundings import left_as_found

    with left_as_found(own_device(config.device)):
        plan = evaluating.plan(config)

        from vlsi_cli.engine.runs import evaluate as engine

        return engine.run(config, plan, events)


def read_run(path: str | Path) -> Run:
    """Read the folder of a run, finished or not, as plain values.

    Raises:
        CheckpointError: no run folder, or a damaged one.
    """
    from vlsi_cli.engine.runs import run_files as engine

    return engine.read_run(Path(path).expanduser())


def _each(given: str | Path | Sequence[str | Path] | None) -> tuple[str, ...] | None:
    listed = [given] if isinstance(given, str | Path) else given
    return None if listed is None else tuple(map(str, listed))
