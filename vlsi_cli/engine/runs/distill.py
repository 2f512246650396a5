"""``vlsi distill``: from a resolved configuration to a stock checkpoint of the small model."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from vlsi_cli.config.loading import Resolved
from vlsi_cli.config.run import DistillConfig, StageConfig
from vlsi_cli.engine import processes
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.compiled import compiled_layers
from vlsi_cli.engine.data.report import DataReport
from vlsi_cli.engine.losses import fused
from vlsi_cli.engine.runs import models
from vlsi_cli.engine.runs.agreement import files_of, require_alike, require_shared
from vlsi_cli.engine.runs.checks import RunChecks
from vlsi_cli.engine.runs.choices import chosen
from vlsi_cli.engine.runs.data import encoder_for, training_stream
from vlsi_cli.engine.runs.failures import keep_failure
from vlsi_cli.engine.runs.folder import RunFolder, environment
from vlsi_cli.engine.runs.measure import measure, record
from vlsi_cli.engine.runs.samples import LayerSamples
from vlsi_cli.engine.runs.stages import cut_step, optimizer_steps
from vlsi_cli.engine.runs.surroundings import left_as_found
from vlsi_cli.engine.runs.teachers import describe_pair, open_cache
from vlsi_cli.engine.runs.tracking import tracked
from vlsi_cli.engine.runs.watch import StageWatch
from vlsi_cli.engine.sharding import is_sharded, shard
from vlsi_cli.engine.training import Checkpoints, Stage, train_stage
from vlsi_cli.engine.training.checkpoint import Checkpoint, written_by
from vlsi_cli.engine.training.signals import Wish, heed_signals
from vlsi_cli.errors import SMALLER, DataError, Interrupted, OutputError, TrainingError, fitting
from vlsi_cli.events import Events, Note, Report, RunEnded, RunStarted, Warn, ignore


def run(
    resolved: Resolved,
    *,
    output: Path | None,
    events: Events,
    resume: bool = False,
    overwrite: bool = False,
    skip_damaged: bool = False,
) -> Report:
    """Distil: verbalization of both models, interaction, reinforcement, as far as the configuration has them.

    What is the process's own is afterwards as it was before.

    Args:
        resolved: the configuration and where its values came from.
        output: the run folder; None for a new one, ``runs/NAME-N`` with the first free N.
        events: told of everything that happens.
        resume: go on with the run in ``output``; what is complete is not done again.
        overwrite: replace a run that is already in ``output``.
        skip_damaged: resume from the newest undamaged checkpoint.

    Returns:
        The report; the student in it has been reloaded by plain transformers and compared.

    Raises:
        VlsiError: any branch of it; a run that was started can be resumed after each. What ``events`` raises too.
    """
    device = models.own_device(resolved.config.device)
    with left_as_found(device), processes.joined(device, events=events):
        return _run(
            resolved, output, events if processes.is_first() else ignore, resume, overwrite, skip_damaged
        )


def _run(
    resolved: Resolved, output: Path | None, events: Events, resume: bool, overwrite: bool, skip_damaged: bool
) -> Report:
    started = time.perf_counter()
    config = resolved.config
    files = files_of((config.teacher, config.student), (config.data, config.evaluation.data))
    require_alike(config, held=files)
    with ExitStack() as stack:

        def begin() -> RunFolder:
            if resume and output is not None:
                return RunFolder.resume(output, stack)
            return RunFolder.create(output, resolved, stack, overwrite=overwrite)

        folder = processes.on_first(begin)
        again = f"vlsi distill --resume {shlex.quote(str(folder.path))}"
        skipped = (lambda text: events(Warn(text))) if skip_damaged else None
        checkpoints = Checkpoints(folder.checkpoints, resolved.config.keep_checkpoints, skipped)
        if not resume and processes.is_first():
            stack.enter_context(folder.kept_if_begun())
        require_shared(folder.path)
        stack.enter_context(fitting(TrainingError("this run needs more memory than is left", hint=SMALLER)))
        wish = stack.enter_context(heed_signals())
        told = stack.enter_context(tracked(resolved, folder, events, resumed=resume))
        try:
            _Distillation(resolved.config, folder, told, wish, checkpoints).run()
        except Interrupted as stopped:
            known = Interrupted(stopped.message, resume=again, exit_code=stopped.exit_code)
            known.shared = stopped.shared
            raise known from None
        except KeyboardInterrupt:  # a second Ctrl-C
            lost = "stopped at once; what came after the newest checkpoint is lost"
            raise Interrupted(lost, resume=again) from None
        except (DataError, OutputError) as error:  # what is mended outside the configuration
            if resume or not folder.barren:
                error.hint = "\n".join(filter(None, (error.hint, f"then go on with: {again}")))
            raise
    state = folder.state
    scores = (state.scores.get(who) for who in ("small before", "small after", "large"))
    report = Report(
        run=folder.path,
        student=folder.student,
        scores=tuple(score for score in scores if score is not None),
        stages=tuple(state.stages.values()),
        seconds=time.perf_counter() - started,
    )
    events(RunEnded(report))
    return report


class _Distillation(RunChecks):
    """One run in progress: the order of its stages, and their training."""

    def __init__(
        self, config: DistillConfig, folder: RunFolder, events: Events, wish: Wish, checkpoints: Checkpoints
    ) -> None:
        super().__init__(config, folder, wish)
        self.events, self.checkpoints = events, checkpoints

    def run(self) -> None:
        config = self.config
        names = [
            n for n in ("verbalization", "interaction", "reinforcement") if getattr(config, n) is not None
        ]
        self.events(RunStarted(self.folder.path, tuple(names)))
        self.folder.write("environment.json", environment() | {"run": self.choices()})
        self.events(Note(chosen(self.choices())))
        for key in self.folder.state.stages if processes.is_first() else ():
            self.checkpoints.drop(key)  # a kill can come between a stage's end and this
        if self.folder.state.student:
            self._measure("small after")
            self.events(Note("this run is complete"))
            return
        self.check_compiler()
        live = config.teacher is not None and config.teacher.cache is None
        if config.teacher is not None and not self._complete("interaction"):
            if live:  # either is refused before any weights are loaded
                describe_pair(config, self.events)
            elif config.interaction is not None:
                self._cached = open_cache(config, self.device, self.events)
        if not self.folder.state.stages:
            self.check_space()
        self.check_data()
        if encoder_for(self.student.processor, config.data).always_thinks:
            asked = f"every prompt of {config.student.id} asks for thoughts (<think>)"
            self.events(Note(f"{asked}; a response without any is trained to say none"))
        reused = live and config.teacher is not None and config.teacher.verbalizers is not None
        if reused and not self._complete("interaction"):
            self._large_verbalizers = self._verbalizers("large")  # refused now rather than after step 1
        processes.on_first(self.folder.forget_replaced)
        self._measure("small before")
        if live:
            self._measure("large")
        if config.large_verbalization is not None and not self._complete("verbalization-large"):
            self._verbalize("large")
        if config.verbalization is not None and not self._complete("verbalization-small"):
            self._verbalize("small")
        if config.interaction is not None and not self._complete("interaction"):
            self._interact()
        self.forget_teacher()
        if config.reinforcement is not None:
            self._reinforce()
        self._finish()

    def _verbalize(self, side: str) -> None:
        backbone, _ = self._side(side)
        settings = self.config.large_verbalization if side == "large" else self.config.verbalization
        assert settings is not None
        stage = self.verbalization(side)
        self._train(f"verbalization-{side}", side, stage, settings, backbone)
        self.keep_verbalizers(side, stage)
        self._mark(f"verbalization-{side}")

    def _interact(self) -> None:
        settings = self.config.interaction
        assert settings is not None
        stage = self.interaction()
        self._train("interaction", "small", stage, settings, self.student)
        self.keep_layers(stage)
        self._mark("interaction")

    def _reinforce(self) -> None:
        settings = self.config.reinforcement
        assert settings is not None
        stage = self.reinforcement()
        self._train("reinforcement", "small", stage, settings, self.student)
        self.take_back(stage)

    def _train(self, key: str, side: str, stage: Stage, settings: StageConfig, backbone: Backbone) -> None:
        """Train one stage, from its newest checkpoint if there is one."""
        config, report, begun = self.config, DataReport(), self.folder.state.processes
        accelerator = models.new_accelerator(self.device, self.dtype, some_idle=stage.some_idle)
        stream = training_stream(
            config.data,
            encoder_for(backbone.processor, config.data),
            seed=models.derived_seed(config.seed, f"data of {stage.name}"),
            beside=self.device,
            report=report,
            rank=processes.rank(),
            world_size=processes.size(),
            exchange=processes.gather,
            digests=self._looks_records_up(key),
        )
        steps = optimizer_steps(settings, stream.records_per_epoch, stage.name, begun)
        batch_size, accumulation = cut_step(settings, begun, processes.size())
        checkpoint = self._latest(key)
        first = checkpoint.step if checkpoint is not None else 0
        if self.sharding in ("student", "both"):
            shard(stage, stage.units())
        self.folder.forget_after(key, first)
        watch = StageWatch(
            self.folder,
            self.events,
            key=key,
            stage=stage.name,
            side=side,
            total=steps,
            first=first,
            records=batch_size * accumulation * processes.size(),
            device=self.device,
            teacher_clock=stage.teacher_clock,
            sample=self._sampler(key, stage, backbone, steps),
            data=report if first == 0 and not self.folder.state.stages else None,
        )
        optimizer = settings.optimizer
        backbone.set_gradient_checkpointing(settings.gradient_checkpointing)
        compiling = ExitStack()
        try:
            compiling.enter_context(fused(config.compile))
            for each in self.compiled(key, backbone):
                compiling.enter_context(compiled_layers(each))
            train_stage(
                stage,
                stream,
                accelerator,
                key=key,
                steps=steps,
                batch_size=batch_size,
                accumulation=accumulation,
                learning_rate=optimizer.learning_rate,
                final_learning_rate=optimizer.final_learning_rate,
                warmup_steps=optimizer.warmup_steps,
                schedule=optimizer.schedule,
                betas=optimizer.betas,
                weight_decay=optimizer.weight_decay,
                max_grad_norm=optimizer.max_grad_norm,
                seed=models.derived_seed(config.seed, f"dropout of {key}"),
                zero=self.zero,
                checkpoints=self.checkpoints,
                checkpoint_every=config.checkpoint_every,
                resume=checkpoint,
                wish=self.wish,
                on_step=watch.step,
                on_checkpoint=watch.checkpoint,
                on_failure=partial(keep_failure, self.folder, self.events, key, stage),
            )
        finally:
            compiling.close()
            accelerator.free_memory()  # it would keep the stage, its teacher and its moments
            backbone.set_gradient_checkpointing(False)
            stream.close()
            self.folder.note_data(key, report.to_dict())
        if report.skipped:
            self.events(Warn(f"data: {report.summary()}; data.json names them"))
        self.folder.state.stages[key] = processes.on_first(watch.end)

    def _latest(self, key: str) -> Checkpoint | None:
        """The newest checkpoint of a stage, on every process; the first looks first, and removes damaged ones."""
        found: list[Checkpoint | None] = []
        processes.on_first(lambda: found.append(self.checkpoints.latest(key)))
        with processes.together():
            if not found:
                found.append(self.checkpoints.latest(key))
        checkpoint = found[0]
        if checkpoint is not None and written_by(checkpoint) != processes.size():
            self.events(
                Note(
                    f"the checkpoint was written by {written_by(checkpoint)} processes and this run has "
                    f"{processes.size()}: each step keeps its records, and dropout gets new random numbers"
                )
            )
        return checkpoint

    def _sampler(self, key: str, stage: Stage, backbone: Backbone, steps: int) -> Callable[[int], None]:
        """What is called after each step for sample answers; nothing where no layer of the small model speaks."""
        verbalizers = getattr(stage, "verbalizers", None)
        if not self.config.watch.samples or verbalizers is None or key == "verbalization-large":
            return lambda step: None
        if self.divided:  # layers are read one by one there, outside of what gathers them in order
            self.events(Warn("no sample answers in this stage: what speaks is divided among the processes"))
            return lambda step: None
        if not processes.is_first():
            return lambda step: None
        return LayerSamples(
            self.config,
            self.folder,
            self.events,
            key=key,
            stage=stage,
            backbone=backbone,
            verbalizers=verbalizers,
            total=steps,
            dtype=self.dtype,
            asked_to_stop=lambda: self.wish.signal is not None,
        ).after

    def _looks_records_up(self, key: str) -> bool:
        """Whether a stage finds what it knows of records by their digests."""
        models_here = (self._student, self._teacher)
        remembers = any(each is not None and each.vision_memory is not None for each in models_here)
        return remembers or (key == "interaction" and self._cached is not None)

    def _mark(self, key: str) -> None:
        """A stage and what it leaves are on disk; only now is it complete, and its checkpoints go."""
        self.folder.save_state()
        processes.on_first(lambda: self.checkpoints.drop(key))
        self._stop_if_asked()

    # ---------------------------------------------------------------- ends

    def _finish(self) -> None:
        """Write the stock checkpoint, prove that it loads as what was trained, and measure it."""
        self.keep_student()
        self._mark("reinforcement")
        self._measure("small after")

    def _measure(self, who: str) -> None:
        if self.config.evaluation.data is None or who in self.folder.state.scores:
            return  # before the property below loads a model for nothing
        backbone = self.teacher if who == "large" else self.student
        shared = not is_sharded(backbone.model)
        check = self._stop_if_told if shared else self._stop_if_asked
        with processes.together():
            share = measure(who, backbone, self.config, self.dtype, self.events, check, shared=shared)
        record(who, processes.gather(share) if shared else [share], self.folder, self.events)
