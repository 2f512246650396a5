from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vlsi_cli.engine.losses import cross_entropy, divergence, readout

KINDS = ("forward_kl", "reverse_kl", "jsd", "l2")


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> torch.Tensor:
    return (
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    ).to(dtype)


def reference(x_s, w_s, x_t, w_t, vocabulary, kind, temperature=1.0):
    """The textbook formula with whole [R, V] tensors in fp64 and autograd's own gradients."""
    z_s = (x_s @ w_s[:vocabulary].T) / temperature
    z_t = (x_t @ w_t[:vocabulary].T) / temperature
    p_s, p_t = z_s.softmax(-1), z_t.softmax(-1)
    if kind == "forward_kl":
        return (p_t * (p_t / p_s).log()).sum(-1)
    if kind == "reverse_kl":
        return (p_s * (p_s / p_t).log()).sum(-1)
    if kind == "jsd":
        m = (p_s + p_t) / 2
        return ((p_s * (p_s / m).log()).sum(-1) + (p_t * (p_t / m).log()).sum(-1)) / 2
    return (p_s - p_t).pow(2).sum(-1)


@pytest.fixture
def pair():
    """13 tokens, 31 real words, heads of 37 and 33 rows, widths 5 and 7."""
    return draw(13, 5, seed=1), draw(37, 5, seed=2), draw(13, 7, seed=3), draw(33, 7, seed=4)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trained_head", [False, True])
def test_divergence_and_gradients_match_the_fp64_reference(pair, kind, temperature, trained_head):
    x_s, w_s, x_t, w_t = pair
    upstream = draw(13, seed=9)
    grads = []
    for function in (reference, lambda *a: divergence(*a[:4], vocabulary=a[4], kind=a[5], temperature=a[6])):
        x, w = x_s.clone().requires_grad_(), w_s.clone().requires_grad_(trained_head)
        losses = function(x, w, x_t, w_t, 31, kind, temperature)
        (losses * upstream).sum().backward()
        grads.append((losses.detach(), x.grad, w.grad))
    for expected, got in zip(*grads, strict=True):
        if expected is not None:
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
        else:
            assert got is None
    if trained_head:
        assert torch.count_nonzero(grads[1][2][31:]) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trained_head", [False, True])
def test_divergence_gradcheck(kind, trained_head):
    x_s, w_s = draw(4, 3, seed=1).requires_grad_(), draw(9, 3, seed=2).requires_grad_(trained_head)
    x_t, w_t = draw(4, 2, seed=3), draw(8, 2, seed=4)
    assert torch.autograd.gradcheck(
        lambda x, w: divergence(x, w, x_t, w_t, vocabulary=7, kind=kind, temperature=1.5, tile_tokens=3),
        (x_s, w_s),
    )


@pytest.mark.parametrize("trained_head", [False, True])
def test_cross_entropy_gradcheck_and_reference(trained_head):
    x, w = draw(5, 3, seed=1).requires_grad_(), draw(9, 3, seed=2).requires_grad_(trained_head)
    targets = torch.tensor([0, 6, 2, 2, 5])
    expected = nn.functional.cross_entropy(x @ w[:7].T, targets, reduction="none")
    torch.testing.assert_close(cross_entropy(x, w, targets, vocabulary=7), expected)
    assert torch.autograd.gradcheck(
        lambda x, w: cross_entropy(x, w, targets, vocabulary=7, tile_tokens=2), (x, w)
    )


