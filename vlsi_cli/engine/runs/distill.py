"""``vlsi distill``: from a resolved configuration to a stock checkpoint of the small model."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from vlsi_cli.config.loading import Resolved
from vlsi_cli.config.run import DistillConfig, StageConfig
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.lora import has_lora, merge_lora
from vlsi_cli.engine.data.report import DataReport
from vlsi_cli.engine.files import require_space
from vlsi_cli.engine.runs import models
from vlsi_cli.engine.runs.data import training_stream
from vlsi_cli.engine.runs.failures import keep_failure
from vlsi_cli.engine.runs.folder import RunFolder
from vlsi_cli.engine.runs.measure import encoder_for, measure
from vlsi_cli.engine.runs.parts import RunParts
from vlsi_cli.engine.runs.samples import LayerSamples
from vlsi_cli.engine.runs.stages import optimizer_steps
from vlsi_cli.engine.runs.teachers import describe_pair, open_cache
from vlsi_cli.engine.runs.tracking import tracked
from vlsi_cli.engine.runs.watch import StageWatch
from vlsi_cli.engine.training import Checkpoints, Stage, train_stage
from vlsi_cli.engine.training.signals import Wish, heed_signals
from vlsi_cli.errors import DataError, Interrupted, OutputError
from vlsi_cli.events import Events, Note, Report, RunEnded, RunStarted, Warn


def run(
    resolved: Resolved,
    *,
    output: Path,
    events: Events,
    resume: bool = False,
    overwrite: bool = False,
    skip_damaged: bool = False,
) -> Report:
    """Distil: verbalization of both models, interaction, reinforcement, as far as the configuration has them.

    Args:
        resolved: the configuration and where its values came from.
        output: the run folder.
        events: told of everything that happens.
        resume: go on with the run in ``output``; what is complete is not done again.
        overwrite: replace a run that is already in ``output``.
        skip_damaged: resume from the newest undamaged checkpoint.

    Returns:
        The report; the student in it has been reloaded by plain transformers and compared.

    Raises:
        VlsiError: any branch of it; a run that was started can be resumed after each.
    """
    started = time.perf_counter()
    folder = RunFolder.open(output) if resume else RunFolder.create(output, resolved, overwrite=overwrite)
    again = f"vlsi distill --resume {shlex.quote(str(output))}"
    skipped = (lambda text: events(Warn(text))) if skip_damaged else None
    checkpoints = Checkpoints(folder.checkpoints, resolved.config.keep_checkpoints, skipped)
    following = tracked(resolved, folder, events, resumed=resume)
    with folder.held(), heed_signals() as wish, following as told:
        try:
            _Distillation(resolved.config, folder, told, wish, checkpoints).run()
        except Interrupted as stopped:
            raise Interrupted(stopped.message, resume=again, exit_code=stopped.exit_code) from None
        except (DataError, OutputError) as error:  # what is mended outside the configuration
            error.hint = "\n".join(filter(None, (error.hint, f"then go on with: {again}")))
            raise
    state = folder.state
    scores = (state.scores.get(who) for who in ("small before", "small after", "large"))
    report = Report(
        run=output,
        student=folder.student,
        scores=tuple(score for score in scores if score is not None),
        stages=tuple(state.stages.values()),
        seconds=time.perf_counter() - started,
    )
    events(RunEnded(report))
    return report


class _Distillation(RunParts):
    """One run in progress: the order of its stages, and what each leaves on the disk."""

    def __init__(
        self, config: DistillConfig, folder: RunFolder, events: Events, wish: Wish, checkpoints: Checkpoints
    ) -> None:
        super().__init__(config, folder, wish)
        self.events, self.checkpoints = events, checkpoints

    # ---------------------------------------------------------------- order of events

    def run(self) -> None:
        config = self.config
        names = [
            n for n in ("verbalization", "interaction", "reinforcement") if getattr(config, n) is not None
        ]
        self.events(RunStarted(self.folder.path, tuple(names)))
        for key in self.folder.state.stages:
            self.checkpoints.drop(key)  # a kill can come between a stage's end and this
        if self.folder.state.student:
            self._measure("small after")
            self.events(Note("this run is complete"))
            return
        live = config.teacher is not None and config.teacher.cache is None
        if config.teacher is not None and not self._complete("interaction"):
            if live:  # either is refused before any weights are loaded
                describe_pair(config, self.events)
            elif config.interaction is not None:
                self._cached = open_cache(config, self.device, self.events)
        if not self.folder.state.stages:
            self._check_space()
        reused = live and config.teacher is not None and config.teacher.verbalizers is not None
        if reused and not self._complete("interaction"):
            self._large_verbalizers = self._verbalizers("large")  # refused now rather than after step 1
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

    def _check_space(self) -> None:
        """Checkpoints, verbalizers, the layers after step 2 and the student must fit on the disk."""
        config, sets = self.config, []
        for side, needed in (("large", config.large_verbalization), ("small", config.verbalization)):
            if needed is not None:
                backbone, model = self._side(side)
                targets = models.target_layers(model, backbone)
                made = models.new_verbalizers(backbone, targets, config.verbalizer, 0, device="meta")
                sets.append(sum(parameter.numel() for parameter in made.parameters()))
        full = models.trains_weights(config)
        needed_bytes = models.disk_space(self.student, sets, full=full, keep=config.keep_checkpoints)
        require_space(self.folder.path, needed_bytes, "checkpoints, verbalizers and the small model")

    # ---------------------------------------------------------------- stages

    def _verbalize(self, side: str) -> None:
        config = self.config
        backbone, _ = self._side(side)
        settings = config.large_verbalization if side == "large" else config.verbalization
        assert settings is not None
        key = f"verbalization-{side}"
        stage = self.verbalization(side)
        self._train(key, side, stage, settings, backbone)
        final = self.folder.state.stages[key]
        facts = {"steps": final.steps, "loss": dict(final.per_layer), "seed": config.seed}
        models.store_verbalizers(self.folder.verbalizers(side), backbone, stage.verbalizers, facts)
        self._mark(key)
        if side == "large":
            self._large_verbalizers = stage.verbalizers
        else:
            self._small_verbalizers = stage.verbalizers

    def _interact(self) -> None:
        settings, student = self.config.interaction, self.student
        assert settings is not None
        assert self.config.teacher is not None
        stage = self.interaction()
        self._train("interaction", "small", stage, settings, student)
        self._settle(student)
        models.store_layers(self.folder.interaction, student)
        if stage.verbalizers is not None:
            facts = {"after": "interaction", "teacher": self.config.teacher.id, "seed": self.config.seed}
            models.store_verbalizers(
                self.folder.verbalizers("small-after"), student, stage.verbalizers, facts
            )
        self._mark("interaction")

    def _reinforce(self) -> None:
        settings = self.config.reinforcement
        assert settings is not None
        student = self.student
        self._train("reinforcement", "small", self.reinforcement(), settings, student)
        self._settle(student)

    @staticmethod
    def _settle(student: Backbone) -> None:
        """Adapters become part of the weights they adapt, and everything is frozen again."""
        if has_lora(student):
            merge_lora(student)
        student.freeze()

    def _train(self, key: str, side: str, stage: Stage, settings: StageConfig, backbone: Backbone) -> None:
        """Train one stage, from its newest checkpoint if there is one."""
        config, report = self.config, DataReport()
        accelerator = models.new_accelerator(self.device, self.dtype)
        stream = training_stream(
            config.data,
            encoder_for(backbone, config.data),
            seed=models.derived_seed(config.seed, f"data of {stage.name}"),
            report=report,
            digests=key == "interaction" and self._cached is not None,
        )
        steps = optimizer_steps(settings, stream.records_per_epoch, stage.name)
        checkpoint = self.checkpoints.latest(key)
        first = checkpoint.step if checkpoint is not None else 0
        self.folder.forget_after(key, first)
        watch = StageWatch(
            self.folder,
            self.events,
            key=key,
            stage=stage.name,
            side=side,
            total=steps,
            first=first,
            device=self.device,
            teacher_clock=stage.teacher_clock,
            sample=self._sampler(key, stage, backbone, steps),
            data=report if first == 0 and not self.folder.state.stages else None,
        )
        optimizer = settings.optimizer
        backbone.set_gradient_checkpointing(settings.gradient_checkpointing)
        try:
            train_stage(
                stage,
                stream,
                accelerator,
                key=key,
                steps=steps,
                batch_size=settings.batch_size,
                accumulation=settings.gradient_accumulation,
                learning_rate=optimizer.learning_rate,
                final_learning_rate=optimizer.final_learning_rate,
                warmup_steps=optimizer.warmup_steps,
                schedule=optimizer.schedule,
                betas=optimizer.betas,
                weight_decay=optimizer.weight_decay,
                max_grad_norm=optimizer.max_grad_norm,
                seed=models.derived_seed(config.seed, f"dropout of {key}"),
                checkpoints=self.checkpoints,
                checkpoint_every=config.checkpoint_every,
                resume=checkpoint,
                wish=self.wish,
                on_step=watch.step,
                on_checkpoint=watch.checkpoint,
                on_failure=partial(keep_failure, self.folder, self.events, key, stage),
            )
        finally:
            accelerator.free_memory()  # it would keep the stage, its teacher and its moments
            backbone.set_gradient_checkpointing(False)
            stream.close()
            self.folder.note_data(key, report.to_dict())
        if report.skipped:
            self.events(Warn(f"data: {report.summary()}; data.json names them"))
        self.folder.state.stages[key] = watch.end()

    def _sampler(self, key: str, stage: Stage, backbone: Backbone, steps: int) -> Callable[[int], None]:
        """What is called after each step for sample answers; nothing where no layer of the small model speaks."""
        verbalizers = getattr(stage, "verbalizers", None)
        if not self.config.watch.samples or verbalizers is None or key == "verbalization-large":
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

    def _mark(self, key: str) -> None:
        """A stage and what it leaves are on disk; only now is it complete, and its checkpoints go."""
        self.folder.save_state()
        self.checkpoints.drop(key)
        self._stop_if_asked()

    # ---------------------------------------------------------------- ends

    def _finish(self) -> None:
        """Write the stock checkpoint, prove that it loads as what was trained, and measure it."""
        models.write_student(self.folder.student, self.student, self.dtype)
        self.folder.state.student = True
        self._mark("reinforcement")
        self._measure("small after")

    def _measure(self, who: str) -> None:
        if self.config.evaluation.data is None or who in self.folder.state.scores:
            return  # before the property below loads a model for nothing
        backbone = self.teacher if who == "large" else self.student
        measure(who, backbone, self.config, self.dtype, self.folder, self.events, self._stop_if_asked)
