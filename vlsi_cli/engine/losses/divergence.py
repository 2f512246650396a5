"""Divergences between what two models would say, from their hidden states and heads, one value a token."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from vlsi_cli.engine.losses.tiles import (
    accumulation_dtype,
    check_head,
    head_rows,
    log_softmax_,
    project,
    through_head,
    tile_length,
)

DivergenceKind = Literal["forward_kl", "reverse_kl", "jsd", "l2"]


def divergence(
    x_s: Tensor,
    weight_s: Tensor,
    x_t: Tensor,
    weight_t: Tensor,
    *,
    vocabulary: int,
    kind: DivergenceKind = "forward_kl",
    temperature: float = 1.0,
    tile_tokens: int | None = None,
) -> Tensor:
    """How far the small model's distribution is from the large model's, at every token.

    ====================  =====================================================================  =======
    kind                  value, with p_t of the large and p_s of the small model                bound
    ====================  =====================================================================  =======
    ``forward_kl``        sum p_t log(p_t / p_s), the paper's KLD [D: direction]                 >= 0
    ``reverse_kl``        sum p_s log(p_s / p_t)                                                 >= 0
    ``jsd``               half of KL(p_s || m) + KL(p_t || m), m the mean of both                <= ln 2
    ``l2``                sum (p_s - p_t)^2 over the vocabulary (Table 4d's L2) [D]              <= 2
    ====================  =====================================================================  =======

    L2 is between probabilities and not logits (method choice [D]): logits are defined only up to a constant a
    token, and a squared difference of them is ruled by the 150,000 tokens that nobody would say. It is a sum
    over the vocabulary, since a mean over it would shrink the loss and its gradient by that factor.

    Both softmaxes divide the logits by ``temperature``; the loss is *not* multiplied by its square.

    Args:
        x_s: ``[R, H_s]`` states entering the small model's head. The gradient flows here.
        weight_s: ``[>= vocabulary, H_s]``; gets a gradient only when it requires one.
        x_t: ``[R, H_t]`` states entering the large model's head; never gets a gradient.
        weight_t: ``[>= vocabulary, H_t]``; never gets a gradient.
        vocabulary: the tokenizer's real length. Both heads are cut to it before the softmax, so padding rows
            (152,064 against 151,936, in some ports random) cannot matter.
        kind: see the table.
        temperature: > 0; the paper's is 1.
        tile_tokens: tokens a tile; None chooses by a memory budget.

    Returns:
        ``[R]`` fp32 (fp64 when everything is fp64), in nats except for ``l2``.
    """
    check_head("divergence (small)", x_s, weight_s, vocabulary)
    check_head("divergence (large)", x_t, weight_t, vocabulary)
    if x_s.shape[0] != x_t.shape[0]:
        raise ValueError(f"divergence: {x_s.shape[0]} small states against {x_t.shape[0]} large ones")
    if kind not in get_args(DivergenceKind):
        raise ValueError(f"divergence: no kind {kind!r}; one of {', '.join(get_args(DivergenceKind))}")
    if not temperature > 0:
        raise ValueError(f"divergence: the temperature must be positive, not {temperature}")
    rows_t = head_rows(weight_t, vocabulary)
    dtype = accumulation_dtype(x_s, weight_s, x_t, weight_t)
    compare = _KERNELS[kind]

    def kernel(tile: slice, logits: Tensor, want: bool) -> tuple[Tensor, Tensor | None]:
        log_t = log_softmax_(project(x_t[tile], rows_t, logits.dtype, temperature))
        return compare(log_softmax_(logits), log_t, want)

    length = tile_length(vocabulary, buffers=4, device=x_s.device, dtype=dtype, tile_tokens=tile_tokens)
    return through_head(x_s, weight_s, kernel, vocabulary=vocabulary, length=length, temperature=temperature)


# Each takes log-probabilities [t, V] of both, overwrites them, and gives the losses [t] and d / d
# logits_s [t, V].


def _forward_kl(log_s: Tensor, log_t: Tensor, want: bool) -> tuple[Tensor, Tensor | None]:
    p_t = log_t.exp()
    losses = log_t.sub_(log_s).mul_(p_t).sum(-1)
    return losses, log_s.exp_().sub_(p_t) if want else None


def _reverse_kl(log_s: Tensor, log_t: Tensor, want: bool) -> tuple[Tensor, Tensor | None]:
    p_s = log_s.exp()
    terms = log_s.sub_(log_t).mul_(p_s)
    losses = terms.sum(-1)
    return losses, terms.sub_(p_s.mul_(losses[:, None])) if want else None


def _jsd(log_s: Tensor, log_t: Tensor, want: bool) -> tuple[Tensor, Tensor | None]:
    log_m = torch.logaddexp(log_s, log_t).sub_(math.log(2.0))
    large = log_t.exp().mul_(log_t.sub_(log_m)).sum(-1)
    p_s = torch.exp(log_s, out=log_t)
    terms = log_s.sub_(log_m).mul_(p_s)
    small = terms.sum(-1)
    losses = (small + large) / 2
    return losses, terms.sub_(p_s.mul_(small[:, None])).div_(2) if want else None


def _l2(log_s: Tensor, log_t: Tensor, want: bool) -> tuple[Tensor, Tensor | None]:
    p_s = log_s.exp_()
    gap = log_t.exp_().neg_().add_(p_s)
    losses = gap.square().sum(-1)
    if not want:
        return losses, None
    mean = (p_s * gap).sum(-1, keepdim=True)
    return losses, gap.sub_(mean).mul_(p_s).mul_(2)


_KERNELS: dict[str, Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
    "l2": _l2,
}
