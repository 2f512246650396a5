"""From the settings of a stage to the stage: which parts train, and how layers are matched."""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor

from vlsi_cli.config.run import (
    InteractionConfig,
    LoraConfig,
    MatchingConfig,
    ReinforcementConfig,
    StageConfig,
)
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.lora import add_lora
from vlsi_cli.engine.matching import match, reachable
from vlsi_cli.engine.stages import InteractionStage, ReinforcementStage
from vlsi_cli.engine.stages.interaction import Matcher
from vlsi_cli.engine.stages.reinforcement import LANGUAGE_MODEL, VISION
from vlsi_cli.engine.teachers import Teacher
from vlsi_cli.engine.verbalizing import Verbalizers
from vlsi_cli.errors import ConfigError


def interaction_stage(
    settings: InteractionConfig,
    student: Backbone,
    teacher: Teacher | None,
    verbalizers: Verbalizers | None,
    *,
    targets: tuple[int, ...],
    seed: int,
) -> InteractionStage:
    """Step 2 on a small model, adapters added where the settings ask for them.

    Args:
        teacher: None when no loss of the settings needs one.
        verbalizers: the small model's set; None when the settings use none.
        targets: the small model's target layers.
    """
    matcher, needed = _matching(settings.matching, len(targets), len(teacher.targets) if teacher else 0)
    return InteractionStage(
        student,
        teacher,
        verbalizers,
        targets=targets,
        parts=_parts(student, settings.train, settings.lora, ("layers",), seed),
        intermediate=settings.intermediate,
        last=settings.last,
        features=settings.features,
        temperature=settings.temperature,
        jsd_beta=settings.jsd_beta,
        weights=(settings.weights.intermediate, settings.weights.last, settings.weights.answers),
        matcher=matcher,
        needed=needed,
        vocabulary=student.tokenizer_length,
        seed=seed,
    )


def reinforcement_stage(settings: ReinforcementConfig, student: Backbone, *, seed: int) -> ReinforcementStage:
    """Step 3 on a small model, adapters added where the settings ask for them."""
    parts = _parts(student, settings.train, settings.lora, LANGUAGE_MODEL, seed)
    return ReinforcementStage(student, (*parts, *VISION) if settings.vision else parts)


def cut_step(settings: StageConfig, before: int, now: int) -> tuple[int, int]:
    """Records a process and micro-batch, and micro-batches a step, of a run that ``before`` processes began.

    A step keeps its records whatever the number of processes is now: each takes at most as many at a time as the
    configuration says, and as many micro-batches as that needs.

    Raises:
        ConfigError: the records of a step cannot be dealt out to so many processes.
    """
    records = settings.effective_batch * before
    if records % now:
        fitting = [n for n in range(1, 2 * before + 1) if records % n == 0]
        raise ConfigError(
            f"the run was begun by {before} processes with {records} records a step, which {now} cannot share evenly",
            hint=f"resume with {', '.join(map(str, fitting[:-1]))} or {fitting[-1]} processes"
            if len(fitting) > 1
            else "resume with one process",
        )
    each = records // now
    size = next(n for n in range(min(settings.batch_size, each), 0, -1) if each % n == 0)
    return size, each // size


def add_adapters(student: Backbone, settings: InteractionConfig | ReinforcementConfig, seed: int) -> None:
    """The adapters that a stage trains, if its settings ask for some."""
    _parts(student, settings.train, settings.lora, (), seed)


def optimizer_steps(settings: StageConfig, records: int | None, name: str, processes: int = 1) -> int:
    """Optimizer steps of a stage: as given, or enough for its epochs.

    Args:
        processes: how many began the run; a step has the records of all of them.
        records: records of one epoch; None when the data have no end.
        name: of the stage, for the message.

    Raises:
        ConfigError: epochs over endless data.
    """
    if settings.steps is not None:
        return settings.steps
    if records is None:
        raise ConfigError(
            f"{name}.epochs is {settings.epochs}, but the data have no end", hint=f"give {name}.steps"
        )
    return max(1, math.ceil((settings.epochs or 1.0) * records / (settings.effective_batch * processes)))


def _parts(
    student: Backbone, train: str, lora: LoraConfig, whole: tuple[str, ...], seed: int
) -> tuple[str, ...]:
    if train != "lora":
        return whole
    add_lora(student, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, seed=seed)
    return ("adapters",)


def _matching(choice: MatchingConfig, n_small: int, n_large: int) -> tuple[Matcher, Tensor | None]:
    """The matching of a configuration, and the cells of the divergence matrix that it can look at."""
    matcher = partial(
        match,
        strategy=choice.strategy,
        k=choice.k,
        search_range=choice.search_range,
        order_preservation=choice.order_preservation,
        adaptive_temperature=choice.adaptive_temperature,
    )
    needed = None
    if n_large:
        needed = reachable(
            n_small,
            n_large,
            strategy=choice.strategy,
            search_range=choice.search_range,
            order_preservation=choice.order_preservation,
        )
    return lambda matrix, generator: matcher(matrix, generator=generator), needed
