"""Where a small layer may look for its large layer: the search window and what it leaves reachable.

Layers are counted here as *places* among the target layers, from 0: place s of the small model's n_small,
place l of the large model's n_large. Windows are inclusive and absolute.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlsi_cli.errors import CompatibilityError


def window(
    s: int, start: int, n_small: int, n_large: int, *, search_range: bool, order_preservation: bool
) -> tuple[int, int]:
    """First and last large place that small place ``s`` may be matched with (arXiv 2412.01822, section 3.3).

    The full method searches ``start .. n_large - n_small + s``: ``start`` lies one past the previous
    match, so the order is strict, and the upper end leaves one large layer for each small layer still to
    come. The paper's listing prints these indices with two slips; this is what its figures require.

    The flags apart, for the ablation (Table 4e), are method choices [D]:

    * neither - the whole large model;
    * ``search_range`` alone - ``s .. n_large - n_small + s``: the places that an order-preserving match could
      reach, without looking at the previous match;
    * ``order_preservation`` - the full window with or without ``search_range``, since without the upper
      end an early match with the last large layer would leave nothing for the layers that follow.

    Args:
        s: the small place, from 0.
        start: one past the large place that small place ``s - 1`` took; 0 for the first.
        n_small: small target layers.
        n_large: large target layers, at least ``n_small``.
        search_range: Table 4e's "+search-range".
        order_preservation: Table 4e's "+order-preservation".
    """
    last = n_large - n_small + s
    if order_preservation:
        return start, last
    return (s, last) if search_range else (0, n_large - 1)


def reachable(
    n_small: int,
    n_large: int,
    *,
    strategy: str = "multinomial",
    search_range: bool = True,
    order_preservation: bool = True,
) -> Tensor:
    """``[n_small, n_large]`` bool on the host: the cells of the divergence matrix that a match can look at.

    All False for ``random`` and ``uniform``, which look at none: their matrix need not be computed.

    Raises:
        CompatibilityError: fewer large than small target layers.
    """
    check_counts(n_small, n_large)
    if strategy in ("random", "uniform"):
        return torch.zeros(n_small, n_large, dtype=torch.bool)
    if strategy == "bottom-k":
        return torch.ones(n_small, n_large, dtype=torch.bool)
    mask = torch.zeros(n_small, n_large, dtype=torch.bool)
    for s in range(n_small):
        first, last = window(  # order is strict from 0, so the earliest start of place s is s
            s, s, n_small, n_large, search_range=search_range, order_preservation=order_preservation
        )
        mask[s, first : last + 1] = True
    return mask


def check_counts(n_small: int, n_large: int) -> None:
    """Refuse a pair in which some small layer could have no large layer of its own."""
    if n_small > n_large:
        raise CompatibilityError(
            f"the small model has {n_small} target layers and the large one only {n_large}; "
            "every small target layer needs a large one of its own",
            hint="give the small model fewer target layers, or the large model more",
        )
