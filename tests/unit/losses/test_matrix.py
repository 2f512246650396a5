from __future__ import annotations

import pytest
import torch

from vlsi_cli.engine.losses import (
    PLAIN,
    AllPairs,
    FeatureProjectors,
    LogitRule,
    divergence,
    divergence_matrix,
    feature_l2,
    feature_matrix,
)
from vlsi_cli.engine.losses.pairs import choose_gradient


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


GRADIENTS = ("sums", "recompute")


@pytest.mark.parametrize("drawn", [(1, [4]), (0, [0]), (2, [3, 6]), (1, [0, 1, 5])])
@pytest.mark.parametrize(
    ("rules", "temperature"),
    [
        ((PLAIN, PLAIN), 1.0),
        ((LogitRule(scale=0.5), LogitRule(softcap=2.0)), 1.0),
        ((LogitRule(scale=0.5), LogitRule(softcap=2.0)), 3.0),
    ],
)
@pytest.mark.parametrize("lengths", [{}, {"tile_tokens": 5, "tile_words": 13}])
def test_a_drawn_pair_has_the_gradient_of_its_divergence_on_both_ways(
    layers, drawn, rules, temperature, lengths
):
    xs_s, xs_t = [x.double() for x in layers[0]], [x.double() for x in layers[2]]
    w_s, w_t = layers[1].double(), layers[3].double()
    small, large = drawn
    upstream = draw(17, seed=77).double()

    def gradient(function):
        xs = [x.clone().requires_grad_() for x in xs_s]
        losses = function(xs)
        (losses * upstream).sum().backward()
        assert all(x.grad is None for s, x in enumerate(xs) if s != small)
        return losses.detach(), xs[small].grad

    asked = {"vocabulary": 101, "rule_s": rules[0], "rule_t": rules[1], "temperature": temperature}

    def loop(xs):
        return torch.stack([divergence(xs[small], w_s, xs_t[t], w_t, **asked) for t in large]).mean(0)

    expected = gradient(loop)
    for way in GRADIENTS:

        def pairs(xs, way=way):
            found = AllPairs(xs, w_s, xs_t, w_t, **asked, gradient=way, **lengths)
            assert found.gradient == way
            return found.loss(small, large)

        for want, got in zip(expected, gradient(pairs), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_in_fp32_both_ways_agree_tightly(layers):
    found = []
    for way in GRADIENTS:
        x = layers[0][1].clone().requires_grad_()
        pairs = AllPairs([layers[0][0], x], layers[1], layers[2], layers[3], vocabulary=101, gradient=way)
        pairs.loss(1, [3]).sum().backward()
        found.append(x.grad)
    assert (found[0] - found[1]).norm() < 1e-6 * found[1].norm()


def test_a_head_that_trains_gets_its_gradient_through_the_drawn_pair(layers):
    xs_s, w_s, xs_t, w_t = layers
    found = []
    for function in (
        lambda w: AllPairs(xs_s, w, xs_t, w_t, vocabulary=101).loss(1, [2, 4]),
        lambda w: sum(divergence(xs_s[1], w, xs_t[t], w_t, vocabulary=101) for t in (2, 4)) / 2,
    ):
        w = w_s.clone().requires_grad_()
        function(w).sum().backward()
        found.append(w.grad)
    torch.testing.assert_close(found[0], found[1])


def test_pairs_outside_the_mask_are_refused_and_without_gradient_nothing_is_kept(layers):
    xs_s, w_s, xs_t, w_t = layers
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[0, :2] = mask[1, 4:] = True
    pairs = AllPairs(xs_s, w_s, xs_t, w_t, vocabulary=101, mask=mask)
    assert pairs.gradient is None
    assert pairs.loss(1, [4, 5]).sum().item() == pytest.approx(float(pairs.matrix[1, 4:6].mean()), rel=1e-5)
    for wrong in ((0, [2]), (2, [0]), (1, [])):
        with pytest.raises(ValueError, match="were asked for"):
            pairs.loss(*wrong)
    x = xs_s[0].clone().requires_grad_()
    with pytest.raises(ValueError, match="without a softcap"):
        AllPairs([x], w_s, xs_t, w_t, vocabulary=101, rule_s=LogitRule(softcap=5.0), gradient="sums")
    capped = AllPairs([x], w_s, xs_t, w_t, vocabulary=101, rule_s=LogitRule(softcap=5.0))
    assert capped.gradient == "recompute"


def test_the_way_is_chosen_by_products_and_memory():
    cpu = torch.device("cpu")
    usual = {"exact": True, "capped": False, "device": cpu}
    # A 2B student's 7 layers from a 7B teacher's 20 at 512 tokens: 27 x 1536 against 7 x (2 x 1536 + 3584).
    assert choose_gradient(512, 7, 20, (1536, 3584), **usual) == "sums"
    assert choose_gradient(50_000, 7, 20, (1536, 3584), **usual) == "recompute"  # 8 GiB of S and Q
    assert choose_gradient(512, 2, 80, (1536, 3584), **usual) == "recompute"
    assert choose_gradient(512, 7, 20, (1536, 3584), **(usual | {"exact": False})) == "recompute"
    assert choose_gradient(512, 7, 20, (1536, 3584), **(usual | {"capped": True})) == "recompute"


def test_no_tokens_and_one(layers):
    xs_s, w_s, xs_t, w_t = layers
    for tokens in (0, 1):
        ours = [x[:tokens].clone().requires_grad_() for x in xs_s]
        for way in GRADIENTS:
            theirs = [x[:tokens] for x in xs_t]
            pairs = AllPairs(ours, w_s, theirs, w_t, vocabulary=101, gradient=way)
            loss = pairs.loss(0, [1])
            loss.sum().backward()
            want = divergence(xs_s[0][:tokens], w_s, xs_t[1][:tokens], w_t, vocabulary=101)
            torch.testing.assert_close(loss, want)