def test_a_head_wider_than_the_vocabulary_gets_its_full_gradient_with_zero_padding_rows():
    x, w = draw(6, 4, seed=1, dtype=torch.float32), draw(12, 4, seed=2, dtype=torch.float32).requires_grad_()
    targets = torch.tensor([0, 1, 2, 3, 8, 8])
    cross_entropy(x, w, targets, vocabulary=9).sum().backward()
    assert w.grad.shape == (12, 4)
    assert torch.count_nonzero(w.grad[9:]) == 0
    assert bool(w.grad[:9].abs().sum(1).gt(0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_does_not_diverge_from_itself(kind):
    x = draw(11, 6, seed=1, dtype=torch.float32, scale=3).requires_grad_()
    w = draw(50, 6, seed=2, dtype=torch.float32)
    losses = divergence(x, w, x.detach(), w, vocabulary=50, kind=kind)
    losses.sum().backward()
    # Rounding of log-probabilities near -20 in fp32 is 2e-6; the KLs add the rounding of 50 products.
    assert losses.abs().max() < 1e-5
    assert x.grad.abs().max() < 1e-5


@pytest.mark.parametrize("trained_head", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_generalized_jsd(pair, beta, trained_head):
    """The formula of GKD; at its ends the KLs themselves."""
    x_s, w_s, x_t, w_t = pair
    upstream, found = draw(13, seed=9), []

    def formula(x, w):
        p_s, p_t = (x @ w[:31].T).softmax(-1), (x_t @ w_t[:31].T).softmax(-1)
        m = beta * p_t + (1 - beta) * p_s
        ends = {0.0: (p_t * (p_t / p_s).log()).sum(-1), 1.0: (p_s * (p_s / p_t).log()).sum(-1)}
        inner = beta * (p_t * (p_t / m).log()).sum(-1) + (1 - beta) * (p_s * (p_s / m).log()).sum(-1)
        return ends.get(beta, inner)

    for function in (
        formula,
        lambda x, w: divergence(
            x, w, x_t, w_t, vocabulary=31, kind="jsd", beta=beta, tile_tokens=5, tile_words=7
        ),
    ):
        x, w = x_s.clone().requires_grad_(), w_s.clone().requires_grad_(trained_head)
        losses = function(x, w)
        (losses * upstream).sum().backward()
        found.append((losses.detach(), x.grad, w.grad))
    for want, got in zip(*found, strict=True):
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_one_value_by_hand():
    # Large says (3/4, 1/4), small (1/2, 1/2): KL = 3/4 ln 3/2 + 1/4 ln 1/2; dz = p_s - p_t = (-1/4, 1/4).
    w = torch.tensor([[1.0], [0.0]])
    x_s, x_t = torch.tensor([[0.0]], requires_grad=True), torch.tensor([[math.log(3.0)]])
    losses = divergence(x_s, w, x_t, w, vocabulary=2)
    assert losses.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)
    losses.sum().backward()
    assert x_s.grad.item() == pytest.approx(-0.25, abs=1e-6)
    reverse = divergence(x_s, w, x_t, w, vocabulary=2, kind="reverse_kl")
    assert reverse.item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2), abs=1e-6)
    assert divergence(x_s, w, x_t, w, vocabulary=2, kind="l2").item() == pytest.approx(0.125, abs=1e-6)
    hot = divergence(x_s, w, x_t, w, vocabulary=2, temperature=2.0)
    p = math.sqrt(3) / (1 + math.sqrt(3))
    assert hot.item() == pytest.approx(p * math.log(2 * p) + (1 - p) * math.log(2 - 2 * p), abs=1e-6)
    assert cross_entropy(x_t, w, torch.tensor([1]), vocabulary=2).item() == pytest.approx(
        math.log(4), abs=1e-6
    )


