"""The ways of training that benchmarks/step.py compares, on the package's own stages; TRL's is imported when asked."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import shapes
from benchmarks.techniques import CannotRun
from vlsi_cli.config import loading
from vlsi_cli.config.models import VerbalizerConfig
from vlsi_cli.config.plans import SidePlan
from vlsi_cli.config.stage_plans import Records, stage_plans
from vlsi_cli.config.stages import InteractionConfig, ReinforcementConfig
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.compiled import compiled_layers
from vlsi_cli.engine.losses import fused
from vlsi_cli.engine.runs.models import new_verbalizers
from vlsi_cli.engine.runs.stages import interaction_stage, reinforcement_stage
from vlsi_cli.engine.stages import ReinforcementStage
from vlsi_cli.engine.teachers import CachedTeacher, LiveTeacher, Teacher
from vlsi_cli.engine.teachers.cached import write_head
from vlsi_cli.engine.teachers.manifest import MANIFEST_FILE, SHARDS, CacheIdentity, CacheManifest
from vlsi_cli.engine.teachers.shards import ShardBuffer
from vlsi_cli.engine.training.optimizer import make_optimizer
from vlsi_cli.engine.training.stage import Stage, StageOutput

#: In the order in which they run: first without a large model, at last without it again.
NAMES = ("sft", "last", "trl", "vlsi", "vlsi-compiled", "vlsi-8bit", "vlsi-cached", "vlsi-cached-vision")
#: What `vlsi plan` is asked for each way.
_PLANNED = {
    "sft": ("reinforcement", []),
    "last": ("interaction", ["interaction.intermediate=none"]),
    "vlsi": ("interaction", []),
    "vlsi-compiled": ("interaction", []),
    "vlsi-8bit": ("interaction", ["teacher.quantization=8bit"]),
    "vlsi-cached": ("interaction", ["teacher.cache=somewhere"]),
    "vlsi-cached-vision": ("interaction", ["teacher.cache=somewhere"]),
}


@dataclass(frozen=True)
class Setting:
    """Shapes by name, and the batch."""

    small: str
    large: str
    device: str
    records: int
    length: int

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return torch.bfloat16 if torch.device(self.device).type == "cuda" else torch.float32


class Way:
    """One way of training: a stage, its optimizer, and a batch."""

    def __init__(self, stage: Stage, batch: Any, dtype: torch.dtype) -> None:
        self._stage, self._batch = stage, batch
        trained = stage.trained()
        self._parameters = [parameter for _, parameter in trained]
        self._optimizer = make_optimizer(trained, betas=(0.9, 0.999), weight_decay=0.0)
        device = batch.targets.device.type
        self._context = torch.autocast(device, dtype) if dtype != torch.float32 else nullcontext()
        stage.set_train_mode()

    def step(self) -> None:
        """One optimizer step."""
        with self._context:
            loss = self._stage(self._batch).loss / self._batch.num_tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


class Room:
    """Builds ways one after another; the small model and its optimizer are new for each, the large model is kept."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._batch = shapes.batch_for(
            setting.small, setting.records, setting.length, setting.device, torch.float32
        )
        self._teacher: LiveTeacher | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="step-"))
        self._facts: dict[str, Any] = {}
        self._compiling = ExitStack()

    def close(self) -> None:
        """Remove the cache, and compile no more."""
        self._compiling.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def way(self, name: str, watch: Any) -> Way:
        """A way of training, its parts watched.

        Raises:
            CannotRun: a package is missing.
        """
        self._compiling.close()
        teacher: Teacher | None = None
        if name == "sft":
            self._teacher = None
        elif name.startswith("vlsi-cached"):
            if not (self._folder / MANIFEST_FILE).is_file():
                self._write_cache()
            self._teacher = None
            gc.collect()
            teacher = CachedTeacher(self._folder, self.setting.device)
        else:
            teacher = self._live(name)
        if isinstance(teacher, LiveTeacher):
            # a view of its own, so that watching it does not outlast this way
            teacher = LiveTeacher(teacher.backbone, teacher.verbalizers, teacher.targets, self.setting.dtype)
        student = shapes.build(self.setting.small, torch.float32, self.setting.device)
        self._facts["small"] = shapes.facts(self.setting.small, student)
        if name.endswith("-vision"):
            student.remember_vision(2**32)
        stage = self._stage(name, student, teacher)
        if teacher is not None:
            teacher.states = watch.around("large model", teacher.states)
        said = [getattr(stage, "verbalizers", None), getattr(teacher, "verbalizers", None)]
        for module in said:
            if module is not None and name.startswith("vlsi"):
                module.forward = watch.around("verbalizers", type(module).forward.__get__(module))
        if name == "trl":
            large = teacher.backbone.model
            large.forward = watch.around("large model", type(large).forward.__get__(large))
        student.base.visual.forward = watch.around("vision", student.base.visual.forward)
        if name == "vlsi-compiled" and isinstance(teacher, LiveTeacher):
            for each in (student, teacher.backbone):
                self._compiling.enter_context(compiled_layers(each))
            self._compiling.enter_context(fused())
        return Way(stage, self._batch, self.setting.dtype)

    def _stage(self, name: str, student: Backbone, teacher: Teacher | None) -> Stage:
        if name == "sft":
            return reinforcement_stage(ReinforcementConfig(), student, seed=0)
        if name == "trl":
            assert isinstance(teacher, LiveTeacher)
            return _Trl(student, teacher)
        targets = shapes.shape_of(self.setting.small).targets
        if name == "last":
            return interaction_stage(
                InteractionConfig(intermediate="none"), student, teacher, None, targets=targets, seed=0
            )
        own = new_verbalizers(student, targets, VerbalizerConfig(init="random"), 0, self.setting.device)
        return interaction_stage(InteractionConfig(), student, teacher, own, targets=targets, seed=0)

    def _live(self, name: str) -> LiveTeacher:
        if self._teacher is None:
            large = shapes.build(self.setting.large, self.setting.dtype, self.setting.device)
            self._facts["large"] = shapes.facts(self.setting.large, large)
            targets = shapes.shape_of(self.setting.large).targets
            said = new_verbalizers(large, targets, VerbalizerConfig(init="random"), 0, self.setting.device)
            self._teacher = LiveTeacher(large, said, targets, self.setting.dtype)
        if name == "vlsi-8bit":
            in_8_bits(self._teacher.backbone)
        return self._teacher

    def _write_cache(self) -> None:
        """What the large model says about the batch, in real shards."""
        teacher = self._live("vlsi")
        said = teacher.states(self._batch, teacher.targets)
        states = torch.stack([*(said.layers[layer] for layer in teacher.targets), said.last], 1).cpu()
        shape = shapes.shape_of(self.setting.large)
        identity = CacheIdentity(
            model=self.setting.large,
            revision=None,
            weights_sha256="",
            layers=shape.layers,
            hidden_size=shape.hidden,
            vocabulary_rows=shape.rows,
            kind="states",
            k=0,
            content="words",
            targets=teacher.targets,
            dtype="fp32" if self.setting.dtype == torch.float32 else "bf16",
            precision="fp32" if self.setting.dtype == torch.float32 else "bf16",
            quantization="none",
            logit_scale=1.0,
            logit_softcap=None,
            verbalizers_sha256="",
            vocabulary=shape.vocabulary,
            tokenizer="",
            chat_template="",
            images="",
            sources=({"kind": "random", "records": self.setting.records},),
            max_length=self.setting.length,
            min_pixels=None,
            max_pixels=None,
        )
        shutil.rmtree(self._folder, ignore_errors=True)
        (self._folder / SHARDS).mkdir(parents=True)
        buffer = ShardBuffer(identity.digest, 0)
        parts = states.split(torch.bincount(self._batch.rows).tolist())
        for digest, part in zip(self._batch.digests, parts, strict=True):
            buffer.add(digest, {"states": part})
        entry = buffer.write(self._folder, 0, self.setting.records, {"states": states[:0]})
        head = write_head(self._folder, teacher.head)
        CacheManifest(identity, {}, complete=True, head=head, shards=(entry,)).write(self._folder)

    def planned(self, name: str) -> int | None:
        """Bytes that `vlsi plan` counts for a way, None where it has no such way."""
        if name not in _PLANNED or (name != "sft" and "large" not in self._facts):
            return None
        stage, sets = _PLANNED[name]
        device = torch.device(self.setting.device).type
        sets = [
            f"device={device}",
            "precision=" + ("fp32" if self.setting.dtype == torch.float32 else "bf16"),
            f"{stage}.batch_size={self.setting.records}",
            f"data.max_length={self.setting.length}",
            *sets,
        ]
        config = loading.resolve("demo", sets).config
        sides = {}
        for side, word in (("small", self.setting.small), ("large", self.setting.large)):
            found = self._facts.get(side)
            if found is not None:
                per = found.verbalizer_parameters("verb-ffn")
                sides[side] = SidePlan(side, word, found, shapes.shape_of(word).targets, per)
        records = Records(self.setting.length)
        for plan in stage_plans(config, sides.get("large"), sides["small"], records):
            if plan.stage == stage and plan.memory is not None:
                return plan.memory.total
        return None


