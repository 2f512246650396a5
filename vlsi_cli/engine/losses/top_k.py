"""Divergence from a large model of which only the k likeliest tokens are known, and the mass of all the others.

A cache of whole distributions would be ``4 V`` bytes a token and layer; of the k likeliest tokens it is
``6 k + 4``. The other tokens are one bucket: the loss is the KL divergence between two distributions over
``k + 1`` outcomes, the k tokens and "anything else". By the data-processing inequality it never exceeds the
divergence over the vocabulary, and what it lacks is exactly

    tail mass x KL(large's distribution inside the tail || small's distribution inside the tail):

how the small model shapes its tail is left to itself. Dimension names are those of ``losses.tiles``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlsi_cli.engine.losses.readout import (
    PLAIN,
    LogitRule,
    accumulation_dtype,
    check_head,
    no_autocast,
)
from vlsi_cli.engine.losses.tiles import (
    head_rows,
    log_softmax_,
    project,
    through_head,
    tile_length,
    tiles,
)


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
        tile_tokens: tokens a tile; None chooses by a memory budget.

    Returns:
        Log-probabilities in fp32 (fp64 when everything is fp64).
    """
    check_head("top_k_of", x, weight, vocabulary)
    if not 0 < k < vocabulary:
        raise ValueError(f"top_k_of: k must lie in 1..{vocabulary - 1}, not {k}")
    dtype = accumulation_dtype(x, weight)
    rows = head_rows(weight, vocabulary)
    length = tile_length(vocabulary, buffers=3, device=x.device, dtype=dtype, tile_tokens=tile_tokens)
    found: list[TopK] = []
    with no_autocast(x.device):
        for tile in tiles(x.shape[0], length):
            log_p = log_softmax_(project(x[tile], rows, dtype, rule=rule))
            top, indices = log_p.topk(k, dim=-1)
            tail = log_p.exp_().scatter_(-1, indices, 0.0).sum(-1)
            found.append(TopK(indices.int(), top, tail))
    if not found:
        empty = torch.empty(0, k, dtype=dtype, device=x.device)
        return TopK(empty.int(), empty, empty[:, 0])
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
        weight_s: ``[>= vocabulary, H_s]``; gets a gradient only when it requires one.
        large: what is known of the large model.
        vocabulary: rows of the head that are tokens.
        rule_s: what the small model does to its logits; the large one's is in its log-probabilities.
        tile_tokens: tokens a tile; None chooses by a memory budget.
    """
    check_head("top_k_divergence", x_s, weight_s, vocabulary)
    if x_s.shape[0] != large.tail.shape[0]:
        raise ValueError(
            f"top_k_divergence: {x_s.shape[0]} small states against {large.tail.shape[0]} large ones"
        )
    dtype = accumulation_dtype(x_s, weight_s)

    def kernel(tile: slice, logits: Tensor, want: bool) -> tuple[Tensor, Tensor | None]:
        indices, p, t = large[tile].buckets(logits.dtype)
        log_q = log_softmax_(logits)
        top = log_q.gather(-1, indices)
        losses = torch.special.xlogy(p, p).sum(-1) - (p * top).sum(-1)
        q = log_q.exp_().scatter_(-1, indices, 0.0)
        rest = q.sum(-1).clamp_min(torch.finfo(q.dtype).tiny)
        losses = losses + torch.special.xlogy(t, t / rest)
        if not want:
            return losses, None
        return losses, q.mul_((1 - t / rest)[:, None]).scatter_(-1, indices, top.exp() - p)

    buffers = 3 if rule_s.softcap is None else 4
    length = tile_length(vocabulary, buffers=buffers, device=x_s.device, dtype=dtype, tile_tokens=tile_tokens)
    return through_head(x_s, weight_s, kernel, vocabulary=vocabulary, length=length, rule=rule_s)


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
    dtype = accumulation_dtype(*xs_s, weight_s)
    device = xs_s[0].device
    total = torch.zeros(shape, dtype=dtype, device=device)
    rows = head_rows(weight_s, vocabulary)
    length = tile_length(vocabulary, buffers=3, device=device, dtype=dtype, tile_tokens=tile_tokens)
    with no_autocast(device):
        for tile in tiles(xs_s[0].shape[0], length):
            known = [large[tile].buckets(dtype) for large in larges]
            for s, x in enumerate(xs_s):
                if not any(cells[s]):
                    continue
                check_head("top_k_matrix", x, weight_s, vocabulary)
                log_q = log_softmax_(project(x[tile], rows, dtype, rule=rule_s))
                for column, (indices, p, t) in enumerate(known):
                    if not cells[s][column]:
                        continue
                    top = log_q.gather(-1, indices)
                    rest = (1 - top.exp().sum(-1)).clamp_min(torch.finfo(dtype).eps)
                    sums = (torch.special.xlogy(p, p) - p * top).sum(-1) + torch.special.xlogy(t, t / rest)
                    total[s, column] += sums.sum()
    return total
