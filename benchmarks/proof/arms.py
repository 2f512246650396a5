"""The four ways of teaching that the main table compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from benchmarks.proof.settings import Run, Settings


def fine_tuning(settings: Settings) -> Run:
    """Plain supervised fine-tuning for as many optimizer steps as the others have in both their steps."""
    steps = settings.interaction_steps + settings.reinforcement_steps
    return Run(intermediate="none", last="none", reinforcement_steps=steps)


def vlsi(settings: Settings) -> Run:
    """The whole method."""
    return Run(interaction_steps=settings.interaction_steps, reinforcement_steps=settings.reinforcement_steps)


def last_layer(settings: Settings) -> Run:
    """KLD at the last layer alone, then fine-tuning."""
    return Run(**(vlsi(settings).to_json() | {"intermediate": "none"}))


def feature_layers(settings: Settings) -> Run:
    """L2 between the features of matched layers and of the last ones, then fine-tuning."""
    return Run(**(vlsi(settings).to_json() | {"intermediate": "l2", "last": "l2", "features": True}))


def untrained(model: Literal["small", "large"]) -> Run:
    """One of the models as it is; no seed and no learning rate make a difference."""
    return Run(intermediate="none", last="none", rate=0.0, model=model)


ARMS: dict[str, Callable[[Settings], Run]] = {
    "SFT": fine_tuning,
    "last-layer KLD": last_layer,
    "feature L2": feature_layers,
    "VLsI": vlsi,
}
