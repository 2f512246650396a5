"""Every small layer against every large layer, without gradient: what the matching looks at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlsi_cli.engine.losses.pairs import AllPairs
from vlsi_cli.engine.losses.readout import PLAIN, LogitRule


@torch.no_grad()
def divergence_matrix(
    xs_s: Sequence[Tensor],
    weight_s: Tensor,
    xs_t: Sequence[Tensor],
    weight_t: Tensor,
    *,
    vocabulary: int,
    mask: Tensor | None = None,
    rule_s: LogitRule = PLAIN,
    rule_t: LogitRule = PLAIN,
    tile_tokens: int | None = None,
    tile_words: int | None = None,
) -> Tensor:
    """Forward KL(large l || small s) for every pair of layers, summed over tokens, without gradient.

    Each layer is projected and normalised once (:mod:`vlsi_cli.engine.losses.pairs` has the mathematics); where a drawn
    pair is to get a gradient, use :class:`vlsi_cli.engine.losses.AllPairs` itself.

    Args:
        xs_s: n_small tensors ``[R, H_s]``, the states entering the small model's head.
        weight_s: ``[>= vocabulary, H_s]``.
        xs_t: n_large tensors ``[R, H_t]``.
        weight_t: ``[>= vocabulary, H_t]``.
        vocabulary: the tokenizer's real length; rows beyond it are cut on both sides before the softmax.
        mask: ``[n_small, n_large]`` bool; layers without any True are not projected, and False cells are 0.
        rule_s, rule_t: what each model does to its logits (a final softcap, a scale).
        tile_tokens, tile_words: lengths of a tile; None chooses (:mod:`vlsi_cli.engine.losses.rectangles`).

    Returns:
        ``[n_small, n_large]`` fp32 (fp64 when everything is fp64): sums in nats; divide by R for the mean.
    """
    return AllPairs(
        xs_s,
        weight_s,
        xs_t,
        weight_t,
        vocabulary=vocabulary,
        mask=mask,
        rule_s=rule_s,
        rule_t=rule_t,
        tile_tokens=tile_tokens,
        tile_words=tile_words,
    ).matrix
