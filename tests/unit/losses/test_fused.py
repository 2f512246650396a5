"""Compiled losses: the values of the losses as written, one graph for all lengths, and nothing left outside a graph."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.unit.losses.test_losses import draw
from vlsi_cli.engine.losses import AllPairs, LogitRule, bodies, cross_entropy, divergence, exponentials, fused

V = 299
W_S, W_T = draw(307, 6, seed=2, dtype=torch.float32), draw(301, 9, seed=4, dtype=torch.float32)


@pytest.fixture
def compiled(monkeypatch):
    """Compile by a backend that is quick, or by torch's own; a piece that cannot be compiled is an error."""

    def by(backend):
        torch._dynamo.reset()
        found = {}

        def compile_(body):
            if body not in found:
                found[body] = torch.compile(body, dynamic=True, fullgraph=True, backend=backend)
            return found[body]

        monkeypatch.setattr(bodies, "_compiled", compile_)

    yield by
    torch._dynamo.reset()


def with_gradient(loss, tokens=33):
    x = draw(tokens, 6, seed=1, dtype=torch.float32).requires_grad_()
    losses = loss(x, draw(tokens, 9, seed=3, dtype=torch.float32))
    losses.sum().backward()
    return losses.detach(), x.grad


def of_kind(kind, plan, rule=LogitRule()):  # noqa: B008 - frozen
    return lambda x, x_t: divergence(
        x, W_S, x_t, W_T, vocabulary=V, kind=kind, plan=plan, rule_s=rule, tile_words=64, tile_tokens=20
    )


def of_words(plan):
    return lambda x, _: cross_entropy(
        x, W_S, torch.arange(len(x)) * 9 % V, vocabulary=V, plan=plan, tile_words=64, tile_tokens=20
    )


def all_pairs(x, x_t):
    pairs = AllPairs([x, 2 * x], W_S, [x_t, -x_t, x_t / 2], W_T, vocabulary=V, tile_words=64, tile_tokens=20)
    return torch.cat([pairs.loss(0, [1]), pairs.loss(1, [0, 2]), pairs.matrix.flatten()])


LOSSES = {
    **{f"{kind}-kept": of_kind(kind, "kept") for kind in ("forward_kl", "reverse_kl", "jsd", "l2")},
    "forward_kl-online": of_kind("forward_kl", "online"),
    "forward_kl-capped": of_kind("forward_kl", "recomputed", LogitRule(softcap=3.0)),
    "soft-online": of_kind("soft_cross_entropy", "online"),
    "words-kept": of_words("kept"),
    "words-online": of_words("online"),
    "all-pairs": all_pairs,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_compiled_loss_is_the_loss(compiled, name):
    expected = with_gradient(LOSSES[name])
    compiled("aot_eager")
    with fused():
        found = with_gradient(LOSSES[name])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch compiles for a CPU with a C++ compiler")
# torch's compiler imports what torch deprecates
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
def test_so_it_is_by_torchs_own_compiler(compiled):
    names = ("forward_kl-kept", "words-kept")
    expected = [with_gradient(LOSSES[name]) for name in names]
    compiled("inductor")
    with fused():
        found = [with_gradient(LOSSES[name]) for name in names]
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_lengths_do_not_compile_again(compiled):
    graphs = []

    def counting(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled(counting)
    with fused():
        for tokens in (33, 40, 7, 19, 52, 28):
            for name in ("forward_kl-kept", "words-kept", "all-pairs"):
                with_gradient(LOSSES[name], tokens)
            if tokens == 33:
                first = len(graphs)
    assert first > 0
    # one more for rectangles that are whole in memory, where the first were parts of wider ones
    assert len(graphs) <= first + 2


def test_nothing_is_compiled_outside_of_the_block(compiled):
    compiled(lambda graph, _: pytest.fail("compiled"))
    with fused(False):
        with_gradient(LOSSES["forward_kl-kept"])
    with_gradient(LOSSES["forward_kl-kept"])


@pytest.mark.parametrize("name", ["forward_kl-online", "soft-online", "words-online", "all-pairs"])
def test_an_accelerator_is_not_asked_and_finds_the_same(monkeypatch, name):
    """Logits that rise by hundreds from one rectangle to the next move every reference."""
    slope = torch.linspace(0, 40, len(W_S))[:, None]
    monkeypatch.setitem(globals(), "W_S", W_S + slope)
    monkeypatch.setitem(globals(), "W_T", W_T + slope[: len(W_T)])
    expected = with_gradient(LOSSES[name])
    monkeypatch.setattr(exponentials, "_may_ask", lambda device: False)
    found = with_gradient(LOSSES[name])
    assert all(bool(torch.isfinite(each).all()) for each in found)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
