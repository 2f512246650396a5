"""Every small layer against every large layer in one pass over the tokens: what the matching looks at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlsi_cli.engine.losses.tiles import (
    accumulation_dtype,
    check_head,
    head_rows,
    log_softmax_,
    no_autocast,
    project,
    tile_length,
    tiles,
)

# Large layers held at once. One would read every small layer's buffer once a large layer; all of them would
# take n_large buffers and leave room for too few tokens a tile.
LARGE_BLOCK = 4


@torch.no_grad()
def divergence_matrix(
    xs_s: Sequence[Tensor],
    weight_s: Tensor,
    xs_t: Sequence[Tensor],
    weight_t: Tensor,
    *,
    vocabulary: int,
    mask: Tensor | None = None,
    tile_tokens: int | None = None,
) -> Tensor:
    """Forward KL(large l || small s) for every pair of layers, summed over tokens, without gradient.

    For one token ``KL(l || s) = sum_v p_l log p_l - sum_v p_l log p_s``: the first term belongs to l
    alone, and the second couples the two in a product ``P_l [n_large, V] @ log P_s^T [V, n_small]``. So
    each layer is projected and normalised once, and all pairs together cost one small matrix product a
    token: equal to the loop over pairs within fp32 rounding, for the price of n_small + n_large
    projections.

    Args:
        xs_s: n_small tensors ``[R, H_s]``, the states entering the small model's head.
        weight_s: ``[>= vocabulary, H_s]``.
        xs_t: n_large tensors ``[R, H_t]``.
        weight_t: ``[>= vocabulary, H_t]``.
        vocabulary: the tokenizer's real length; rows beyond it are cut on both sides before the softmax.
        mask: ``[n_small, n_large]`` bool; layers without any True are not projected, and False cells are 0.
        tile_tokens: tokens a tile; None chooses by a memory budget.

    Returns:
        ``[n_small, n_large]`` fp32 (fp64 when everything is fp64): sums in nats; divide by R for the mean.
    """
    for x in xs_s:
        check_head("divergence_matrix (small)", x, weight_s, vocabulary)
    for x in xs_t:
        check_head("divergence_matrix (large)", x, weight_t, vocabulary)
    lengths = {x.shape[0] for x in (*xs_s, *xs_t)}
    if len(lengths) != 1:
        raise ValueError(
            f"divergence_matrix: every layer needs the same number of tokens, not {sorted(lengths)}"
        )
    shape = (len(xs_s), len(xs_t))
    if mask is not None and tuple(mask.shape) != shape:
        raise ValueError(f"divergence_matrix: the mask must be {list(shape)}, not {list(mask.shape)}")
    cells = [[True] * shape[1]] * shape[0] if mask is None else mask.tolist()
    small = [s for s in range(shape[0]) if any(cells[s])]
    large = [t for t in range(shape[1]) if any(row[t] for row in cells)]
    device = xs_s[0].device
    dtype = accumulation_dtype(*xs_s, weight_s, *xs_t, weight_t)
    total = torch.zeros(shape, dtype=dtype, device=device)
    if not small:
        return total

    rows_s, rows_t = head_rows(weight_s, vocabulary), head_rows(weight_t, vocabulary)
    block = min(LARGE_BLOCK, len(large))
    length = tile_length(
        vocabulary, buffers=len(small) + block + 2.5, device=device, dtype=dtype, tile_tokens=tile_tokens
    )
    length = min(length, lengths.pop())
    log_s = torch.empty(length, len(small), vocabulary, dtype=dtype, device=device)
    p_t = torch.empty(length, block, vocabulary, dtype=dtype, device=device)
    with no_autocast(device):
        for tile in tiles(xs_s[0].shape[0], length):
            count = tile.stop - tile.start
            for place, s in enumerate(small):
                logits = project(xs_s[s][tile], rows_s, dtype)
                torch.sub(logits, logits.logsumexp(-1, keepdim=True), out=log_s[:count, place])
            for first in range(0, len(large), block):
                part = large[first : first + block]
                entropies = []
                for place, t in enumerate(part):
                    log_t = log_softmax_(project(xs_t[t][tile], rows_t, dtype))
                    torch.exp(log_t, out=p_t[:count, place])
                    entropies.append(log_t.mul_(p_t[:count, place]).sum(-1))
                negative_entropy = torch.stack(entropies, 1)  # [count, part]
                coupling = torch.bmm(log_s[:count], p_t[:count, : len(part)].transpose(1, 2))
                # Subtract a token at a time: two large sums would lose the small difference between them.
                sums = (negative_entropy[:, None, :] - coupling).sum(0)  # [small, part]
                total[torch.tensor(small)[:, None], torch.tensor(part)] += sums
    if mask is not None:
        total.masked_fill_(~mask.to(device), 0)
    return total
