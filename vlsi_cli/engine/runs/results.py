"""What the stages of a run leave: sets of verbalizers, the small model's layers, the student.

The first process writes, and what it writes is whole. Where a stage was divided among the processes, what it trained is
gathered into a model that the first process loads afresh; the others read what was written when they need it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vlsi_cli.config.run import InteractionConfig, ReinforcementConfig
from vlsi_cli.engine import processes
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.lora import has_lora, merge_lora
from vlsi_cli.engine.runs import models
from vlsi_cli.engine.runs import student as student_files
from vlsi_cli.engine.runs.parts import RunParts
from vlsi_cli.engine.runs.stages import add_adapters
from vlsi_cli.engine.sharding import whole_values
from vlsi_cli.engine.stages import InteractionStage, ReinforcementStage, VerbalizationStage
from vlsi_cli.engine.verbalizing import Verbalizers


class RunResults(RunParts):
    """The parts of one run, and what becomes of them after a stage."""

    def keep_verbalizers(self, side: str, stage: VerbalizationStage) -> None:
        """Write the set that step 1 of a side has trained."""
        backbone, model = self._side(side)
        targets = models.target_layers(model, backbone)
        final = self.folder.state.stages[f"verbalization-{side}"]
        facts = {"steps": final.steps, "loss": dict(final.per_layer), "seed": self.config.seed}
        values = whole_values(stage.trained()) if self.divided else {}
        made = None if self.divided else stage.verbalizers

        def keep() -> None:
            whole = made or models.rebuilt_verbalizers(backbone, targets, self.config.verbalizer, values)
            models.store_verbalizers(self.folder.verbalizers(side), backbone, whole, facts)

        processes.on_first(keep)
        if side == "large":
            self._large_verbalizers = made
        else:
            self._small_verbalizers = made

    def keep_layers(self, stage: InteractionStage) -> None:
        """Write what step 2 has made of the small model's layers and of its verbalizers."""
        config, settings = self.config, self.config.interaction
        assert settings is not None
        assert config.teacher is not None
        facts = {"after": "interaction", "teacher": config.teacher.id, "seed": config.seed}

        def keep(student: Backbone, said: Verbalizers | None) -> None:
            student_files.store_layers(self.folder.interaction, student)
            if said is not None:
                models.store_verbalizers(self.folder.verbalizers("small-after"), student, said, facts)

        if not self.divided:
            student, verbalizers = self.student, stage.verbalizers
            self._settle(student)
            processes.on_first(lambda: keep(student, verbalizers))
            return
        values = whole_values(stage.trained())
        self._forget_student()

        def keep_whole() -> None:
            student = self._whole_student(settings, _below("model.", values), after_interaction=False)
            said = None
            if settings.verbalizes:
                targets = models.target_layers(config.student, student)
                inside = _below("verbalizers.", values)
                said = models.rebuilt_verbalizers(student, targets, config.verbalizer, inside)
            self._settle(student)
            keep(student, said)

        processes.on_first(keep_whole)

    def take_back(self, stage: ReinforcementStage) -> None:
        """Have the small model whole and settled after step 3; where it was divided, on the first process alone."""
        settings = self.config.reinforcement
        assert settings is not None
        if not self.divided:
            self._settle(self.student)
            return
        values = whole_values(stage.trained())
        self._forget_student()
        if processes.is_first():
            after = self._complete("interaction")
            self._student = self._whole_student(settings, values, after_interaction=after)
            self._settle(self._student)

    def keep_student(self) -> None:
        """Write the stock checkpoint and prove that it loads as what was trained."""
        held = self._student
        if held is None and not self._divided_alone:
            held = self.student

        def keep() -> None:
            assert held is not None
            student_files.write_student(self.folder.student, held, self.dtype)

        if held is not None:
            student_files.round_weights(held, self.dtype)
        processes.on_first(keep)
        self.folder.state.student = True
        if self.divided:
            self._forget_student()  # the first alone has it; now all read what was written

    @property
    def _divided_alone(self) -> bool:
        """Whether only the first process has the small model, since its last stage was divided."""
        return self.divided and self.config.reinforcement is not None

    def _whole_student(
        self,
        settings: InteractionConfig | ReinforcementConfig,
        values: Mapping[str, Tensor],
        *,
        after_interaction: bool,
    ) -> Backbone:
        """A fresh small model with what a divided stage has trained in it, adapters included, on this process."""
        student = self._load_student(after_interaction=after_interaction)
        add_adapters(student, settings, self.config.seed)
        held = dict(student.model.named_parameters())
        with torch.no_grad():
            for name, value in values.items():
                held[name].copy_(value)
        return student

    @staticmethod
    def _settle(student: Backbone) -> None:
        """Adapters become part of the weights they adapt, and everything is frozen again."""
        if has_lora(student):
            merge_lora(student)
        student.freeze()


def _below(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
