"""Steps, trained parameters, memory and arithmetic of each stage of a run, from the configuration and the models'
facts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vlsi_cli.config import counting, flops, memory
from vlsi_cli.config.counting import Count
from vlsi_cli.config.facts import ModelFacts
from vlsi_cli.config.flops import FORWARD, THROUGH, TRAINED
from vlsi_cli.config.memory import GRADIENT, MOMENTS, TRAINED_WEIGHT, Divided, Memory, Workload
from vlsi_cli.config.plans import SidePlan, StagePlan
from vlsi_cli.config.run import (
    DataConfig,
    DistillConfig,
    HubSource,
    InteractionConfig,
    ModelConfig,
    PatternsSource,
    ReinforcementConfig,
    StageConfig,
)
from vlsi_cli.errors import ConfigError


@dataclass(frozen=True)
class Records:
    """What a plan takes every record to be; without data it cannot know better.

    Attributes:
        length: tokens, image tokens and padding included; None: the longest that the configuration allows.
        response_share: share of them that is trained on.
        image_share: share of them that comes from pictures.
    """

    length: int | None = None
    response_share: float = memory.RESPONSE_SHARE
    image_share: float = 0.5

    def load(self, config: DistillConfig, stage: StageConfig) -> Workload:
        """One micro-batch of a stage."""
        length = self.length or config.data.max_length
        tokens = stage.batch_size * length
        return Workload(
            stage.batch_size, length, math.ceil(tokens * self.response_share), int(tokens * self.image_share)
        )


def stage_plans(
    config: DistillConfig, large: SidePlan | None, small: SidePlan, records: Records
) -> list[StagePlan]:
    """The stages in the order in which they run.

    Raises:
        ConfigError: epochs over endless data.
    """
    stages: list[StagePlan] = []
    if large and config.large_verbalization:
        stages.append(_verbalization(config, config.large_verbalization, large, small, records))
    if config.verbalization:
        stages.append(_verbalization(config, config.verbalization, small, large, records))
    if large and config.interaction:
        stages.append(_interaction(config, config.interaction, large, small, records))
    if config.reinforcement:
        stages.append(_reinforcement(config, config.reinforcement, small, records))
    return stages


def _verbalization(
    config: DistillConfig, stage: StageConfig, side: SidePlan, other: SidePlan | None, records: Records
) -> StagePlan:
    facts = side.facts
    if facts is None:
        return _stage("verbalization", side.side, config, stage, "verbalizers", None, None, None)
    load, targets, architecture = (
        records.load(config, stage),
        len(side.targets),
        config.verbalizer.architecture,
    )
    trained = side.verbalizer_parameters * targets
    idle = _weights(config, other) if other and other.facts else 0
    idle_verbalizers = 0
    if other and side.side == "small" and not _cached(config):
        idle_verbalizers = other.verbalizer_parameters * len(other.targets)
    moment = memory.forward_bytes(facts, load, _bytes(config, side)) + _restored(config, side)
    taps = memory.taps_bytes(facts, targets, load.responses, trained=False)
    losses = memory.taps_bytes(facts, targets, load.responses, trained=True, narrow=_narrow(config))
    losses += _tiles(config, facts, load, heads=1)
    needed = Memory(
        weights=_weights(config, side) + idle,
        verbalizers=(trained + idle_verbalizers) * TRAINED_WEIGHT,
        gradients=trained * GRADIENT,
        optimizer=trained * MOMENTS,
        activations=0,
        losses=max(taps + moment, losses),
    )
    work = FORWARD * (flops.decoder(facts, load) + flops.vision(facts, load))
    work += THROUGH * flops.heads(facts, load, targets)
    work += TRAINED * flops.verbalizers(facts, load, targets, architecture)
    words = f"{targets} verbalizer{'s' * (targets != 1)} ({architecture})"
    divided = _divided_verbalizers(config, side, trained, other)
    return _stage("verbalization", side.side, config, stage, words, trained, needed, work, divided)


def _interaction(
    config: DistillConfig, stage: InteractionConfig, large: SidePlan, small: SidePlan, records: Records
) -> StagePlan:
    lora = stage.train == "lora"
    words = f"LoRA of rank {stage.lora.rank} on the decoder layers" if lora else "decoder layers"
    words += " and verbalizers" if stage.verbalizes else ""
    facts = small.facts
    if facts is None:
        return _stage("interaction", "small", config, stage, words, None, None, None)
    targets = len(small.targets) if stage.intermediate != "none" else 0
    verbalizers = small.verbalizer_parameters * targets if stage.verbalizes else 0
    backbone = facts.lora_parameters(stage.lora.rank) if lora else facts.decoder_parameters
    trained = backbone + verbalizers
    if large.facts is None:
        return _stage("interaction", "small", config, stage, words, trained, None, None)
    load, theirs, architecture = records.load(config, stage), large.facts, config.verbalizer.architecture
    candidates = len(large.targets) if stage.matches else 0
    frozen = facts.parameters - (0 if lora else facts.decoder_parameters)
    live = not _cached(config)
    their_verbalizers = large.verbalizer_parameters * candidates if stage.verbalizes and live else 0
    kind = _kind(config, small)
    rank, checkpointing = stage.lora.rank if lora else 0, stage.gradient_checkpointing
    kept, moment = memory.backward_bytes(facts, load, kind, checkpointing=checkpointing, rank=rank)
    taps = memory.taps_bytes(theirs, candidates + 1, load.responses, trained=False)
    taps += memory.taps_bytes(facts, targets + 1, load.responses, trained=True, narrow=_narrow(config))
    pairs = memory.sums_bytes(
        facts, targets + candidates, load.responses, narrow=_narrow(config), on_cpu=config.device == "cpu"
    )
    # The large model's widest moment is over before the small model's forward begins.
    before = memory.forward_bytes(theirs, load, _bytes(config, large)) + _restored(config, large)
    before = before - kept if live else 0
    needed = Memory(
        weights=frozen * _bytes(config, small) + backbone * TRAINED_WEIGHT + _weights(config, large),
        verbalizers=(verbalizers + their_verbalizers) * TRAINED_WEIGHT,
        gradients=trained * GRADIENT,
        optimizer=trained * MOMENTS,
        activations=kept + memory.cast_bytes(0 if lora else backbone, kind),
        losses=taps + max(moment, before, pairs + _tiles(config, facts, load, heads=2)),
    )
    layers = (THROUGH if lora else TRAINED) + stage.gradient_checkpointing
    work = layers * flops.decoder(facts, load) + flops.vision(facts, load)
    work += flops.decoder(theirs, load) + flops.vision(theirs, load) if live else 0
    answers = stage.weights.answers > 0
    work += flops.compared_heads(facts, theirs, load, targets, candidates, answers=answers)
    if stage.verbalizes:
        work += TRAINED * flops.verbalizers(facts, load, targets, architecture)
        work += flops.verbalizers(theirs, load, candidates, architecture) if live else 0
    adapters = facts.lora_parameters(stage.lora.rank) if lora else 0
    own = _divided_layers(config, small, lora=lora, beside=verbalizers + adapters)
    theirs_divided, fetched = _divided_teacher(config, large)
    if theirs_divided:
        theirs_divided += their_verbalizers * TRAINED_WEIGHT
    divided = replace(own, teacher=theirs_divided, gathered_teacher=fetched)
    return _stage("interaction", "small", config, stage, words, trained, needed, work, divided)


def _reinforcement(
    config: DistillConfig, stage: ReinforcementConfig, small: SidePlan, records: Records
) -> StagePlan:
    facts, lora = small.facts, stage.train == "lora"
    words = f"LoRA of rank {stage.lora.rank} on the decoder layers" if lora else "the whole language model"
    words += " and the vision tower" if stage.vision else ""
    if facts is None:
        return _stage("reinforcement", "small", config, stage, words, None, None, None)
    load = records.load(config, stage)
    vision = (facts.vision or 0) if stage.vision else 0
    trained = vision + (facts.lora_parameters(stage.lora.rank) if lora else facts.language_parameters)
    frozen = facts.parameters - vision - (0 if lora else facts.language_parameters)
    kind = _kind(config, small)
    rank, checkpointing = stage.lora.rank if lora else 0, stage.gradient_checkpointing
    kept, moment = memory.backward_bytes(facts, load, kind, checkpointing=checkpointing, rank=rank)
    needed = Memory(
        weights=frozen * _bytes(config, small) + trained * TRAINED_WEIGHT,
        verbalizers=0,
        gradients=trained * GRADIENT,
        optimizer=trained * MOMENTS,
        activations=kept + memory.cast_bytes(0 if lora else trained - facts.looked_up, kind),
        losses=memory.taps_bytes(facts, 1, load.responses, trained=False)
        + max(moment, _tiles(config, facts, load, heads=1)),
    )
    passes = (THROUGH if lora else TRAINED) + stage.gradient_checkpointing
    work = passes * flops.decoder(facts, load) + (TRAINED if vision else FORWARD) * flops.vision(facts, load)
    work += (THROUGH if lora else TRAINED + FORWARD) * flops.heads(
        facts, load, 1
    )  # a trained head is tiled twice
    adapters = facts.lora_parameters(stage.lora.rank) if lora else 0
    outside = vision + (0 if lora else facts.language_parameters - facts.decoder_parameters)
    own = _divided_layers(config, small, lora=lora, beside=adapters + outside)
    divided = replace(own, gathered=own.gathered + outside * (TRAINED_WEIGHT + GRADIENT))
    return _stage("reinforcement", "small", config, stage, words, trained, needed, work, divided)


def _stage(
    name: str,
    side: str,
    config: DistillConfig,
    stage: StageConfig,
    trains: str,
    trained: int | None,
    needed: Memory | None,
    work: int | None,
    divided: Divided | None = None,
) -> StagePlan:
    steps = _steps(name, stage, config.data)
    return StagePlan(
        stage=name,
        side=side,
        steps=steps.records if steps else None,
        estimated=steps is not None and steps.about,
        batch_size=stage.batch_size,
        gradient_accumulation=stage.gradient_accumulation,
        effective_batch=stage.effective_batch,
        trains=trains,
        trained_parameters=trained,
        memory=needed,
        step_flops=None if work is None else work * stage.gradient_accumulation,
        divided=divided,
    )


# ---------------------------------------------------------------- what several processes divide (engine.sharding)

_STATES = TRAINED_WEIGHT + GRADIENT + MOMENTS
_FETCHED = 2  # a unit that runs, and the next one, which is fetched meanwhile


def _divided_verbalizers(
    config: DistillConfig, side: SidePlan, trained: int, other: SidePlan | None
) -> Divided:
    large = side if side.side == "large" else other
    teacher, layers = _divided_teacher(config, large)
    if teacher and large is not None and large is not side:
        teacher += large.verbalizer_parameters * len(large.targets) * TRAINED_WEIGHT
    unit = side.verbalizer_parameters * (_FETCHED * TRAINED_WEIGHT + GRADIENT)
    return Divided(trained * _STATES, teacher, unit, layers)


def _divided_layers(config: DistillConfig, side: SidePlan, *, lora: bool, beside: int) -> Divided:
    """Of a small model that trains: its layers, and ``beside`` them other numbers that train in units (verbalizers)."""
    facts = side.facts
    assert facts is not None
    width = _bytes(config, side) if lora else TRAINED_WEIGHT
    trained = beside + (0 if lora else facts.decoder_parameters)
    unit = facts.layer_parameters * (_FETCHED * width + (0 if lora else GRADIENT))
    held = facts.decoder_parameters * width + trained * (GRADIENT + MOMENTS) + beside * TRAINED_WEIGHT
    return Divided(held, gathered=unit)


def _divided_teacher(config: DistillConfig, large: SidePlan | None) -> tuple[int, int]:
    """Bytes of the large model's layers that can be divided, and of those that are whole for a moment."""
    model = config.teacher
    if large is None or large.facts is None or model is None or _cached(config):
        return 0, 0
    if model.placement != "device" or model.quantization != "none":
        return 0, 0
    width = _bytes(config, large)
    return large.facts.decoder_parameters * width, _FETCHED * large.facts.layer_parameters * width


