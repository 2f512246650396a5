"""What every run of the comparison has in common, and what one run is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

Split = Literal["validation", "test"]


@dataclass(frozen=True)
class Settings:
    """The fixed half of the comparison: models, data, lengths, measurement. A change makes all results stale.

    Attributes:
        large, small: the pair, ids or folders.
        start, stride: target layers on both sides.
        kinds: kinds of puzzle that are trained on and asked; None for all.
        turns: most questions about one picture in training.
        records: size of the training set of a seed; None for puzzles that never come twice.
        wrong: share of the training questions whose answers are wrong, for students and verbalizers alike.
        batch_size: records in an optimizer step.
        max_length: tokens of a training record.
        interaction_steps, reinforcement_steps: of the student; plain fine-tuning gets their sum.
        verbalization_steps, verbalization_rate: step 1, once for each model and architecture.
        warmup_steps, betas, final_fraction, max_grad_norm: AdamW and its cosine, the same for every arm;
            ``final_fraction`` is the last rate over the first.
        test_seed: of the test puzzles, so that a test puzzle serves one comparison.
        asked: held-out puzzles in one measurement.
        asked_together: of them in one batch.
        max_new_tokens: longest answer.
    """

    large: str = "demo/large"
    small: str = "demo/small"
    start: int = 1
    stride: int = 2
    kinds: tuple[str, ...] | None = ("chart-height", "chart-most", "chart-least", "chart-describe")
    turns: int = 2
    records: int | None = None
    wrong: float = 0.0
    batch_size: int = 8
    max_length: int = 512
    interaction_steps: int = 90
    reinforcement_steps: int = 60
    verbalization_steps: int = 150
    verbalization_rate: float = 3e-3
    warmup_steps: int = 10
    betas: tuple[float, float] = (0.9, 0.98)
    final_fraction: float = 0.01
    max_grad_norm: float = 1.0
    test_seed: int = 0
    asked: int = 500
    asked_together: int = 250
    max_new_tokens: int = 40

    def to_json(self) -> dict[str, Any]:
        """Plain values, lists for tuples, as they come back from a file."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Settings:
        """The settings of a stored line; what it does not name is as usual."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def changed(settings: Settings, items: Sequence[str]) -> tuple[Settings, dict[str, Any]]:
    """``NAME=VALUE`` (JSON values, or bare words) into settings; what is not theirs is handed back for the run."""
    changes: dict[str, Any] = {}
    for item in items:
        name, _, value = item.partition("=")
        try:
            read = json.loads(value)
        except json.JSONDecodeError:
            read = value
        changes[name] = tuple(read) if isinstance(read, list) else read
    ours = {field.name for field in fields(Settings)}
    of_settings = {name: value for name, value in changes.items() if name in ours}
    return replace(settings, **of_settings), {k: v for k, v in changes.items() if k not in ours}


@dataclass(frozen=True)
class Run:
    """One training of the student and one measurement of it.

    Attributes:
        intermediate, last: losses of the interaction step; both ``none`` leaves it out, and reinforcement is
            then plain supervised fine-tuning.
        features: intermediate states are compared without verbalizers.
        intermediate_weight: of the target layers' losses beside the last layer's.
        strategy, k, search_range, order_preservation, adaptive_temperature: of the matching.
        architecture: of the verbalizers, on both sides.
        interaction_steps, reinforcement_steps: of the student.
        rate: first learning rate of both steps; ``reinforcement_rate`` of the reinforcement alone, None for the same.
        seed: of the training data, their order and the draws of the matching.
        split: what the student is measured on.
        model: who is measured; the large model is so as it is, without training.
    """

    intermediate: Literal["kld", "l2", "ce", "none"] = "kld"
    last: Literal["kld", "l2", "ce", "none"] = "kld"
    features: bool = False
    intermediate_weight: float = 1.0
    strategy: Literal["random", "uniform", "bottom-k", "multinomial"] = "multinomial"
    k: int = 1
    search_range: bool = True
    order_preservation: bool = True
    adaptive_temperature: bool = True
    architecture: str = "verb-ffn"
    interaction_steps: int = 0
    reinforcement_steps: int = 0
    rate: float = 1e-3
    reinforcement_rate: float | None = None
    seed: int = 0
    split: Split = "test"
    model: Literal["small", "large"] = "small"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @property
    def untrained(self) -> bool:
        """Whether a model is only measured."""
        return not self.interacts and not self.reinforcement_steps

    @property
    def interacts(self) -> bool:
        """Whether there is an interaction step."""
        return self.interaction_steps > 0 and (self.intermediate, self.last) != ("none", "none")

    @property
    def verbalizes(self) -> bool:
        """Whether that step needs verbalizers."""
        return self.interacts and self.intermediate != "none" and not self.features
