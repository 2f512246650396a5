"""Losses through a language head without a vocabulary-sized tensor: the tile loop and its backward.

A language head turns hidden states ``x [R, H]`` into logits ``x W^T [R, V]``. With V = 151,936 and R =
2048 that is 1.16 GiB in fp32, several times over once softmaxes and gradients are counted, so it is never
formed. The tokens are cut into tiles; a *kernel* turns the logits of one tile into per-token losses and,
when asked, into ``d loss / d logits``, which is multiplied back into ``[tile, H]`` before the next tile
is begun.

Two backward plans, chosen by whether the head is trained:

* **frozen head** - ``d loss / d x`` does not depend on what comes from above except by one factor a token, so
  it is computed in the forward pass, kept as ``[R, H]`` and multiplied by that factor in the backward;
* **trainable head** - the gradient of the head needs the factor inside the sum over tokens, so the backward
  computes the tiles again and accumulates ``dW`` in fp32.

Dimension names: R response tokens, H hidden size, V vocabulary (the tokenizer's real length; rows of a head
beyond it are padding and are cut off before any softmax).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlsi_cli.engine.losses.readout import (
    PLAIN,
    LogitRule,
    accumulation_dtype,
    check_head,
    no_autocast,
)

__all__ = [
    "Kernel",
    "accumulation_dtype",
    "check_head",
    "head_rows",
    "log_softmax_",
    "no_autocast",
    "project",
    "through_head",
    "tile_length",
    "tiles",
]

# Memory for all vocabulary-sized buffers of one tile together. On a GPU fewer than some 200 tokens a tile
# leave the projection waiting for the head's weights to be read, hence the larger budget.
BUDGET_BYTES = {"cpu": 256 * 2**20}
BUDGET_BYTES_ACCELERATOR = 2 * 2**30

# fp16 has no exponents below 2^-24; a tail of 150,000 probabilities of 1e-8 would vanish from the gradient.
_FP16_SCALE = 1024.0

Kernel = Callable[[slice, Tensor, bool], tuple[Tensor, Tensor | None]]
"""(tile, logits [t, V] to overwrite at will, want gradient) -> (losses [t], their gradient [t, V] or None)."""


def tile_length(
    vocabulary: int, *, buffers: float, device: torch.device, dtype: torch.dtype, tile_tokens: int | None
) -> int:
    """Tokens a tile, so that ``buffers`` tensors ``[tile, vocabulary]`` fit the budget; at least one.

    Args:
        vocabulary: columns of a buffer.
        buffers: how many such buffers are alive at once.
        device: where they live; accelerators get a larger budget than the host.
        dtype: the accumulation dtype.
        tile_tokens: an explicit length, which wins over the budget.
    """
    if tile_tokens is not None:
        if tile_tokens < 1:
            raise ValueError(f"tile_tokens must be at least 1, not {tile_tokens}")
        return tile_tokens
    budget = BUDGET_BYTES.get(device.type, BUDGET_BYTES_ACCELERATOR)
    return max(1, int(budget // (buffers * vocabulary * dtype.itemsize)))


def tiles(tokens: int, length: int) -> Iterator[slice]:
    """Consecutive slices of at most ``length`` that cover ``tokens``."""
    for first in range(0, tokens, length):
        yield slice(first, min(first + length, tokens))


def head_rows(weight: Tensor, vocabulary: int) -> Tensor:
    """The real rows of a head ``[V, H]`` in the dtype in which the projection runs.

    That is the weight's own dtype (then a view), or what autocast would give a linear layer.
    """
    rows = weight.detach()[:vocabulary]
    device = weight.device.type
    if weight.dtype == torch.float32 and torch.is_autocast_enabled(device):
        rows = rows.to(torch.get_autocast_dtype(device))
    return rows


def project(
    x: Tensor, rows: Tensor, dtype: torch.dtype, temperature: float = 1.0, rule: LogitRule = PLAIN
) -> Tensor:
    """Logits ``[t, V]`` of ``x [t, H]``: a product in the head's dtype, returned in ``dtype``.

    The result is a fresh tensor, so a kernel may overwrite it.
    """
    logits = F.linear(x.detach().to(rows.dtype), rows).to(dtype)
    return rule.apply_(logits, temperature)


def log_softmax_(logits: Tensor) -> Tensor:
    """Log-probabilities, written over the logits."""
    return logits.sub_(logits.logsumexp(-1, keepdim=True))


def through_head(
    x: Tensor,
    weight: Tensor,
    kernel: Kernel,
    *,
    vocabulary: int,
    length: int,
    temperature: float = 1.0,
    rule: LogitRule = PLAIN,
) -> Tensor:
    """Per-token losses ``[R]`` of ``kernel`` on the tiled logits of ``x`` through ``weight``.

    Gradients flow to ``x`` and, when it requires them, to ``weight`` (full shape, zero in padding rows). Only
    first derivatives exist.

    Args:
        x: ``[R, H]`` states that enter the head (after the final norm).
        weight: ``[>= vocabulary, H]``.
        kernel: see :data:`Kernel`; it must be a pure function, as a trained head calls it a second time.
        vocabulary: rows of the head that are tokens.
        length: tokens a tile.
        temperature: the logits are divided by it before the kernel sees them.
        rule: what the model does to its logits before that.
    """
    grads = torch.is_grad_enabled()
    want_x, want_weight = grads and x.requires_grad, grads and weight.requires_grad
    result: Tensor = _ThroughHead.apply(
        x, weight, kernel, vocabulary, length, temperature, rule, want_x, want_weight
    )
    return result


class _ThroughHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        kernel: Kernel,
        vocabulary: int,
        length: int,
        temperature: float,
        rule: LogitRule,
        want_x: bool,
        want_weight: bool,
    ) -> Tensor:
        dtype = accumulation_dtype(x, weight)
        rows = head_rows(weight, vocabulary)
        early = want_x and not want_weight  # the frozen-head plan
        losses = torch.empty(x.shape[0], dtype=dtype, device=x.device)
        grad_x = torch.empty(x.shape, dtype=dtype, device=x.device) if early else None
        with no_autocast(x.device):
            for tile in tiles(x.shape[0], length):
                logits = project(x[tile], rows, dtype, temperature, rule)
                bend = rule.bend(logits, temperature) if early else None
                losses[tile], grad = kernel(tile, logits, early)
                if grad_x is not None and grad is not None:
                    grad = grad if bend is None else grad.mul_(bend)
                    grad_x[tile] = _times(grad, rows) * (rule.scale / temperature)
        if want_weight:
            ctx.plan = (kernel, vocabulary, length, temperature, rule, rows.dtype, want_x)
            ctx.save_for_backward(x, weight)
        elif grad_x is not None:
            ctx.save_for_backward(grad_x)
        ctx.early, ctx.dtype_x = early, x.dtype
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.early:
            (kept,) = ctx.saved_tensors
            return (kept * upstream[:, None]).to(ctx.dtype_x), *[None] * 8
        kernel, vocabulary, length, temperature, rule, head_dtype, want_x = ctx.plan
        x, weight = ctx.saved_tensors
        dtype = accumulation_dtype(x, weight)
        rows = weight.detach()[:vocabulary].to(head_dtype)
        grad_x = torch.empty(x.shape, dtype=dtype, device=x.device) if want_x else None
        grad_weight = torch.zeros(weight.shape, dtype=dtype, device=x.device)
        # Upstream factors may carry an fp16 loss scale: bring the largest to 1, give it back in fp32.
        largest = (
            upstream.abs().amax().clamp_min(torch.finfo(dtype).tiny) if len(upstream) else upstream.sum()
        )
        factors = upstream / largest * (rule.scale / temperature)
        with no_autocast(x.device):
            for tile in tiles(x.shape[0], length):
                logits = project(x[tile], rows, dtype, temperature, rule)
                bend = rule.bend(logits, temperature)
                _, grad = kernel(tile, logits, True)
                grad = grad if bend is None else grad.mul_(bend)
                grad.mul_(factors[tile, None])
                if grad_x is not None:
                    grad_x[tile] = _times(grad, rows)
                _add_outer(grad_weight[:vocabulary], grad, x[tile].to(head_dtype))
            grad_weight.mul_(largest)
            if grad_x is not None:
                grad_x = grad_x.mul_(largest).to(x.dtype)
        return grad_x, grad_weight.to(weight.dtype), *[None] * 7


def _times(grad: Tensor, rows: Tensor) -> Tensor:
    """``grad [t, V] @ rows [V, H]`` in the head's dtype, safe from fp16 underflow."""
    if rows.dtype == torch.float16:
        return ((grad * _FP16_SCALE).to(rows.dtype) @ rows).to(grad.dtype) / _FP16_SCALE
    return (grad.to(rows.dtype) @ rows).to(grad.dtype)


def _add_outer(total: Tensor, grad: Tensor, x: Tensor) -> None:
    """``total [V, H] += grad^T [V, t] @ x [t, H]``; summed up in ``total``'s dtype."""
    if x.dtype == total.dtype:
        total.addmm_(grad.t(), x)
    elif x.dtype == torch.float16:
        total.add_(((grad * _FP16_SCALE).to(x.dtype).t() @ x).to(total.dtype), alpha=1 / _FP16_SCALE)
    else:
        total.add_((grad.to(x.dtype).t() @ x).to(total.dtype))
