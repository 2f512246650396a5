"""The divergence from top-k tokens and tail mass: against its definition, its bound, and its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.unit.losses.test_losses import draw
from tests.unit.losses.test_plans import product_of_halves
from vlsi_cli.engine.losses import (
    PLAIN,
    LogitRule,
    TopK,
    divergence,
    readout,
    rectangles,
    top_k_divergence,
    top_k_matrix,
    top_k_of,
)

V, ROWS, R, H_S, H_T = 61, 64, 7, 6, 9


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States and heads of both sides in fp64; rows of the heads beyond the vocabulary are large on purpose."""
    generator = torch.Generator().manual_seed(seed)
    made = [
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((R, H_S), (ROWS, H_S), (R, H_T), (ROWS, H_T))
    ]
    for head in (made[1], made[3]):
        head[V:] = 50.0
    return made[0], made[1], made[2], made[3]


def by_definition(
    x_s: Tensor, w_s: Tensor, x_t: Tensor, w_t: Tensor, k: int, rule: LogitRule = PLAIN
) -> Tensor:
    """KL over k + 1 outcomes from whole distributions."""
    logits = [rule.scale * (x @ w[:V].T) for x, w in ((x_s, w_s), (x_t, w_t))]
    if (cap := rule.softcap) is not None:
        logits = [cap * torch.tanh(z / cap) for z in logits]
    q, p = (z.softmax(-1) for z in logits)
    top = p.topk(k).indices
    p, q = (torch.cat([d.gather(-1, top), 1 - d.gather(-1, top).sum(-1, keepdim=True)], -1) for d in (p, q))
    return (p * (p / q).log()).sum(-1)


@pytest.mark.parametrize("k", [1, 8, V - 1])
@pytest.mark.parametrize("tile", [None, 3])
def test_value_is_that_of_the_definition(k: int, tile: int | None) -> None:
    x_s, w_s, x_t, w_t = example()
    known = top_k_of(x_t, w_t, vocabulary=V, k=k, tile_tokens=tile)
    losses = top_k_divergence(x_s, w_s, known, vocabulary=V, tile_tokens=tile)
    # 1e-6: the tail is stored in fp32
    assert torch.allclose(losses, by_definition(x_s, w_s, x_t, w_t, k), atol=1e-6)


def test_a_value_by_hand() -> None:
    """Large (1/2, 1/4, 1/4), small uniform, k = 1: log(3/2)/2 + log(3/4)/2; the other tokens are one outcome."""
    x = torch.ones(1, 1, dtype=torch.float64)
    w_t = torch.tensor([[2.0], [1.0], [1.0]], dtype=torch.float64).log()
    w_s = torch.zeros(3, 1, dtype=torch.float64)
    losses = top_k_divergence(x, w_s, top_k_of(x, w_t, vocabulary=3, k=1), vocabulary=3)
    assert losses.item() == pytest.approx(0.5 * torch.tensor(1.125, dtype=torch.float64).log().item())


def test_never_above_the_whole_divergence_and_what_lacks_is_the_tails() -> None:
    x_s, w_s, x_t, w_t = example(1)
    whole = divergence(x_s, w_s, x_t, w_t, vocabulary=V)
    before = torch.zeros(R, dtype=torch.float64)
    for k in (1, 4, 16, V - 1):
        known = top_k_of(x_t, w_t, vocabulary=V, k=k)
        losses = top_k_divergence(x_s, w_s, known, vocabulary=V)
        assert bool((losses <= whole + 1e-9).all())
        assert bool((losses >= before - 1e-9).all())  # more tokens, finer buckets
        before = losses
        p, q = ((x @ w[:V].T).softmax(-1) for x, w in ((x_t, w_t), (x_s, w_s)))
        p, q = (d.scatter(-1, known.indices.long(), 0.0) for d in (p, q))
        inside = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
        shape = torch.special.xlogy(inside[0], inside[0] / inside[1].clamp_min(1e-300)).sum(-1)
        assert torch.allclose(whole - losses, p.sum(-1) * shape, atol=1e-6)


RULES = [LogitRule(), LogitRule(scale=0.6), LogitRule(scale=0.6, softcap=2.5)]


@pytest.mark.parametrize("rule", RULES, ids=["plain", "scaled", "capped"])
@pytest.mark.parametrize("k", [5, V - 2])
def test_gradients(rule: LogitRule, k: int) -> None:
    x_s, w_s, x_t, w_t = example(2)
    known = top_k_of(x_t, w_t, vocabulary=V, k=k, rule=rule)
    x_s.requires_grad_()
    losses = top_k_divergence(x_s, w_s, known, vocabulary=V, rule_s=rule, tile_tokens=2)
    (got,) = torch.autograd.grad(losses.square().sum(), x_s)
    exact = by_definition(x_s, w_s, x_t, w_t, k, rule)
    (dense,) = torch.autograd.grad(exact.square().sum(), x_s)
    values = top_k_matrix([x_s], w_s, [known], vocabulary=V, rule_s=rule)
    assert values.item() == pytest.approx(exact.sum().item(), abs=1e-6)
    assert torch.allclose(got, dense, atol=1e-6)
    assert got.norm() > 0.1


