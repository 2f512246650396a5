"""L2 between features: the "no verbalizer head" row of the paper's Table 4d', where no words are compared.

The paper does not say how states of different width meet, nor whether the squares are summed or averaged.
Here (method choices [D]) a learned linear map without bias takes the small model's states to the large
model's width, one map a small layer, trained with the small model and dropped with the verbalizers; the
squares are averaged over the large width, so that the loss does not grow with the teacher. Give states
after each backbone's final
norm: raw residual streams hold a few coordinates a thousand times the others, which would be all that is
    learned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FeatureProjectors(nn.Module):
    """One linear map ``H_s -> H_t`` for each small layer that takes part (fp32, no bias).

    Args:
        layers: numbers of the small model's layers.
        small_size: H_s.
        large_size: H_t.
        seed: of the initial values, normal with variance ``1 / H_s`` so that the size of a coordinate is
            kept.
    """

    def __init__(self, layers: Sequence[int], small_size: int, large_size: int, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.maps = nn.ModuleDict()
        for layer in layers:
            linear = nn.utils.skip_init(nn.Linear, small_size, large_size, bias=False)
            nn.init.normal_(linear.weight, std=small_size**-0.5, generator=generator)
            self.maps[str(layer)] = linear

    def forward(self, layer: int, x: Tensor) -> Tensor:
        """``[R, H_s]`` states of small layer ``layer`` in the large model's width, ``[R, H_t]``."""
        linear = self.maps[str(layer)]
        assert isinstance(linear, nn.Linear)
        mapped: Tensor = linear(x.to(linear.weight.dtype))
        return mapped


def feature_l2(projected: Tensor, x_t: Tensor) -> Tensor:
    """Mean squared difference of every token's states, ``[R]`` fp32.

    Args:
        projected: ``[R, H_t]`` the small model's states, mapped by :class:`FeatureProjectors`.
        x_t: ``[R, H_t]`` the large model's states; gets no gradient.
    """
    if projected.shape != x_t.shape:
        raise ValueError(f"feature_l2: {list(projected.shape)} against {list(x_t.shape)}")
    dtype = torch.promote_types(projected.dtype, torch.float32)
    return (projected.to(dtype) - x_t.detach().to(dtype)).square().mean(-1)


@torch.no_grad()
def feature_matrix(
    projected: Sequence[Tensor], xs_t: Sequence[Tensor], *, mask: Tensor | None = None
) -> Tensor:
    """:func:`feature_l2` of every small with every large layer, ``[n_small, n_large]``, summed over tokens.

    It stands where :func:`vlsi_cli.engine.losses.divergence_matrix` does when features are compared.
    """
    total = torch.zeros(len(projected), len(xs_t), device=projected[0].device)
    for s, small in enumerate(projected):
        for t, large in enumerate(xs_t):
            if mask is None or bool(mask[s, t]):
                total[s, t] = feature_l2(small, large).sum()
    return total
