"""What a distillation is: one frozen object without tensors, and the only home of every default.

``from vlsi_cli.config.run import ...`` gives every part; they live in sibling modules by subject.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from vlsi_cli.config.base import Config
from vlsi_cli.config.data import (
    DataConfig,
    HubSource,
    ImagesSource,
    ImageUrlsConfig,
    LlavaSource,
    MessagesSource,
    PatternsSource,
    Source,
)
from vlsi_cli.config.models import (
    Architecture,
    LayersConfig,
    ModelConfig,
    Precision,
    Sharding,
    VerbalizerConfig,
)
from vlsi_cli.config.stages import (
    InteractionConfig,
    LayerLoss,
    LoraConfig,
    LossWeights,
    MatchingConfig,
    OptimizerConfig,
    ReinforcementConfig,
    StageConfig,
    VerbalizationConfig,
)
from vlsi_cli.config.watching import WatchConfig

__all__ = [
    "Architecture",
    "DataConfig",
    "DistillConfig",
    "EvaluationConfig",
    "HubSource",
    "ImageUrlsConfig",
    "ImagesSource",
    "InteractionConfig",
    "LayerLoss",
    "LayersConfig",
    "LlavaSource",
    "LoraConfig",
    "LossWeights",
    "MatchingConfig",
    "MessagesSource",
    "ModelConfig",
    "OptimizerConfig",
    "PatternsSource",
    "Precision",
    "ReinforcementConfig",
    "Sharding",
    "Source",
    "StageConfig",
    "VerbalizationConfig",
    "VerbalizerConfig",
    "WatchConfig",
]


class EvaluationConfig(Config):
    """Greedy answers to held-out questions, before and after, and by the large model."""

    data: DataConfig | None = None
    """Held-out data; null: nothing is measured."""
    samples: int | None = Field(default=None, ge=1)
    """Questions to ask; null: all of the held-out data."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Longest answer. Where every expected answer is longer, no accuracy is measured, only the loss."""
    batch_size: int = Field(default=8, ge=1)
    """Questions answered together."""


class DistillConfig(Config):
    """A whole run. A stage that is null is left out; what is left must make sense together."""

    name: str = "distillation"
    """Short name; default output folders carry it."""
    description: str = ""
    """One line for `vlsi recipes ls`."""
    teacher: ModelConfig | None = None
    """The large model; null: the run is ordinary fine-tuning of the small one."""
    student: ModelConfig
    """The small model, which the run changes and writes out."""
    verbalizer: VerbalizerConfig = VerbalizerConfig()
    """Make of the verbalizers, the same on both sides."""
    data: DataConfig
    """Training data of every stage."""
    verbalization: VerbalizationConfig | None = VerbalizationConfig()
    """Step 1 of the small model (and of the large one unless `teacher_verbalization` says otherwise)."""
    teacher_verbalization: VerbalizationConfig | None = None
    """Step 1 of the large model; null: like `verbalization`. Not used when `teacher.verbalizers` or
    `teacher.cache` is given."""
    interaction: InteractionConfig | None = InteractionConfig()
    """Step 2."""
    reinforcement: ReinforcementConfig | None = ReinforcementConfig()
    """Step 3."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out measurement; null: none."""
    watch: WatchConfig = WatchConfig()
    """Trackers, and sample answers on the way."""
    seed: int = Field(default=0, ge=0)
    """Order of data, draws of the matching, fresh weights."""
    precision: Precision = "auto"
    """Precision of the computation; `auto`: bf16 on a GPU that has it, fp16 on an older one, fp32 elsewhere."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    sharding: Sharding = "auto"
    """What several processes divide among them. `none`: each holds everything. With FSDP2, `student`: the small model's
    decoder layers, verbalizers and whatever else trains, with gradients and moments; `both`: the large model's decoder
    layers and verbalizers as well. With DeepSpeed (extra `deepspeed`), `zero2`: gradients and moments of what trains;
    `zero3`: what `student` divides. `auto`: what accelerate's configuration asks for (`both` for FSDP), else `none`."""
    tf32: bool = True
    """Let a GPU round fp32 products to TF32 where the precision is bf16 or fp16 anyway; under fp32 they stay fp32."""
    compile: bool = False
    """Compile the losses and the decoder layers of both models with `torch.compile`: slow to start, faster on a GPU."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch; null: torch's own choice. Tiny models are fastest with one."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Optimizer steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Checkpoints kept on disk, newest first."""

    @field_validator("evaluation", mode="before")
    @classmethod
    def _none_asked_for(cls, value: Any) -> Any:
        return {} if value is None else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.verbalization is None and self.interaction is None and self.reinforcement is None:
            raise ValueError(
                "`verbalization`, `interaction` and `reinforcement` are all null: nothing would be trained"
            )
        if self.interaction is not None and self.teacher is None:
            raise ValueError("`interaction` needs a `teacher`; give one, or set `interaction` to null")
        if self.interaction is not None and self.interaction.verbalizes and self.verbalization is None:
            raise ValueError(
                "`interaction` compares verbalized layers, but `verbalization` is null; keep that stage, "
                "or set `interaction.intermediate` to none for last-layer distillation"
            )
        held_out = self.evaluation.data
        if held_out is not None and (held_out.min_pixels, held_out.max_pixels) != (None, None):
            raise ValueError("`evaluation.data` has a pixel budget, but a run has one: give it in `data`")
        if self.watch.samples and held_out is None:
            raise ValueError("`watch.samples` asks held-out questions, but `evaluation.data` is null")
        if self.student.verbalizers is not None:
            raise ValueError("`student.verbalizers` cannot be given: only a teacher's set is reused")
        if self.student.placement != "device":
            raise ValueError("`student.placement` must be device: the small model trains")
        if self.student.quantization != "none":
            raise ValueError("`student.quantization` must be none: the small model trains")
        if self.student.cache is not None:
            raise ValueError("`student.cache` cannot be given: only a teacher is cached")
        large = self.teacher
        if self.sharding == "both" and large is not None and large.placement != "device":
            raise ValueError(
                f"`teacher.placement` is {large.placement}, but `sharding: both` divides the large model among the "
                "devices; keep one"
            )
        if self.sharding == "both" and large is not None and large.quantization != "none":
            raise ValueError(
                "`sharding: both` cannot divide a quantized large model; use `sharding: student`"
            )
        if large is not None and large.quantization != "none" and large.placement != "device":
            raise ValueError(
                "`teacher.quantization` needs `teacher.placement: device`: layers are quantized where they lie"
            )
        if self.teacher is not None and self.teacher.init == "random":
            raise ValueError("`teacher.init: random` would teach noise")
        return self

    @property
    def large_verbalization(self) -> VerbalizationConfig | None:
        """Step 1 of the large model: None when there is no teacher, no need, or a trained set or cache to reuse."""
        if self.teacher is None or self.teacher.verbalizers is not None or self.teacher.cache is not None:
            return None
        step = self.interaction
        if step is not None and not (step.verbalizes and step.matches):
            return None
        return self.teacher_verbalization or self.verbalization
