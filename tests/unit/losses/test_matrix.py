from __future__ import annotations

import pytest
import torch

from vlsi_cli.engine.losses import (
    FeatureProjectors,
    divergence,
    divergence_matrix,
    feature_l2,
    feature_matrix,
)


def draw(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.fixture
def layers():
    """3 small layers of width 6 and 7 large ones of width 8; 17 tokens, 101 words, padded heads."""
    return (
        [draw(17, 6, seed=s) for s in range(3)],
        draw(110, 6, seed=50),
        [draw(17, 8, seed=10 + t) for t in range(7)],
        draw(104, 8, seed=51),
    )


@pytest.mark.parametrize("tile_tokens", [None, 1, 5, 17])
def test_it_equals_the_loop_over_pairs(layers, tile_tokens):
    xs_s, w_s, xs_t, w_t = layers
    got = divergence_matrix(xs_s, w_s, xs_t, w_t, vocabulary=101, tile_tokens=tile_tokens)
    for s in range(3):
        for t in range(7):
            pair = divergence(xs_s[s], w_s, xs_t[t], w_t, vocabulary=101).sum()
            assert got[s, t].item() == pytest.approx(pair.item(), rel=1e-5)
    assert got.dtype == torch.float32
    assert not got.requires_grad


def test_masked_cells_are_zero_and_layers_outside_the_mask_are_never_projected(layers):
    xs_s, w_s, xs_t, w_t = layers
    full = divergence_matrix(xs_s, w_s, xs_t, w_t, vocabulary=101)
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[0, 0:3] = mask[1, 1:6] = True
    xs_s[2], xs_t[6] = torch.full_like(xs_s[2], torch.nan), torch.full_like(xs_t[6], torch.nan)
    got = divergence_matrix(xs_s, w_s, xs_t, w_t, vocabulary=101, mask=mask)
    torch.testing.assert_close(got[mask], full[mask], rtol=1e-6, atol=1e-5)
    assert torch.count_nonzero(got[~mask]) == 0
    none = divergence_matrix(xs_s, w_s, xs_t, w_t, vocabulary=101, mask=torch.zeros(3, 7, dtype=torch.bool))
    assert torch.count_nonzero(none) == 0


def test_a_layer_against_itself_is_zero_within_rounding(layers):
    _, _, xs_t, w_t = layers
    diagonal = divergence_matrix(xs_t, w_t, xs_t, w_t, vocabulary=101).diagonal() / 17
    assert diagonal.abs().max() < 2e-6


def test_bf16_heads(layers):
    xs_s, w_s, xs_t, w_t = layers
    cast = [[x.bfloat16() for x in xs_s], w_s.bfloat16(), [x.bfloat16() for x in xs_t], w_t.bfloat16()]
    got = divergence_matrix(*cast, vocabulary=101)
    assert got.dtype == torch.float32
    pair = divergence(cast[0][1], cast[1], cast[2][4], cast[3], vocabulary=101).sum()
    assert got[1, 4].item() == pytest.approx(pair.item(), rel=1e-5)


def test_wrong_shapes_are_refused(layers):
    xs_s, w_s, xs_t, w_t = layers
    with pytest.raises(ValueError, match="mask"):
        divergence_matrix(xs_s, w_s, xs_t, w_t, vocabulary=101, mask=torch.ones(7, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="same number of tokens"):
        divergence_matrix(xs_s, w_s, [x[:4] for x in xs_t], w_t, vocabulary=101)


def test_feature_l2_is_the_mean_square_over_the_width():
    a, b = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[3.0, 2.0], [1.0, 1.0]])
    assert feature_l2(a, b).tolist() == [2.0, 1.0]
    with pytest.raises(ValueError, match="feature_l2"):
        feature_l2(a, b[:1])


def test_feature_projectors_join_different_widths_and_learn_alone():
    projectors = FeatureProjectors([2, 6], 4, 10, seed=3)
    small, large = draw(5, 4, seed=1), draw(5, 10, seed=2).requires_grad_()
    feature_l2(projectors(6, small.bfloat16()), large).sum().backward()
    assert large.grad is None
    assert projectors.maps["6"].weight.grad is not None
    assert projectors.maps["2"].weight.grad is None
    again = FeatureProjectors([2, 6], 4, 10, seed=3)
    assert torch.equal(again.maps["6"].weight, projectors.maps["6"].weight)
    matrix = feature_matrix([projectors(2, small), projectors(6, small)], [large, large + 1])
    assert matrix.shape == (2, 2)
    assert matrix[1, 0].item() == pytest.approx(feature_l2(projectors(6, small), large).sum().item())
