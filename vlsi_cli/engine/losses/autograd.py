"""Where a loss meets autograd: gradients that exist already, or a head that trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlsi_cli.engine.losses.compare import Comparison, Plan
from vlsi_cli.engine.losses.readout import (
    PLAIN,
    LogitRule,
    Readout,
    accumulation_dtype,
    no_autocast,
    operand_dtype,
)


@dataclass(frozen=True)
class Setting:
    """Everything of a loss that is not a tensor: enough to walk again in a backward pass.

    Attributes:
        kind: of :class:`vlsi_cli.engine.losses.compare.Comparison`.
        vocabulary: V.
        temperature: both models' logits are divided by it.
        beta: weight of the large model in the mixture of ``jsd``.
        rules: what the small and the large model do to their logits.
        plan: None chooses.
        tile_tokens, tile_words: None chooses.
    """

    kind: str
    vocabulary: int
    temperature: float = 1.0
    beta: float = 0.5
    rules: tuple[LogitRule, LogitRule] = (PLAIN, PLAIN)
    plan: Plan | None = None
    tile_tokens: int | None = None
    tile_words: int | None = None


def compare(
    setting: Setting,
    x: Tensor,
    weight: Tensor,
    x_t: Tensor | None = None,
    weight_t: Tensor | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """``[R]`` losses with gradients for ``x`` and, when it requires them, for ``weight`` (zero in padding rows).

    Under a frozen head the gradient of each token's loss does not depend on what comes from above except by one
    factor, so it is made in the forward pass and kept as ``[R, H]``, and nothing else is. Under a head that trains the
    factor stands inside a sum over tokens, so the backward walks again. Only first derivatives exist.
    """
    given = [t for t in (x, weight, x_t, weight_t) if t is not None]
    heads = [t for t in (weight, weight_t) if t is not None]
    operands = tuple(operand_dtype(head) for head in heads)
    dtype = accumulation_dtype(*given)
    if torch.is_grad_enabled() and weight.requires_grad:
        losses: Tensor = _TrainedHead.apply(setting, dtype, operands, x, weight, x_t, weight_t, targets)
        return losses
    want = torch.is_grad_enabled() and x.requires_grad
    with torch.no_grad(), no_autocast(x.device):
        comparison = _comparison(setting, dtype, operands, x, weight, x_t, weight_t, targets)
        plan = setting.plan or comparison.choose_plan()
        tiling = comparison.tiling(plan, tile_tokens=setting.tile_tokens, tile_words=setting.tile_words)
        found = comparison.run(plan, tiling, want=want)
    return found.losses if found.grad_x is None else with_gradient(x, found.losses, found.grad_x)


def with_gradient(x: Tensor, losses: Tensor, grad_x: Tensor) -> Tensor:
    """``losses [R]``, whose gradient with respect to ``x [R, H]`` is known to be ``grad_x``, token by token."""
    joined: Tensor = _Known.apply(x, losses, grad_x)
    return joined


def _comparison(
    setting: Setting,
    dtype: torch.dtype,
    operands: tuple[torch.dtype, ...],
    x: Tensor,
    weight: Tensor,
    x_t: Tensor | None,
    weight_t: Tensor | None,
    targets: Tensor | None,
) -> Comparison:
    pairs = [(x, weight)] + ([(x_t, weight_t)] if x_t is not None and weight_t is not None else [])
    readouts = [
        Readout(
            states,
            head,
            setting.vocabulary,
            dtype=dtype,
            operands=operand,
            rule=rule,
            temperature=setting.temperature,
        )
        for (states, head), operand, rule in zip(pairs, operands, setting.rules, strict=False)
    ]
    large = readouts[1] if len(readouts) > 1 else None
    return Comparison(setting.kind, readouts[0], large, targets, beta=setting.beta)


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, losses: Tensor, grad_x: Tensor) -> Tensor:
        ctx.save_for_backward(grad_x)
        ctx.dtype = x.dtype
        return losses.view_as(losses)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad_x,) = ctx.saved_tensors
        return (grad_x * upstream[:, None]).to(ctx.dtype), None, None


class _TrainedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        setting: Setting,
        dtype: torch.dtype,
        operands: tuple[torch.dtype, ...],
        x: Tensor,
        weight: Tensor,
        x_t: Tensor | None,
        weight_t: Tensor | None,
        targets: Tensor | None,
    ) -> Tensor:
        with no_autocast(x.device):
            comparison = _comparison(setting, dtype, operands, x, weight, x_t, weight_t, targets)
            plan: Plan = "online" if comparison.linear else setting.plan or "kept"
            tiling = comparison.tiling(plan, tile_tokens=setting.tile_tokens, tile_words=setting.tile_words)
            found = comparison.run(plan, tiling, want=False)
        ctx.save_for_backward(x, weight, x_t, weight_t, targets, found.correction, *found.log_sums)
        ctx.setting, ctx.dtypes = setting, (dtype, operands)
        return found.losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, x_t, weight_t, targets, correction, *log_sums = ctx.saved_tensors
        setting: Setting = ctx.setting
        dtype, operands = ctx.dtypes
        comparison = _comparison(setting, dtype, operands, x, weight, x_t, weight_t, targets)
        tiling = comparison.tiling(
            "recomputed", tile_tokens=setting.tile_tokens, tile_words=setting.tile_words
        )
        grad_x = torch.zeros(x.shape, dtype=dtype, device=x.device) if ctx.needs_input_grad[3] else None
        grad_weight = torch.zeros_like(weight)
        # Factors may carry an fp16 loss scale: bring the largest to 1, give it back in fp32.
        largest = (
            upstream.abs().amax().clamp_min(torch.finfo(dtype).tiny) if len(upstream) else upstream.sum()
        )
        with no_autocast(x.device):
            comparison.train_head(
                tiling,
                tuple(log_sums),
                correction,
                upstream / largest,
                largest,
                grad_x,
                grad_weight[: setting.vocabulary],
            )
        return None, None, None, grad_x.to(x.dtype) if grad_x is not None else None, grad_weight, *[None] * 3