@pytest.mark.parametrize("small_is_wider", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_rows_of_garbage_do_not_matter_in_either_direction(kind, small_is_wider):
    x_s, x_t = draw(7, 5, seed=1, dtype=torch.float32), draw(7, 6, seed=2, dtype=torch.float32)
    w_s, w_t = draw(20, 5, seed=3, dtype=torch.float32), draw(20, 6, seed=4, dtype=torch.float32)
    plain = divergence(x_s, w_s, x_t, w_t, vocabulary=20, kind=kind)
    if small_is_wider:
        w_s = torch.cat([w_s, draw(9, 5, seed=5, dtype=torch.float32, scale=1e4)])
    else:
        w_t = torch.cat([w_t, draw(9, 6, seed=5, dtype=torch.float32, scale=1e4)])
    assert torch.equal(divergence(x_s, w_s, x_t, w_t, vocabulary=20, kind=kind), plain)


@pytest.mark.parametrize("trained_head", [False, True])
@pytest.mark.parametrize("length", [1, 5, 13, 100])
def test_tiles_of_any_length_agree(pair, length, trained_head):
    results = []
    for tile_tokens in (None, length):
        x = pair[0].clone().requires_grad_()
        w = pair[1].clone().requires_grad_(trained_head)
        targets = torch.arange(13)
        losses = [divergence(x, w, *pair[2:], vocabulary=31, kind=k, tile_tokens=tile_tokens) for k in KINDS]
        losses.append(cross_entropy(x, w, targets, vocabulary=31, tile_tokens=tile_tokens))
        torch.stack(losses).sum().backward()
        results.append([torch.stack(losses).detach(), x.grad, w.grad])
    for a, b in zip(*results, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_the_small_states_only_get_a_gradient():
    tensors = [draw(3, 4, seed=i, dtype=torch.float32).requires_grad_() for i in range(4)]
    x_s, w_s, x_t, w_t = tensors
    divergence(x_s, w_s.detach(), x_t, w_t, vocabulary=3).sum().backward()
    assert x_s.grad is not None
    assert w_s.grad is None
    assert x_t.grad is None
    assert w_t.grad is None
    with torch.no_grad():
        assert not divergence(x_s, w_s, x_t, w_t, vocabulary=3).requires_grad


def test_inputs_are_left_as_they_were(pair):
    before = [t.clone() for t in pair]
    x, w = pair[0].requires_grad_(), pair[1].requires_grad_()
    for kind in KINDS:
        divergence(x, w, *pair[2:], vocabulary=31, kind=kind).sum().backward()
    for a, b in zip(before, pair, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trained_head", [False, True])
def test_half_precision_follows_the_reference(dtype, trained_head):
    x_s, w_s = draw(16, 32, seed=1, dtype=dtype), draw(64, 32, seed=2, dtype=dtype, scale=0.2)
    x_t, w_t = draw(16, 48, seed=3, dtype=dtype), draw(64, 48, seed=4, dtype=dtype, scale=0.2)
    targets = torch.arange(16)
    a, b = x_s.clone().requires_grad_(), w_s.clone().requires_grad_(trained_head)
    losses = divergence(a, b, x_t, w_t, vocabulary=60) + cross_entropy(a, b, targets, vocabulary=60)
    assert losses.dtype == torch.float32
    losses.sum().backward()
    c, d = x_s.double().requires_grad_(), w_s.double().requires_grad_()
    expected = reference(c, d, x_t.double(), w_t.double(), 60, "forward_kl")
    expected = expected + nn.functional.cross_entropy(c @ d[:60].T, targets, reduction="none")
    expected.sum().backward()
    # Logits of a few units rounded to 8 (bf16) or 11 (fp16) bits.
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01
    assert (losses.double() - expected).abs().max() < tolerance
    assert a.grad.dtype == dtype
    assert (a.grad.double() - c.grad).norm() / c.grad.norm() < tolerance
    if trained_head:
        assert b.grad.dtype == dtype
        assert (b.grad.double() - d.grad).norm() / d.grad.norm() < tolerance


def test_an_fp16_gradient_survives_a_large_loss_scale_and_a_long_tail():
    x = draw(4, 8, seed=1, dtype=torch.float16).requires_grad_()
    w = draw(20000, 8, seed=2, scale=0.05, dtype=torch.float16).requires_grad_()
    targets = torch.arange(4)
    (cross_entropy(x, w, targets, vocabulary=20000).sum() * 128).backward()
    c, d = x.detach().double().requires_grad_(), w.detach().double().requires_grad_()
    (nn.functional.cross_entropy(c @ d.T, targets, reduction="sum") * 128).backward()
    assert (x.grad.double() - c.grad).norm() / c.grad.norm() < 0.01
    # Every probability is some 5e-5: unscaled, most would have 4 bits left in fp16.
    tail = slice(100, None)
    assert (w.grad.double() - d.grad)[tail].norm() / d.grad[tail].norm() < 0.01


@pytest.mark.parametrize("trained_head", [False, True])
def test_an_fp16_gradient_of_the_reverse_kl_does_not_overflow(monkeypatch, trained_head):
    """Terms p_s log(p_s / p_t) far above 64, which fp16 cannot hold once they are scaled against its underflow.

    Products run on fp16 operands and leave in fp32, as a GPU's do; a CPU has no such product of its own.
    """
    monkeypatch.setattr(readout, "product_dtype", lambda device, operands, accumulation: operands)

    def product(x, rows, dtype, out=None):
        assert torch.float16 == x.dtype == rows.dtype
        return torch.mm(x.to(dtype), rows.to(dtype), out=out)

    monkeypatch.setattr(readout, "_product_of_halves", product)
    x_s, w_s = draw(6, 16, seed=1, dtype=torch.float16), draw(50, 16, seed=2, dtype=torch.float16)
    x_t, w_t = 16 * draw(6, 16, seed=3, dtype=torch.float16), draw(50, 16, seed=4, dtype=torch.float16)
    a, b = x_s.clone().requires_grad_(), w_s.clone().requires_grad_(trained_head)
    losses = divergence(a, b, x_t, w_t, vocabulary=50, kind="reverse_kl")
    losses.sum().backward()
    c, d = x_s.double().requires_grad_(), w_s.double().requires_grad_()
    expected = reference(c, d, x_t.double(), w_t.double(), 50, "reverse_kl")
    expected.sum().backward()
    p_s = (x_s.double() @ w_s.double().T).log_softmax(-1)
    terms = p_s.exp() * (p_s - (x_t.double() @ w_t.double().T).log_softmax(-1))
    assert terms.max() > 66
    assert (losses.double() - expected).abs().max() / expected.max() < 1e-3
    # Each term is rounded to 11 bits, once.
    assert (a.grad.double() - c.grad).norm() / c.grad.norm() < 5e-4
    if trained_head:
        assert (b.grad.double() - d.grad).norm() / d.grad.norm() < 5e-4


@pytest.mark.parametrize("trained_head", [False, True])
def test_under_autocast_the_projection_is_bf16_and_the_softmax_fp32(trained_head):
    x, w = draw(9, 16, seed=1, dtype=torch.float32), draw(40, 16, seed=2, dtype=torch.float32)
    targets = torch.arange(9)

    def run(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, w = x.clone().requires_grad_(), w.clone().requires_grad_(trained_head)
        losses = cross_entropy(x, w, targets, vocabulary=40)
        losses.sum().backward()
        return losses.detach(), x.grad, w.grad

    plain = run(x.bfloat16(), w.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run(x, w)
    assert torch.equal(plain[0], cast[0])
    assert cast[1].dtype == torch.float32
    torch.testing.assert_close(plain[1].float(), cast[1], rtol=0.02, atol=0.01)
    if trained_head:
        assert cast[2].dtype == torch.float32
        torch.testing.assert_close(plain[2].float(), cast[2], rtol=0.02, atol=0.01)


@pytest.mark.parametrize("trained_head", [False, True])
def test_no_tokens_at_all(trained_head):
    x, w = torch.zeros(0, 4, requires_grad=True), torch.ones(6, 4, requires_grad=trained_head)
    losses = cross_entropy(x, w, torch.zeros(0, dtype=torch.long), vocabulary=6)
    losses = losses + divergence(x, w, torch.zeros(0, 4), torch.ones(6, 4), vocabulary=6)
    losses.sum().backward()
    assert losses.shape == (0,)
    assert x.grad.shape == (0, 4)
    assert not trained_head or torch.count_nonzero(w.grad) == 0


def test_shapes_that_would_broadcast_are_refused():
    x, w = torch.zeros(3, 4), torch.zeros(6, 4)
    with pytest.raises(ValueError, match="targets must be"):
        cross_entropy(x, w, torch.zeros(3, 1, dtype=torch.long), vocabulary=6)
    with pytest.raises(ValueError, match="does not fit a head of 6 rows"):
        cross_entropy(x, w, torch.zeros(3, dtype=torch.long), vocabulary=7)
    with pytest.raises(ValueError, match="3 small states against 1"):
        divergence(x, w, torch.zeros(1, 4), w, vocabulary=6)
    with pytest.raises(ValueError, match="no kind 'kl'"):
        divergence(x, w, x, w, vocabulary=6, kind="kl")
    with pytest.raises(ValueError, match="temperature"):
        divergence(x, w, x, w, vocabulary=6, temperature=0.0)
    with pytest.raises(ValueError, match="tile_tokens"):
        divergence(x, w, x, w, vocabulary=6, tile_tokens=0)
