"""What the stages of one run share: its models, loaded when first needed, and the stages made of them."""

from __future__ import annotations

import gc
from typing import Any

import torch

from vlsi_cli.config.experts import require_dense_student
from vlsi_cli.config.run import DistillConfig
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.runs import models
from vlsi_cli.engine.runs import student as student_files
from vlsi_cli.engine.runs.choices import resolved_choices
from vlsi_cli.engine.runs.dividing import divides_weights, require_zero, resolve_sharding, zero_stage
from vlsi_cli.engine.runs.folder import RunFolder
from vlsi_cli.engine.runs.stages import interaction_stage, reinforcement_stage
from vlsi_cli.engine.sharding import shard
from vlsi_cli.engine.stages import InteractionStage, ReinforcementStage, VerbalizationStage
from vlsi_cli.engine.teachers import CachedTeacher, LiveTeacher, Teacher
from vlsi_cli.engine.training.parallel import agreed
from vlsi_cli.engine.training.signals import Wish
from vlsi_cli.engine.verbalizing import Verbalizers
from vlsi_cli.errors import Interrupted


class RunParts:
    """The parts of one run, as far as its complete stages have brought them.

    Args:
        config: of the run.
        folder: of the run; what its complete stages left is read from it.
        wish: asked whether to stop after a model is loaded.

    Attributes:
        divided: whether what a stage trains lies in pieces then, and is read from the run folder after it.
        zero: the stage of DeepSpeed's ZeRO that trains; None: accelerate does.
    """

    def __init__(self, config: DistillConfig, folder: RunFolder, wish: Wish) -> None:
        self.config, self.folder, self.wish = config, folder, wish
        self.device, self.dtype = models.place(config)
        self.sharding = resolve_sharding(config.sharding)
        require_zero(config, self.sharding, self.dtype)
        self.divided, self.zero = divides_weights(self.sharding), zero_stage(self.sharding)
        self._student: Backbone | None = None
        self._teacher: Backbone | None = None
        self._cached: CachedTeacher | None = None
        self._small_verbalizers: Verbalizers | None = None
        self._large_verbalizers: Verbalizers | None = None

    def _complete(self, key: str) -> bool:
        return key in self.folder.state.stages

    def _stop_if_asked(self) -> None:
        """All processes ask together."""
        self.wish.signal = agreed(self.wish.signal or 0) or None
        self._stop_if_told()

    def _stop_if_told(self) -> None:
        """This process asks alone, in a block that ends in all of them if it ends in one."""
        if self.wish.signal is not None:
            raise Interrupted("stopped between two steps; nothing is lost", exit_code=self.wish.exit_code)

    def choices(self) -> dict[str, Any]:
        """How this run computes: what was left open, as it was decided here."""
        return resolved_choices(self.config, self.device, self.dtype, self.sharding)

    def compiled(self, key: str, backbone: Backbone) -> list[Backbone]:
        """The models whose layers are compiled while a stage trains: those that it runs, as far as they can be."""
        if not self.config.compile:
            return []
        large = self.config.teacher
        runs_large = key == "interaction" and self._teacher is not None
        held = [backbone, *([self._teacher] if runs_large and self._teacher is not None else [])]
        fixed = large is not None and (large.placement != "device" or large.quantization != "none")
        return [each for each in held if not (fixed and each is self._teacher)]

    # ---------------------------------------------------------------- models

    @property
    def student(self) -> Backbone:
        """The small model as far as the complete stages have brought it."""
        if self._student is None:
            self._student = self._load_student(after_interaction=self._complete("interaction"))
            self._stop_if_asked()
        return self._student

    def _load_student(self, *, after_interaction: bool) -> Backbone:
        config, done = self.config, self.folder.state.student
        model = config.student
        if done:  # in the precision that it was written in, which is what was measured
            own = {"id": str(self.folder.student), "revision": None, "init": "pretrained", "dtype": "auto"}
            model = model.model_copy(update=own)
        trained = not done and models.trains_weights(config)
        student = models.load_model(model, config, self.dtype, self.device, trained=trained)
        require_dense_student(student.experts, model.id)
        if not done and after_interaction:
            student_files.restore_layers(self.folder.interaction, student)
        return student

    @property
    def teacher(self) -> Backbone:
        """The large model."""
        if self._teacher is None:
            assert self.config.teacher is not None
            self._teacher = models.load_model(
                self.config.teacher,
                self.config,
                self.dtype,
                self.device,
                trained=False,
                chat_template=self.student.processor.chat_template,
                divided=self.sharding == "both",
            )
            self._stop_if_asked()
        return self._teacher

    def _forget_student(self) -> None:
        """Give the memory of a divided small model back; it is loaded again, whole, when needed."""
        self._student = self._small_verbalizers = None
        self._clear()

    def use_cache(self, cache: CachedTeacher) -> None:
        """Take the large model's answers from a cache."""
        self._cached = cache

    def forget_teacher(self) -> None:
        """Give the large model's memory back before the last step."""
        self._teacher = self._cached = self._large_verbalizers = self._small_verbalizers = None
        self._clear()

    def _clear(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _verbalizers(self, side: str) -> Verbalizers:
        """The trained set of a side: from this process, from the run folder, or the one to be reused."""
        held = self._large_verbalizers if side == "large" else self._small_verbalizers
        if held is not None:
            return held
        backbone, model = self._side(side)
        path = model.verbalizers or self.folder.verbalizers(side)
        stored = models.stored_verbalizers(path, backbone, models.target_layers(model, backbone))
        if side == "large" and self.sharding == "both":
            shard(stored.requires_grad_(False), stored.blocks())
        return stored

    def _side(self, side: str) -> tuple[Backbone, Any]:
        if side == "large":
            return self.teacher, self.config.teacher
        return self.student, self.config.student

    # ---------------------------------------------------------------- stages before their first step

    def verbalization(self, side: str) -> VerbalizationStage:
        """Step 1 of a side before its first step."""
        backbone, model = self._side(side)
        targets = models.target_layers(model, backbone)
        seed = models.derived_seed(self.config.seed, f"verbalization-{side}")
        verbalizers = models.new_verbalizers(backbone, targets, self.config.verbalizer, seed)
        return VerbalizationStage(backbone, verbalizers.to(self.device))

    def interaction(self) -> InteractionStage:
        """Step 2 before its first step."""
        settings = self.config.interaction
        assert settings is not None
        assert self.config.teacher is not None
        student, words = self.student, settings.verbalizes
        small = models.target_layers(self.config.student, student)
        teacher: Teacher | None = self._cached
        if teacher is None and settings.needs_teacher:
            matches_words = words and settings.intermediate != "ce"
            said = self._verbalizers("large") if matches_words else None
            large = models.target_layers(self.config.teacher, self.teacher)
            teacher = LiveTeacher(self.teacher, said, large, self.dtype)
        return interaction_stage(
            settings,
            student,
            teacher,
            self._verbalizers("small") if words else None,
            targets=small,
            seed=models.derived_seed(self.config.seed, "interaction"),
        )

    def reinforcement(self) -> ReinforcementStage:
        """Step 3 before its first step."""
        settings = self.config.reinforcement
        assert settings is not None
        seed = models.derived_seed(self.config.seed, "reinforcement")
        return reinforcement_stage(settings, self.student, seed=seed)
