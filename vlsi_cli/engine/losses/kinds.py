"""What the losses are, on one rectangle of log-probabilities: values, and gradients with respect to the logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

DivergenceKind = Literal["forward_kl", "reverse_kl", "jsd", "l2", "soft_cross_entropy"]


class Part(NamedTuple):
    """What one rectangle contributes to a loss.

    The gradient of every kind with respect to the small model's logits is ``first - correction * p_s``, where the
    correction, one number a token, is the sum of ``first`` over the whole vocabulary (a softmax moves no mass, so that
    every gradient through it sums to zero).

    Attributes:
        value: ``[t]`` this rectangle's terms of the loss.
        first: ``[t, w]``; None when no gradient is wanted and none had to be made.
        p_s: ``[t, w]`` where the correction is not zero; else None.
        correction: ``[t]`` this rectangle's part of it, wanted or not; None where it is zero.
    """

    value: Tensor
    first: Tensor | None
    p_s: Tensor | None = None
    correction: Tensor | None = None


# Each takes log-probabilities [t, w] of both models and may overwrite them; the weight is the mixture's, for jsd.


def _forward_kl(log_s: Tensor, log_t: Tensor, want: bool, _: float) -> Part:
    p_t = log_t.exp()
    value = log_t.sub_(log_s).mul_(p_t).sum(-1)
    return Part(value, log_s.exp_().sub_(p_t) if want else None)


def _soft_cross_entropy(log_s: Tensor, log_t: Tensor, want: bool, _: float) -> Part:
    p_t = log_t.exp_()
    value = -(p_t * log_s).sum(-1)
    return Part(value, log_s.exp_().sub_(p_t) if want else None)


def _reverse_kl(log_s: Tensor, log_t: Tensor, want: bool, _: float) -> Part:
    p_s = log_s.exp()
    terms = log_s.sub_(log_t).mul_(p_s)
    value = terms.sum(-1)
    return Part(value, terms, p_s, value)


def _jsd(log_s: Tensor, log_t: Tensor, want: bool, beta: float) -> Part:
    log_m = torch.logaddexp(log_s + math.log1p(-beta), log_t + math.log(beta))
    large = log_t.exp().mul_(log_t.sub_(log_m)).sum(-1)
    p_s = torch.exp(log_s, out=log_t)
    # d/dp_s of both terms together is (1 - beta) log(p_s / m): what the mixture moves by cancels
    terms = log_s.sub_(log_m).mul_(p_s).mul_(1 - beta)
    small = terms.sum(-1)
    return Part(large.mul_(beta).add_(small), terms, p_s, small)


def _l2(log_s: Tensor, log_t: Tensor, want: bool, _: float) -> Part:
    p_s = log_s.exp_()
    gap = log_t.exp_().neg_().add_(p_s)
    value = gap.square().sum(-1)
    first = gap.mul_(p_s).mul_(2)
    return Part(value, first, p_s, first.sum(-1))


#: (log_s, log_t, want a gradient, beta) -> the rectangle's part.
KINDS: dict[str, Callable[[Tensor, Tensor, bool, float], Part]] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
    "l2": _l2,
    "soft_cross_entropy": _soft_cross_entropy,
}

#: Kinds whose gradient is p_s - p_t, linear in two terms that each belong to one model alone.
LINEAR = frozenset({"forward_kl", "soft_cross_entropy"})


def hard_targets(log_s: Tensor, targets: Tensor, first_word: int, want: bool) -> Part:
    """Cross-entropy with one right word a token: ``-log p(target)``, gradient ``p_s - onehot``.

    Args:
        log_s: ``[t, w]`` log-probabilities, overwritten.
        targets: ``[t]`` token ids of the whole vocabulary.
        first_word: the vocabulary's place of the rectangle's first column.
        want: whether a gradient is wanted.
    """
    here, index = locate(targets, first_word, log_s.shape[1])
    value = -torch.where(here, log_s.gather(1, index).squeeze(1), 0.0)
    if not want:
        return Part(value, None)
    return Part(value, log_s.exp_().scatter_add_(1, index, -here.to(log_s.dtype)[:, None]))


def locate(targets: Tensor, first_word: int, width: int) -> tuple[Tensor, Tensor]:
    """Which targets lie in ``width`` columns from ``first_word``, ``[t]`` bool; and a valid column each, ``[t, 1]``."""
    place = targets - first_word
    here = (place >= 0) & (place < width)
    return here, place.clamp(0, width - 1)[:, None]