def _steps(name: str, stage: StageConfig, data: DataConfig) -> Count | None:
    if stage.steps is not None:
        return Count(stage.steps)
    for number, source in enumerate(data.sources):
        if isinstance(source, PatternsSource) and source.size is None:
            raise ConfigError(
                f"{name} asks for epochs, but data.sources.{number} (patterns) is endless",
                hint=f"set {name}.steps, or data.sources.{number}.size",
            )
        if isinstance(source, HubSource) and source.streaming:
            raise ConfigError(
                f"{name} asks for epochs, but data.sources.{number} is streamed without end",
                hint=f"set {name}.steps",
            )
    draws = counting.epoch(data)
    if draws is None or stage.epochs is None:
        return None
    return Count(max(1, math.ceil(draws.records * stage.epochs / stage.effective_batch)), draws.about)


def host_bytes(config: DistillConfig, large: SidePlan | None) -> int:
    """Bytes of host memory in which the large model's decoder layers lie, in every process."""
    away = config.teacher is not None and config.teacher.placement == "cpu" and not _cached(config)
    return large.facts.decoder_parameters * _bytes(config, large) if away and large and large.facts else 0


def _cached(config: DistillConfig) -> bool:
    return config.teacher is not None and config.teacher.cache is not None


def _weights(config: DistillConfig, side: SidePlan) -> int:
    """Bytes of a frozen model on the device: of a cached one its head, of an offloaded one a layer at a time."""
    facts, each = side.facts, _bytes(config, side)
    assert facts is not None
    layers = facts.decoder_parameters
    if side.side == "large" and config.teacher is not None:
        if _cached(config):
            return facts.embedding_parameters * each
        if config.teacher.placement != "device":
            layers = facts.layer_parameters
        elif (bits := config.teacher.quantization) != "none":
            others = facts.parameters - facts.decoder_parameters
            return others * each + round(layers * memory.QUANTIZED_BYTES[bits])
    return (facts.parameters - facts.decoder_parameters + layers) * each