def in_8_bits(backbone: Backbone) -> None:
    """The matrices of the decoder layers as LLM.int8() ones, in place, as loading with `quantization` makes them."""
    import logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except ImportError as error:
        raise CannotRun("bitsandbytes is not installed") from error
    for layer in backbone.layers:
        for name, module in list(layer.named_modules()):
            if type(module) is not torch.nn.Linear:
                continue
            weight, bias = module.weight.data, module.bias
            size = (module.in_features, module.out_features)
            with torch.device("meta"):
                rounded = bitsandbytes.nn.Linear8bitLt(
                    *size, bias is not None, has_fp16_weights=False, threshold=6.0
                )
            held = bitsandbytes.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
            rounded.weight = held.to(weight.device)
            rounded.bias = bias
            layer.set_submodule(name, rounded)
            module.weight = None


class _Trl(ReinforcementStage):
    """Off-policy distillation as TRL's GKD trainer computes it: both models' logits at every position."""

    def __init__(self, student: Backbone, teacher: LiveTeacher) -> None:
        super().__init__(student)
        self._large = (teacher,)
        try:
            from trl.experimental.gkd import GKDTrainer
        except ImportError as error:
            raise CannotRun(f"trl is not installed ({error})") from error
        self._loss: Callable[..., torch.Tensor] = GKDTrainer.generalized_jsd_loss

    def forward(self, batch: Any) -> StageOutput:
        """Its loss with beta 0, the forward KL, as a sum over response tokens."""
        small = self._backbone[0]
        labels = torch.full_like(batch.inputs["input_ids"], -100)
        labels[batch.rows, batch.cols + 1] = batch.targets
        ours = small.model(**batch.inputs, use_cache=False).logits[:, :-1]
        with torch.no_grad():
            theirs = self._large[0].backbone.model(**batch.inputs, use_cache=False).logits[:, :-1]
        # it takes heads of equal length only
        loss = self._loss(ours, theirs[..., : ours.shape[-1]], labels=labels[:, 1:], beta=0.0)
        return StageOutput(loss * batch.num_tokens, {})
