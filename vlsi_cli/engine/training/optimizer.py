"""AdamW and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn


def make_optimizer(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> torch.optim.AdamW:
    """AdamW over named parameters; matrices decay, vectors (norms, biases) do not.

    The rate is set before every step (:func:`learning_rate_at`), so the optimizer holds none of its own.
    """
    parameters = [parameter for _, parameter in named]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas)


def learning_rate_at(
    step: int,
    total: int,
    *,
    peak: float,
    final: float,
    warmup: int = 0,
    schedule: Literal["cosine", "constant"] = "cosine",
) -> float:
    """The rate of optimizer step ``step``, counted from 0: a pure function, so that a resume needs no state.

    Warm-up rises linearly and reaches ``peak`` at step ``warmup``. The cosine then falls from ``peak`` to
    ``final``, which the last step has exactly (arXiv 2412.01822, section 4: 1e-4 to 1e-6 per step).
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if schedule == "constant":
        return peak
    span = total - 1 - warmup
    done = (step - warmup) / span if span > 0 else 0.0
    return final + (peak - final) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
