"""``vlsi distill --reproduce``: run exactly the step that was not finite, and look closer at it. Nothing is written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlsi_cli.config.loading import load_saved
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.data.collate import in_groups, merge
from vlsi_cli.engine.runs import models
from vlsi_cli.engine.runs.failures import Bundle, not_finite, read_failure
from vlsi_cli.engine.runs.folder import RunFolder
from vlsi_cli.engine.runs.parts import RunParts
from vlsi_cli.engine.runs.teachers import open_cache
from vlsi_cli.engine.training import Stage
from vlsi_cli.engine.training.checkpoint import set_random_states
from vlsi_cli.engine.training.parallel import Prepared
from vlsi_cli.engine.training.signals import Wish
from vlsi_cli.errors import CheckpointError, ConfigError, TrainingError
from vlsi_cli.events import Events, Note

#: Relative: several processes add their tokens in fp32 before the sums are added, and pad to other lengths.
ROUNDING = 1e-4


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch of the step.

    Attributes:
        records: their ids.
        response_tokens: of all of them.
        terms: mean of each term of the loss over these tokens; none where the step does not come so far.
    """

    records: tuple[str, ...]
    response_tokens: int
    terms: dict[str, float]


@dataclass(frozen=True)
class Reproduction:
    """What the step gave then and gives now.

    Attributes:
        stage, step, learning_rate: which step it is; ``processes`` how many took it.
        message_then: what was not finite; ``message`` where layers cannot be matched now either: no loss comes of it.
        terms_then, terms: loss of each layer, mean over the step's response tokens.
        grad_norm_then, grad_norm: before clipping.
        same: whether every term is what it was, infinities and all; where several processes took the step, up to the
            order of their sums.
        micro_batches: where in the step it happens.
        parameters: trained parameters that are not finite before the step.
        gradients: trained parameters whose gradient is not finite.
        largest: the largest magnitude among the trained parameters that are finite.
    """

    stage: str
    step: int
    learning_rate: float
    processes: int
    message_then: str
    message: str | None
    terms_then: dict[str, float]
    terms: dict[str, float]
    grad_norm_then: float
    grad_norm: float
    same: bool
    micro_batches: tuple[MicroBatch, ...]
    parameters: tuple[str, ...]
    gradients: tuple[str, ...]
    largest: float

    def to_json(self) -> dict[str, Any]:
        """The same with numbers that JSON lacks as words."""
        fields: dict[str, Any] = _spoken(vars(self))
        fields["micro_batches"] = [_spoken(vars(each)) for each in self.micro_batches]
        return fields


def run(path: Path, *, events: Events) -> Reproduction:
    """Run the step of a bundle again, on the device and in the precision of its configuration.

    Args:
        path: the bundle, where it was written: the models' other parts are taken from its run folder.
        events: told what happens.

    Raises:
        CheckpointError: the bundle or its run cannot be read.
        ConfigError: the stage has been completed since.
        VlsiError: models, data or cache of the run are not there any more.
    """
    bundle = read_failure(path)
    resolved, folder = load_saved(bundle.run), RunFolder.open(bundle.run)
    if bundle.stage in folder.state.stages:
        raise ConfigError(
            f"{bundle.stage} of {bundle.run} is complete by now, so what the step started from is gone",
            hint="run the configuration in the bundle again in a new run folder",
        )
    parts = RunParts(resolved.config, folder, Wish())
    large = resolved.config.teacher
    if bundle.stage == "interaction" and large is not None and large.cache is not None:
        parts.use_cache(open_cache(resolved.config, parts.device, events))
    stage, settings, backbone = _stage(parts, bundle.stage)
    events(Note(f"running step {bundle.step} of {bundle.stage} again on {parts.device}"))
    backbone.set_gradient_checkpointing(settings.gradient_checkpointing)
    trained = dict(stage.trained())
    if {name: p.shape for name, p in trained.items()} != {
        name: t.shape for name, t in bundle.trained.items()
    }:
        raise CheckpointError(f"the step in {path} belongs to a stage that trains other parameters")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(bundle.trained[name])
    return _step(bundle, stage, models.new_accelerator(parts.device, parts.dtype))


def _stage(parts: RunParts, key: str) -> tuple[Stage, Any, Backbone]:
    config = parts.config
    if key == "interaction":
        return parts.interaction(), config.interaction, parts.student
    if key == "reinforcement":
        return parts.reinforcement(), config.reinforcement, parts.student
    if key == "verbalization-large":
        return parts.verbalization("large"), config.large_verbalization, parts.teacher
    return parts.verbalization("small"), config.verbalization, parts.student


def _step(bundle: Bundle, stage: Stage, accelerator: Any) -> Reproduction:
    trained = dict(stage.trained())
    before = not_finite(trained)
    count = int(bundle.facts["processes"])
    batches = [merge(group) if count > 1 else group[0] for group in in_groups(bundle.batches, count)]
    tokens = sum(batch.num_tokens for batch in batches)
    sizes = [(batch.records, batch.num_tokens) for batch in batches]
    if accelerator.scaler is not None and bundle.facts["scaler"]:
        accelerator.scaler.load_state_dict(bundle.facts["scaler"])
    prepared = Prepared(accelerator.prepare(stage), None, accelerator)
    stage.set_train_mode()
    set_random_states(bundle.random, stage.generator, accelerator.device)
    outputs, message = [], None
    try:
        for batch in batches:  # one by one, to know where it happens
            outputs += prepared.accumulate([batch], tokens) or []
    except TrainingError as error:
        message = str(error)
    gradients = {name: p.grad for name, p in trained.items() if p.grad is not None}
    odd = not_finite(gradients)
    sums = [{name: float(value) for name, value in each.terms.items()} for each in outputs]
    terms, norm = {}, math.nan
    if message is None:
        norm = float(accelerator.clip_grad_norm_(list(trained.values()), math.inf))
        columns = {name: torch.tensor([each[name] for each in sums], dtype=torch.float64) for name in sums[0]}
        terms = {name: float(column.sum()) / max(tokens, 1) for name, column in columns.items()}
    then = {name: float(value) for name, value in bundle.facts["terms"].items()}
    rounding = 0.0 if count == 1 else ROUNDING
    same = set(then) == set(terms) and all(_equal(then[name], terms[name], rounding) for name in then)
    if message is not None:
        same = not then and str(bundle.facts["message"]).startswith(message)
    finite = [float(p.detach()[p.isfinite()].abs().max()) for p in trained.values() if p.isfinite().any()]
    accelerator.free_memory()
    return Reproduction(
        stage=bundle.stage,
        step=bundle.step,
        learning_rate=float(bundle.facts["learning_rate"]),
        processes=count,
        message_then=str(bundle.facts["message"]),
        message=message,
        terms_then=then,
        terms=terms,
        grad_norm_then=float(bundle.facts["grad_norm"]),
        grad_norm=norm,
        same=same,
        micro_batches=tuple(
            MicroBatch(records, held, {name: value / max(held, 1) for name, value in each.items()})
            for (records, held), each in zip(sizes, [*sums, *[{}] * (len(sizes) - len(sums))], strict=True)
        ),
        parameters=tuple(before),
        gradients=tuple(odd),
        largest=max(finite, default=0.0),
    )


def _equal(a: float, b: float, rounding: float) -> bool:
    if math.isfinite(a) and math.isfinite(b):
        return math.isclose(a, b, rel_tol=rounding)
    return a == b or (math.isnan(a) and math.isnan(b))


def _spoken(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {name: _spoken(inner) for name, inner in value.items()}
    return value
