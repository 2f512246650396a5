"""The autoregressive loss on hidden states: verbalization, reinforcement and the "CE" choices of Table 4d."""

from __future__ import annotations

from torch import Tensor

from vlsi_cli.engine.losses.tiles import accumulation_dtype, check_head, through_head, tile_length


def cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, vocabulary: int, tile_tokens: int | None = None
) -> Tensor:
    """``-log p(target)`` of every token, in nats, through a language head (arXiv 2412.01822, section 3.2).

    Args:
        x: ``[R, H]`` states entering the head, after the final norm. Any float dtype; the softmax is fp32
            (fp64 when everything is fp64).
        weight: ``[>= vocabulary, H]`` head. Receives a gradient of its full shape when it requires one; rows
            from ``vocabulary`` on are padding, take no part in the softmax and get zeros.
        targets: ``[R]`` token ids, already shifted; each below ``vocabulary``.
        vocabulary: the tokenizer's real length.
        tile_tokens: tokens a tile; None chooses by a memory budget.

    Returns:
        ``[R]`` fp32: one value a token. Dividing by a count of tokens is the caller's.
    """
    check_head("cross_entropy", x, weight, vocabulary)
    if targets.shape != x.shape[:1]:
        raise ValueError(f"cross_entropy: targets must be [{x.shape[0]}], not {list(targets.shape)}")

    def kernel(tile: slice, logits: Tensor, want: bool) -> tuple[Tensor, Tensor | None]:
        index = targets[tile, None]
        normalizer = logits.logsumexp(-1, keepdim=True)
        losses = (normalizer - logits.gather(1, index)).squeeze(1)
        if not want:
            return losses, None
        grad = logits.sub_(normalizer).exp_()
        return losses, grad.scatter_add_(1, index, grad.new_full(index.shape, -1.0))

    dtype = accumulation_dtype(x, weight)
    length = tile_length(vocabulary, buffers=2.5, device=x.device, dtype=dtype, tile_tokens=tile_tokens)
    return through_head(x, weight, kernel, vocabulary=vocabulary, length=length)
