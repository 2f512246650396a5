"""Softcaps, scales, plans and half products: every way to one loss gives what the fp64 formula gives."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from tests.unit.losses.test_losses import draw, reference
from vlsi_cli.engine.losses import LogitRule, cross_entropy, divergence, readout

KINDS = ("forward_kl", "reverse_kl", "jsd", "l2", "soft_cross_entropy")
PLANS = ("online", "kept", "recomputed")
RULES = {
    "plain": (LogitRule(), LogitRule()),
    "scaled": (LogitRule(scale=0.3), LogitRule(scale=1.7)),
    "capped": (LogitRule(softcap=2.0), LogitRule(softcap=3.0)),
    "both": (LogitRule(scale=0.5, softcap=1.5), LogitRule(scale=2.0)),
}


def ruled(z: torch.Tensor, rule: LogitRule) -> torch.Tensor:
    z = z * rule.scale
    return z if rule.softcap is None else rule.softcap * torch.tanh(z / rule.softcap)


def expected_losses(x_s, w_s, x_t, w_t, vocabulary, kind, temperature, rules):
    """The formula on logits that have been through the rules: identity heads carry them into ``reference``."""
    z_s, z_t = ruled(x_s @ w_s[:vocabulary].T, rules[0]), ruled(x_t @ w_t[:vocabulary].T, rules[1])
    eye = torch.eye(vocabulary, dtype=z_s.dtype)
    if kind != "soft_cross_entropy":
        return reference(z_s, eye, z_t, eye, vocabulary, kind, temperature)
    return -((z_t / temperature).softmax(-1) * (z_s / temperature).log_softmax(-1)).sum(-1)


def plans(kind: str) -> tuple[str, ...]:
    return PLANS if kind in ("forward_kl", "soft_cross_entropy") else PLANS[1:]


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("trained_head", [False, True])
@pytest.mark.parametrize(("kind", "plan"), [(kind, plan) for kind in KINDS for plan in plans(kind)])
def test_every_plan_is_the_formula(kind, plan, trained_head, rules):
    x_s, w_s, x_t, w_t = draw(13, 5, seed=1), draw(37, 5, seed=2), draw(13, 7, seed=3), draw(33, 7, seed=4)
    upstream, found = draw(13, seed=9), []
    for function in (
        lambda x, w: expected_losses(x, w, x_t, w_t, 31, kind, 1.5, RULES[rules]),
        lambda x, w: divergence(
            x,
            w,
            x_t,
            w_t,
            vocabulary=31,
            kind=kind,
            temperature=1.5,
            rule_s=RULES[rules][0],
            rule_t=RULES[rules][1],
            plan=plan,
            tile_tokens=5,
            tile_words=7,
        ),
    ):
        x, w = x_s.clone().requires_grad_(), w_s.clone().requires_grad_(trained_head)
        losses = function(x, w)
        (losses * upstream).sum().backward()
        found.append((losses.detach(), x.grad, w.grad))
    for want, got in zip(*found, strict=True):
        assert (want is None) == (got is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("trained_head", [False, True])
@pytest.mark.parametrize("plan", PLANS)
def test_cross_entropy_with_rules(plan, trained_head, rules):
    rule, targets, found = RULES[rules][0], torch.tensor([0, 30, 2, 2, 17]), []
    for function in (
        lambda x, w: nn.functional.cross_entropy(ruled(x @ w[:31].T, rule), targets, reduction="none"),
        lambda x, w: cross_entropy(
            x, w, targets, vocabulary=31, rule=rule, plan=plan, tile_tokens=2, tile_words=7
        ),
    ):
        x, w = draw(5, 6, seed=1).requires_grad_(), draw(37, 6, seed=2).requires_grad_(trained_head)
        losses = function(x, w)
        (losses * draw(5, seed=3)).sum().backward()
        found.append((losses.detach(), x.grad, w.grad))
    for want, got in zip(*found, strict=True):
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [0, 1])
def test_one_token_and_none(kind, tokens):
    x_t, w_s, w_t = draw(tokens, 4, seed=1), draw(9, 3, seed=2), draw(8, 4, seed=3)
    for plan in plans(kind):
        x = draw(tokens, 3, seed=4).requires_grad_()
        losses = divergence(x, w_s, x_t, w_t, vocabulary=7, kind=kind, plan=plan)
        losses.sum().backward()
        assert losses.shape == (tokens,)
        want = expected_losses(x, w_s, x_t, w_t, 7, kind, 1.0, RULES["plain"])
        torch.testing.assert_close(losses, want)
        assert x.grad.shape == (tokens, 3)


def test_a_reference_that_moves_far_changes_nothing():
    """The first tile's logits are 200 below a later tile's: sums taken so far must be scaled down, not overflow."""
    x = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    w = torch.cat([torch.linspace(-100, -90, 20), torch.linspace(90, 100, 20), torch.zeros(5)])[:, None]
    x_t = torch.tensor([[-1.0], [0.5]])
    losses = divergence(x, w, x_t, w, vocabulary=45, plan="online", tile_words=10)
    losses.sum().backward()
    exact = x.detach().double().requires_grad_()
    z_s, z_t = exact @ w.double().T, x_t.double() @ w.double().T
    want = (z_t.softmax(-1) * (z_t.log_softmax(-1) - z_s.log_softmax(-1))).sum(-1)
    want.sum().backward()
    torch.testing.assert_close(losses.double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trained_head", [False, True])
def test_half_products_as_on_an_accelerator(dtype, trained_head, monkeypatch):
    """There products run on half operands, and ``p_s - p_t`` is taken before them."""
    monkeypatch.setattr(readout, "product_dtype", lambda device, operands, accumulation: operands)
    x_s, w_s = draw(16, 32, seed=1, dtype=dtype), draw(640, 32, seed=2, dtype=dtype, scale=0.2)
    x_t, w_t = draw(16, 48, seed=3, dtype=dtype), draw(640, 48, seed=4, dtype=dtype, scale=0.2)
    x, w = x_s.clone().requires_grad_(), w_s.clone().requires_grad_(trained_head)
    losses = divergence(x, w, x_t, w_t, vocabulary=600, tile_words=128)
    (losses.sum() * 128).backward()
    exact_x, exact_w = x_s.double().requires_grad_(), w_s.double().requires_grad_()
    want = reference(exact_x, exact_w, x_t.double(), w_t.double(), 600, "forward_kl")
    (want.sum() * 128).backward()
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01  # logits of some units in 8 or 11 bits
    assert (losses.double() - want).abs().max() < tolerance
    assert (x.grad.double() - exact_x.grad).norm() < tolerance * exact_x.grad.norm()
    if trained_head:
        assert (w.grad.double() - exact_w.grad).norm() < tolerance * exact_w.grad.norm()


@pytest.mark.parametrize(
    ("kind", "sharp"), [("reverse_kl", (2, 1)), ("reverse_kl", (8, 8)), ("jsd", (4, 1)), ("l2", (4, 1))]
)
def test_a_large_loss_costs_a_half_gradient_no_digits(kind, sharp, monkeypatch):
    """Terms p_s log(p_s / p_t) and their sum times p_s are as large as the loss, their difference may be far smaller.

    Rounded to bf16 apart they left an error of 2^-9 of the loss: 2 % of the gradient in the first case, half of it in
    the third. Rounded once, the error is that of one bf16 number a term, 2^-9 = 2e-3, whatever the loss.
    """
    monkeypatch.setattr(readout, "product_dtype", lambda device, operands, accumulation: operands)
    monkeypatch.setattr(readout, "_product_of_halves", product_of_halves)
    w = draw(1500, 64, seed=1, dtype=torch.bfloat16, scale=0.4)
    x_s, x_t = (
        draw(16, 64, seed=s, dtype=torch.bfloat16, scale=size) for s, size in zip((2, 3), sharp, strict=True)
    )
    x = x_s.float().requires_grad_()  # a gradient that is not rounded again
    losses = divergence(x, w, x_t, w, vocabulary=1500, kind=kind, tile_words=256)
    losses.sum().backward()
    exact = x_s.double().requires_grad_()
    want = reference(exact, w.double(), x_t.double(), w.double(), 1500, kind)
    want.sum().backward()
    assert kind != "reverse_kl" or want.mean() > 8
    assert (losses.double() - want).abs().max() < 1e-5 * want.max()
    assert (x.grad.double() - exact.grad).norm() < 3e-3 * exact.grad.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trained_head", [False, True])
@pytest.mark.parametrize(
    ("kind", "scales"),
    [("l2", (1e-3, 1e-3)), ("l2", (2, 2)), ("l2", (20, 1e-3)), ("reverse_kl", (1e-3, 1e-3))],
    ids=["flat", "a few are likely", "peaked against flat", "flat, reverse_kl"],
)
def test_a_small_loss_costs_a_half_gradient_no_digits(kind, scales, trained_head, dtype, monkeypatch):
    """Of 4,000 words that are all about as likely L2 has terms p_s (p_s - p_t) of some 6e-11.

    fp16's smallest number is 6e-8: even times 1024 1.3 % of the gradient was lost, and more between flatter ones. The
    error that is left is that of one half-precision number a term, as it is with large losses.
    """
    monkeypatch.setattr(readout, "product_dtype", lambda device, operands, accumulation: operands)
    monkeypatch.setattr(readout, "_product_of_halves", product_of_halves)
    w_s, w_t = draw(4000, 32, seed=1, dtype=dtype), draw(4000, 32, seed=2, dtype=dtype)
    x_s, x_t = (
        draw(8, 32, seed=seed, dtype=dtype, scale=size / 32**0.5)
        for seed, size in zip((3, 4), scales, strict=True)
    )
    exact_x, exact_w = x_s.double().requires_grad_(), w_s.double().requires_grad_()
    reference(exact_x, exact_w, x_t.double(), w_t.double(), 4000, kind).sum().backward()
    factor = float(1 / exact_w.grad.abs().max())  # the head's gradient has its dtype, and must fit it
    x, w = x_s.float().requires_grad_(), w_s.clone().requires_grad_(trained_head)
    losses = divergence(x, w, x_t, w_t, vocabulary=4000, kind=kind, tile_words=1024)
    (losses.sum() * factor).backward()
    half = torch.finfo(dtype).eps / 2
    assert (x.grad.double() / factor - exact_x.grad).norm() < half * exact_x.grad.norm()
    if trained_head:  # rounded once more
        assert (w.grad.double() / factor - exact_w.grad).norm() < 2 * half * exact_w.grad.norm()


def product_of_halves(x, rows, dtype, out=None):
    """Operands in halves and sums in fp32, as a GPU has them."""
    assert x.dtype == rows.dtype
    assert x.dtype.itemsize == 2
    return torch.mm(x.to(dtype), rows.to(dtype), out=out)


@pytest.mark.parametrize("apart", [1.0, 1e-1, 1e-2, 1e-3])
def test_s_minus_q_keeps_its_digits_as_the_small_model_nears_the_large_one(apart):
    """bf16 weights and states, the same model on both sides but for ``apart``: S and Q cancel, in fp32.

    Each is right to some 1e-7 of itself, so the error of the difference is at most some 1e-6 / apart of it: at
    1e-3 about three digits are left, more than a bf16 state holds. ``recomputed`` subtracts first and keeps more.
    """
    w = draw(3000, 64, seed=1, scale=0.2, dtype=torch.bfloat16)
    x_t = draw(24, 64, seed=2, dtype=torch.bfloat16)
    x_s = x_t.float() + apart * draw(24, 64, seed=3, dtype=torch.float32)
    exact = x_s.double().requires_grad_()
    reference(exact, w.double(), x_t.double(), w.double(), 3000, "forward_kl").sum().backward()
    errors = {}
    for plan in ("online", "recomputed"):
        # fp32 operands on the small side, so that what is measured is the cancellation and not x_s in 8 bits
        x = x_s.clone().requires_grad_()
        divergence(x, w.float(), x_t.float(), w.float(), vocabulary=3000, plan=plan).sum().backward()
        errors[plan] = float((x.grad.double() - exact.grad).norm() / exact.grad.norm())
    assert errors["online"] < 3e-6 / apart
    assert errors["recomputed"] < 3e-6 / apart


def test_online_is_refused_where_it_has_no_form():
    x, w = torch.zeros(3, 4), torch.zeros(6, 4)
    with pytest.raises(ValueError, match="'online' has no form for jsd"):
        divergence(x, w, x, w, vocabulary=6, kind="jsd", plan="online")
    with pytest.raises(ValueError, match="tile_words"):
        divergence(x, w, x, w, vocabulary=6, tile_words=0)


def test_a_frozen_head_keeps_the_gradient_alone_until_backward():
    """The teacher's states may not live on in the graph."""
    x, w = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4)
    x_t, w_t = torch.randn(5, 3), torch.randn(9, 3)
    losses = divergence(x, w, x_t, w_t, vocabulary=9)
    gone = [weakref.ref(t) for t in (x_t, w_t, w)]
    del x_t, w_t, w
    gc.collect()
    assert [ref() for ref in gone] == [None, None, None]
    losses.sum().backward()


def test_a_frozen_head_gets_no_gradient_and_no_buffer_for_one():
    x, w = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4)
    losses = divergence(x, w, torch.randn(5, 3), torch.randn(9, 3), vocabulary=9)
    assert [tuple(t.shape) for t in losses.grad_fn.saved_tensors] == [(5, 4)]
    losses.sum().backward()
    assert w.grad is None
