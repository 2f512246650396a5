"""Divergence from a large model of which only the k likeliest tokens are known, and the mass of all the others.

A cache of whole distributions would be ``4 V`` bytes a token and layer; of the k likeliest tokens it is
``6 k + 4``. The other tokens are one bucket: the loss is the KL divergence between two distributions over
``k + 1`` outcomes, the k tokens and "anything else". By the data-processing inequality it never exceeds the
divergence over the vocabulary, and what it lacks is exactly

    tail mass x KL(large's distribution inside the tail || small's distribution inside the tail):

how the small model shapes its tail is left to itself. Dimension names are those of ``losses.readout``. Rows of logits
are kept for a block of tokens (:mod:`vlsi_cli.engine.losses.rectangles`), since the k tokens lie anywhere in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlsi_cli.engine.losses import bodies
from vlsi_cli.engine.losses.autograd import with_gradient
from vlsi_cli.engine.losses.exponentials import Exponentials
from vlsi_cli.engine.losses.readout import (
    PLAIN,
    LogitRule,
    Readout,
    accumulation_dtype,
    check_head,
    no_autocast,
    operand_dtype,
)
from vlsi_cli.engine.losses.rectangles import MIB, Tiling, choose_tiling, slices

# Rows of a head that are gathered at once; a few hundred tokens' even on a GPU.
_GATHERED_BYTES = {"cpu": 8 * MIB}
_GATHERED_BYTES_ACCELERATOR = 256 * MIB
# A logit that no model gives, whose exponential is zero beside those that one does. Not infinite: a rectangle may hold
# nothing else.
_NOWHERE = -1e30


@dataclass(frozen=True)
class TopK:
    """The likeliest tokens of a large model's distributions.

    Attributes:
        indices: ``[R, k]`` int32 token ids, all below the vocabulary.
        log_probs: ``[R, k]`` their natural log-probabilities, in any float dtype.
        tail: ``[R]`` fp32, the probability of all other tokens together.
    """

    indices: Tensor
    log_probs: Tensor
    tail: Tensor

    def buckets(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """(indices as int64 ``[R, k]``, probabilities ``[R, k]``, tail ``[R]``), the latter summing to 1 a token.

        Stored log-probabilities are rounded; divided by their sum they are a distribution again, so that the
        divergence cannot fall below 0.
        """
        top, tail = self.log_probs.to(dtype).exp(), self.tail.to(dtype)
        total = top.sum(-1) + tail
        return self.indices.long(), top / total[:, None], tail / total

    def __getitem__(self, tokens: slice) -> TopK:
        return TopK(self.indices[tokens], self.log_probs[tokens], self.tail[tokens])


@torch.no_grad()
def top_k_of(
    x: Tensor,
    weight: Tensor,
    *,
    vocabulary: int,
    k: int,
    rule: LogitRule = PLAIN,
    tile_tokens: int | None = None,
) -> TopK:
    """The ``k`` likeliest tokens behind a head, and the mass of the rest.

    The mass is summed over the rest itself: one minus the k probabilities would lose a small one.

    Args:
        x: ``[R, H]`` states entering the head.
        weight: ``[>= vocabulary, H]``.
        vocabulary: rows of the head that are tokens.
        k: 1 .. vocabulary - 1.
        rule: what the model does to its logits.
        tile_tokens: tokens a block; None chooses by a memory budget.

    Returns:
        Log-probabilities in fp32 (fp64 when everything is fp64).
    """
    check_head("top_k_of", x, weight, vocabulary)
    if not 0 < k < vocabulary:
        raise ValueError(f"top_k_of: k must lie in 1..{vocabulary - 1}, not {k}")
    readout = _readout(x, weight, vocabulary, rule)
    tiling = _tiling(readout, tile_tokens)
    found = [_empty(k, readout)]
    with no_autocast(x.device):
        for block in tiling.blocks(len(x)):
            z, log_sums = _normalised(readout.part(block), tiling)
            top, indices = z.topk(k, dim=-1)
            tail = z.scatter_(-1, indices, _NOWHERE).sub_(log_sums[:, None]).exp_().sum(-1)
            found.append(TopK(indices.int(), top - log_sums[:, None], tail))
    return TopK(
        torch.cat([each.indices for each in found]),
        torch.cat([each.log_probs for each in found]),
        torch.cat([each.tail for each in found]),
    )


def top_k_divergence(
    x_s: Tensor,
    weight_s: Tensor,
    large: TopK,
    *,
    vocabulary: int,
    rule_s: LogitRule = PLAIN,
    tile_tokens: int | None = None,
) -> Tensor:
    """Forward KL(large || small) over the k tokens and the bucket of the others, ``[R]``, in nats.

    With p of the large model, t its tail mass, q of the small model and Q its mass on the large one's tail, the
    value is ``sum_i p_i log(p_i / q_i) + t log(t / Q)`` and its gradient by the small model's logits is
    ``q_i - p_i`` on the k tokens and ``q_j (1 - t / Q)`` on the others.

    Args:
        x_s: ``[R, H_s]`` states entering the small model's head. The gradient flows here.
        weight_s: ``[>= vocabulary, H_s]``, frozen.
        large: what is known of the large model.
        vocabulary: rows of the head that are tokens.
        rule_s: what the small model does to its logits; the large one's is in its log-probabilities.
        tile_tokens: tokens a block; None chooses by a memory budget.
    """
    check_head("top_k_divergence", x_s, weight_s, vocabulary)
    if x_s.shape[0] != large.tail.shape[0]:
        raise ValueError(
            f"top_k_divergence: {x_s.shape[0]} small states against {large.tail.shape[0]} large ones"
        )
    if weight_s.requires_grad:
        raise ValueError("top_k_divergence: the head must be frozen; there is no gradient for it")
    readout = _readout(x_s, weight_s, vocabulary, rule_s)
    tiling = _tiling(readout, tile_tokens)
    want = torch.is_grad_enabled() and x_s.requires_grad
    with torch.no_grad(), no_autocast(x_s.device):
        losses = torch.empty(len(x_s), dtype=readout.dtype, device=x_s.device)
        grad = losses.new_zeros(x_s.shape) if want else None
        for block in tiling.blocks(len(x_s)):
            into = grad[block] if grad is not None else None
            losses[block] = _block(readout.part(block), tiling, large[block], into)
        if grad is not None and readout.gain != 1.0:
            grad.mul_(readout.gain)
    return losses if grad is None else with_gradient(x_s, losses, grad)


def _block(readout: Readout, tiling: Tiling, large: TopK, grad: Tensor | None) -> Tensor:
    """``[t]`` losses of a block; ``grad [t, H]``, zeros, is filled, all but the constant gain.

    The tail's part of the gradient is ``(Q - t)`` times the mean of the head's rows over the small model's distribution
    inside the tail. Each part vanishes by itself as the small model nears the large one, so that products of halves
    lose nothing by cancelling.
    """
    indices, p, t = large.buckets(readout.dtype)
    z = _rows(readout, tiling)
    top = z.gather(-1, indices)
    z.scatter_(-1, indices, _NOWHERE)
    powers = Exponentials(len(z), readout)
    for tokens, words in tiling.rectangles(*z.shape):
        tile = z[tokens, words]
        e = powers.add(tokens, tile, grad)
        if grad is not None:
            bend = readout.bend(tile)
            e = e if bend is None else e.mul_(bend.clamp_min_(0.0))  # of no logit: minus infinity
            readout.pull(e, words, grad[tokens], wide=True)
    log_rest = powers.log()
    log_sums = torch.logaddexp(log_rest, top.logsumexp(-1))
    log_q, log_rest = top - log_sums[:, None], log_rest - log_sums
    losses = (torch.special.xlogy(p, p) - p * log_q).sum(-1) + torch.special.xlogy(t, t) - t * log_rest
    if grad is not None:
        grad.mul_(((log_rest.exp() - t) / powers.total)[:, None])
        bend = readout.bend(top)
        weights = log_q.exp_().sub_(p)
        _add_rows(grad, readout, indices, weights if bend is None else weights.mul_(bend))
    return losses


def _add_rows(grad: Tensor, readout: Readout, indices: Tensor, weights: Tensor) -> None:
    """``grad [t, H] += sum_i weights [t, k] W[indices [t, k]]``, some tokens' rows at a time."""
    budget = _GATHERED_BYTES.get(grad.device.type, _GATHERED_BYTES_ACCELERATOR)
    length = max(1, budget // (indices.shape[1] * grad.shape[1] * grad.itemsize))
    for tokens in slices(len(grad), length):
        grad[tokens] += torch.bmm(weights[tokens, None], readout.gather(indices[tokens])).squeeze(1)


def _readout(x: Tensor, weight: Tensor, vocabulary: int, rule: LogitRule) -> Readout:
    dtype, operands = accumulation_dtype(x, weight), operand_dtype(weight)
    return Readout(x, weight, vocabulary, dtype=dtype, operands=operands, rule=rule)


def _tiling(readout: Readout, tile_tokens: int | None) -> Tiling:
    return choose_tiling(
        len(readout.x),
        readout.vocabulary,
        buffers=2,
        device=readout.x.device,
        dtype=readout.dtype,
        kept=1,
        tile_tokens=tile_tokens,
    )


def _rows(readout: Readout, tiling: Tiling, log_sums: Tensor | None = None) -> Tensor:
    """``[t, V]`` whole rows of logits of a block; what they add to ``log_sums [t]``, if given, is added on the way."""
    z = readout.x.new_empty(len(readout.x), readout.vocabulary, dtype=readout.dtype)
    for tokens, words in tiling.rectangles(*z.shape):
        tile = readout.logits(tokens, words, z[tokens, words])
        if log_sums is not None:
            log_sums[tokens] = bodies.with_log_sum(tile, log_sums[tokens])
    return z


def _normalised(readout: Readout, tiling: Tiling) -> tuple[Tensor, Tensor]:
    """``[t, V]`` whole rows of logits of a block, and ``[t]`` their log-normalisers."""
    log_sums = readout.x.new_full((len(readout.x),), -torch.inf, dtype=readout.dtype)
    return _rows(readout, tiling, log_sums), log_sums


def _empty(k: int, like: Readout) -> TopK:
    nothing = like.x.new_empty(0, k, dtype=like.dtype)
    return TopK(nothing.int(), nothing, nothing[:, 0])


@torch.no_grad()
def top_k_matrix(
    xs_s: Sequence[Tensor],
    weight_s: Tensor,
    larges: Sequence[TopK],
    *,
    vocabulary: int,
    mask: Tensor | None = None,
    rule_s: LogitRule = PLAIN,
    tile_tokens: int | None = None,
) -> Tensor:
    """:func:`top_k_divergence` of every small with every large layer, ``[n_small, n_large]``, summed over tokens.

    It stands where :func:`vlsi_cli.engine.losses.divergence_matrix` does. Each small layer is projected once; a
    pair costs k gathered numbers a token. The small model's tail is one minus what was gathered, so a tail
    below 1e-6 is rough here: this ranks layers, and gradients come from the pair.

    Args:
        mask: ``[n_small, n_large]`` bool; False cells are 0.
        rule_s: what the small model does to its logits.
    """
    shape = (len(xs_s), len(larges))
    cells = [[True] * shape[1]] * shape[0] if mask is None else mask.tolist()
    for x in xs_s:
        check_head("top_k_matrix", x, weight_s, vocabulary)
    readouts = [_readout(x, weight_s, vocabulary, rule_s) for x in xs_s]
    dtype, device = readouts[0].dtype, xs_s[0].device
    total = torch.zeros(shape, dtype=dtype, device=device)
    tiling = _tiling(readouts[0], tile_tokens)
    with no_autocast(device):
        for block in tiling.blocks(len(xs_s[0])):
            known = [large[block].buckets(dtype) for large in larges]
            for s, readout in enumerate(readouts):
                if not any(cells[s]):
                    continue
                z, log_sums = _normalised(readout.part(block), tiling)
                for column, (indices, p, t) in enumerate(known):
                    if not cells[s][column]:
                        continue
                    top = z.gather(-1, indices) - log_sums[:, None]
                    rest = (1 - top.exp().sum(-1)).clamp_min(torch.finfo(dtype).eps)
                    sums = (torch.special.xlogy(p, p) - p * top).sum(-1) + torch.special.xlogy(t, t / rest)
                    total[s, column] += sums.sum()
    return total