@pytest.mark.parametrize("above", [-200.0, 200.0])
def test_a_small_model_that_is_sure(above: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the tail, or of the top: fp32 has no number for the other's probability. The first rectangle is all top."""
    monkeypatch.setitem(rectangles.TILE_BYTES, "cpu", 1)
    words, k = 3 * rectangles.FEWEST_WORDS, rectangles.FEWEST_WORDS + 40
    w_s, w_t = torch.randn(2, words, H_S, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = torch.eye(1, H_S, dtype=torch.float64)  # logits are a head's first column
    w_s[:k, 0] += above
    w_t[:k, 0] += 12.0
    known = top_k_of(x, w_t, vocabulary=words, k=k)
    assert sorted(known.indices[0].tolist()) == list(range(k))
    log_q = (x.requires_grad_() @ w_s.T).log_softmax(-1)
    log_q = torch.cat([log_q.gather(-1, known.indices.long()), log_q[:, k:].logsumexp(-1, keepdim=True)], -1)
    p = torch.cat([known.log_probs.exp(), known.tail[:, None]], -1)
    exact = (p * (p.log() - log_q)).sum()
    single = x.detach().float().requires_grad_()
    loss = top_k_divergence(single, w_s.float(), known, vocabulary=words).sum()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    (got,), (wanted,) = torch.autograd.grad(loss, single), torch.autograd.grad(exact, x)
    assert torch.allclose(got.double(), wanted, rtol=1e-4, atol=1e-4)  # of rows of some 200


def test_the_matrix_is_the_loop_over_pairs() -> None:
    x_s, w_s, x_t, w_t = example(3)
    smalls, larges = [x_s, 2 * x_s], [top_k_of(s * x_t, w_t, vocabulary=V, k=5) for s in (0.5, 1.0, 2.0)]
    mask = torch.tensor([[True, False, True], [False, True, True]])
    matrix = top_k_matrix(smalls, w_s, larges, vocabulary=V, mask=mask, tile_tokens=3)
    for s, small in enumerate(smalls):
        for t, large in enumerate(larges):
            pair = top_k_divergence(small, w_s, large, vocabulary=V).sum()
            assert matrix[s, t].item() == pytest.approx(pair.item() if mask[s, t] else 0.0, abs=1e-6)


def test_rounded_log_probabilities_stay_a_distribution() -> None:
    """Stored in fp16 they no longer sum to one; the divergence of a model from itself must not fall below zero."""
    x, w, _, _ = example(4)
    x, w = x.float(), w.float()
    known = top_k_of(x, w, vocabulary=V, k=8)
    stored = TopK(known.indices, known.log_probs.half(), known.tail)
    assert not torch.equal(stored.log_probs.float(), known.log_probs)
    losses = top_k_divergence(x, w, stored, vocabulary=V)
    assert bool((losses > -1e-7).all())  # fp32 rounding; without the division it would be some -1e-4
    assert float(losses.max()) < 1e-5  # of the square of fp16's 5e-4


def test_wrong_sizes_are_refused() -> None:
    x_s, w_s, x_t, w_t = example()
    with pytest.raises(ValueError, match="k must lie in"):
        top_k_of(x_t, w_t, vocabulary=V, k=V)
    with pytest.raises(ValueError, match="7 small states against 3"):
        top_k_divergence(x_s, w_s, top_k_of(x_t[:3], w_t, vocabulary=V, k=2), vocabulary=V)
    with pytest.raises(ValueError, match="the head must be frozen"):
        top_k_divergence(x_s, w_s.requires_grad_(), top_k_of(x_t, w_t, vocabulary=V, k=2), vocabulary=V)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("apart", [1.0, 1e-2])
def test_half_products_lose_nothing_as_the_small_model_nears_the_large_one(
    dtype: torch.dtype, apart: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products of halves as on an accelerator: the error stays that of one half-precision number a term."""
    monkeypatch.setattr(readout, "product_dtype", lambda device, operands, accumulation: operands)
    monkeypatch.setattr(readout, "_product_of_halves", product_of_halves)
    w = draw(3000, 64, seed=1, scale=0.2, dtype=dtype)
    x_t = draw(24, 64, seed=2, dtype=dtype)
    x_s = x_t + apart * draw(24, 64, seed=3, dtype=dtype)
    known = top_k_of(x_t.double(), w.double(), vocabulary=3000, k=16)
    exact = x_s.double().requires_grad_()
    log_q = (exact @ w.double().T).log_softmax(-1)
    top = known.indices.long()
    rest = log_q.scatter(-1, top, -torch.inf).logsumexp(-1)
    wanted = -(known.log_probs.exp() * log_q.gather(-1, top)).sum(-1) - known.tail * rest
    wanted.sum().backward()
    x = x_s.float().requires_grad_()
    top_k_divergence(x, w, known, vocabulary=3000).sum().backward()
    assert x.grad is not None
    assert exact.grad is not None
    error = (x.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < (2e-3 if apart == 1 else 4e-3)