def _restored(config: DistillConfig, side: SidePlan) -> int:
    """Bytes of the widest 4-bit matrix while it is used, in the compute dtype again."""
    if side.side != "large" or config.teacher is None or config.teacher.quantization != "4bit":
        return 0
    assert side.facts is not None
    return side.facts.hidden * side.facts.widest_ffn * _bytes(config, side)


def _tiles(config: DistillConfig, facts: ModelFacts, load: Workload, *, heads: int) -> int:
    on_cpu = config.device == "cpu"
    return memory.tile_bytes(facts.vocab, load.responses, heads=heads, narrow=_narrow(config), on_cpu=on_cpu)


def _kind(config: DistillConfig, side: SidePlan) -> str:
    """What the layers of a model that trains are made of."""
    if not _narrow(config):
        return "fp32"
    return "bf16" if _bytes(config, side) == 2 else "mixed"


def _narrow(config: DistillConfig) -> bool:
    return stored_precision(config, None) != "fp32"


def _bytes(config: DistillConfig, side: SidePlan) -> int:
    """Bytes a weight as a model is loaded; a small model whose own weights train is held in fp32 throughout."""
    stages = (config.interaction, config.reinforcement)
    if side.side == "small" and any(stage and stage.train == "full" for stage in stages):
        return TRAINED_WEIGHT
    model = config.student if side.side == "small" else config.teacher
    return memory.BYTES[stored_precision(config, model)]


def stored_precision(config: DistillConfig, model: ModelConfig | None) -> str:
    """The stored precision; what is left to the machine counts as bf16, on CPU and MPS as fp32."""
    for choice in (model.dtype if model else "auto", config.precision):
        if choice != "auto":
            return choice
    return "fp32" if config.device in ("cpu", "mps") else "bf16"
