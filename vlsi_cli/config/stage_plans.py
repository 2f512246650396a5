"""Steps, trained parameters and memory of each stage of a run, from the configuration and the models'
facts."""

from __future__ import annotations

import math

from vlsi_cli.config import memory
from vlsi_cli.config.memory import Memory
from vlsi_cli.config.plans import SidePlan, StagePlan
from vlsi_cli.config.run import (
    DataConfig,
    DistillConfig,
    InteractionConfig,
    ModelConfig,
    PatternsSource,
    ReinforcementConfig,
    StageConfig,
)
from vlsi_cli.errors import ConfigError


def stage_plans(config: DistillConfig, large: SidePlan | None, small: SidePlan) -> list[StagePlan]:
    """The stages in the order in which they run.

    Raises:
        ConfigError: epochs over endless data.
    """
    stages: list[StagePlan] = []
    if large and config.large_verbalization:
        stages.append(_verbalization(config, config.large_verbalization, large))
    if config.verbalization:
        stages.append(_verbalization(config, config.verbalization, small))
    if large and config.interaction:
        stages.append(_interaction(config, config.interaction, large, small))
    if config.reinforcement:
        stages.append(_reinforcement(config, config.reinforcement, small))
    return stages


def _verbalization(config: DistillConfig, stage: StageConfig, side: SidePlan) -> StagePlan:
    facts, trained, needed = side.facts, None, None
    if facts:
        trained = side.verbalizer_parameters * len(side.targets)
        tokens, responses = _tokens(config, stage)
        activations = memory.forward_bytes(facts, tokens, _bytes(config, side))
        activations += memory.taps_bytes(facts, len(side.targets), responses, trained=True)
        activations += memory.tile_bytes(facts.vocab)
        needed = memory.stage_memory(
            frozen=facts.parameters,
            frozen_bytes=_bytes(config, side),
            trained=trained,
            activations=activations,
        )
    words = f"{len(side.targets)} verbalizers ({config.verbalizer.architecture})" if facts else "verbalizers"
    return _stage("verbalization", side.side, config, stage, words, trained, needed)


def _interaction(
    config: DistillConfig, stage: InteractionConfig, large: SidePlan, small: SidePlan
) -> StagePlan:
    trained, needed = None, None
    words = (
        "decoder layers" if stage.train == "full" else f"LoRA of rank {stage.lora.rank} on the decoder layers"
    )
    words += " and verbalizers" if stage.verbalizes else ""
    facts = small.facts
    if facts:
        lora = stage.train == "lora"
        backbone = facts.lora_parameters(stage.lora.rank) if lora else facts.decoder_parameters
        trained = backbone + (small.verbalizer_parameters * len(small.targets) if stage.verbalizes else 0)
        if large.facts:
            tokens, responses = _tokens(config, stage)
            frozen_small = facts.parameters - (0 if lora else facts.decoder_parameters)
            frozen_large = large.facts.parameters
            if stage.verbalizes:
                frozen_large += large.verbalizer_parameters * len(large.targets)
            activations = memory.forward_bytes(large.facts, tokens, _bytes(config, large))
            activations += memory.backward_bytes(
                facts, tokens, _bytes(config, small), checkpointing=stage.gradient_checkpointing
            )
            activations += memory.taps_bytes(large.facts, len(large.targets) + 1, responses, trained=False)
            activations += memory.taps_bytes(facts, len(small.targets) + 1, responses, trained=True)
            activations += memory.tile_bytes(max(facts.vocab, large.facts.vocab))
            own = memory.stage_memory(
                frozen=frozen_small,
                frozen_bytes=_bytes(config, small),
                trained=trained,
                activations=activations,
            )
            weights = own.weights + frozen_large * _bytes(config, large)
            needed = Memory(weights, own.gradients, own.optimizer, own.activations)
    return _stage("interaction", "small", config, stage, words, trained, needed)


def _reinforcement(config: DistillConfig, stage: ReinforcementConfig, small: SidePlan) -> StagePlan:
    facts, trained, needed = small.facts, None, None
    lora = stage.train == "lora"
    words = f"LoRA of rank {stage.lora.rank} on the decoder layers" if lora else "the whole language model"
    words += " and the vision tower" if stage.vision else ""
    if facts:
        vision = (facts.vision or 0) if stage.vision else 0
        trained = vision + (facts.lora_parameters(stage.lora.rank) if lora else facts.language_parameters)
        tokens, _ = _tokens(config, stage)
        activations = memory.tile_bytes(facts.vocab) + memory.backward_bytes(
            facts, tokens, _bytes(config, small), checkpointing=stage.gradient_checkpointing
        )
        frozen = facts.parameters - vision - (0 if lora else facts.language_parameters)
        needed = memory.stage_memory(
            frozen=frozen, frozen_bytes=_bytes(config, small), trained=trained, activations=activations
        )
    return _stage("reinforcement", "small", config, stage, words, trained, needed)


def _stage(
    name: str,
    side: str,
    config: DistillConfig,
    stage: StageConfig,
    trains: str,
    trained: int | None,
    needed: Memory | None,
) -> StagePlan:
    return StagePlan(
        stage=name,
        side=side,
        steps=_steps(name, stage, config.data),
        batch_size=stage.batch_size,
        gradient_accumulation=stage.gradient_accumulation,
        effective_batch=stage.effective_batch,
        trains=trains,
        trained_parameters=trained,
        memory=needed,
    )


def _steps(name: str, stage: StageConfig, data: DataConfig) -> int | None:
    if stage.steps is not None:
        return stage.steps
    sizes = [source.size if isinstance(source, PatternsSource) else source.records for source in data.sources]
    for number, source in enumerate(data.sources):
        if isinstance(source, PatternsSource) and source.size is None:
            raise ConfigError(
                f"{name} runs for {stage.epochs:g} epochs, but data.sources.{number} (patterns) is endless",
                hint=f"set {name}.steps, or data.sources.{number}.size",
            )
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes) or stage.epochs is None:
        return None
    return max(1, math.ceil(sum(known) * stage.epochs / stage.effective_batch))


def _tokens(config: DistillConfig, stage: StageConfig) -> tuple[int, int]:
    tokens = stage.batch_size * config.data.max_length
    return tokens, math.ceil(tokens * memory.RESPONSE_SHARE)


def _bytes(config: DistillConfig, side: SidePlan) -> int:
    model = config.student if side.side == "small" else config.teacher
    return memory.BYTES[stored_precision(config, model)]


def stored_precision(config: DistillConfig, model: ModelConfig | None) -> str:
    """The stored precision; what is left to the machine counts as bf16, on CPU and MPS as fp32."""
    for choice in (model.dtype if model else "auto", config.precision):
        if choice != "auto":
            return choice
    return "fp32" if config.device in ("cpu", "mps") else "bf16"
