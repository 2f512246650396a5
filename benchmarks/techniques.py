"""The problem that benchmarks/losses.py measures, and every way of solving it. Imports peers only when asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlsi_cli.engine.losses import AllPairs, divergence, divergence_matrix, fused

#: Rectangle (tokens, words) of the bare products: what the products alone are fastest at. On a CPU that is measured,
#: among 512 x 512 .. 512 x 2048; on a GPU it is the whole problem as far as 2.5 GB of bf16 hold it.
BARE = {"cpu": (512, 2048), "cuda": (8192, 151_936)}
#: Tokens whose gradient is checked against fp64.
CHECKED = 4


class CannotRun(Exception):
    """A technique that has no way to run here; the message says why."""


@dataclass
class Problem:
    """States and heads of a small and a large model, of one dtype, heads frozen."""

    x_s: list[Tensor]
    x_t: list[Tensor]
    w_s: Tensor
    w_t: Tensor
    vocabulary: int

    @classmethod
    def draw(
        cls,
        tokens: int,
        hidden: list[int],
        rows: list[int],
        vocabulary: int,
        layers: list[int] | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> Problem:
        """Random states; logits of standard deviation 2, so that the distributions have some few likely words."""
        kind = {"device": device, "dtype": getattr(torch, dtype)}
        states = [
            [torch.randn(tokens, h, **kind) for _ in range(n)]
            for n, h in zip(layers or [1, 1], hidden, strict=True)
        ]
        heads = [head(count, h, **kind) for count, h in zip(rows, hidden, strict=True)]
        for x in states[0]:
            x.requires_grad_()
        return cls(states[0], states[1], heads[0], heads[1], vocabulary)

    def bare_pair(self, tokens: int | None) -> None:
        """The three products that no exact loss with a frozen head can do without."""
        self._products([self.x_s[0].detach()[:tokens]], [self.x_t[0][:tokens]], back=True)

    def bare_layers(self, tokens: int | None) -> None:
        """The projections of all layers."""
        self._products([x.detach()[:tokens] for x in self.x_s], [x[:tokens] for x in self.x_t], back=False)

    def _products(self, xs: list[Tensor], xt: list[Tensor], back: bool) -> None:
        tokens, words = BARE[self.w_s.device.type]
        store = self.w_s.new_empty(tokens * words)
        grad = torch.zeros_like(xs[0])
        for first in range(0, self.vocabulary, words):
            rows_s = self.w_s[first : min(first + words, self.vocabulary)]
            rows_t = self.w_t[first : min(first + words, self.vocabulary)]
            for start in range(0, len(xs[0]), tokens):
                part = slice(start, start + tokens)
                out = store[: len(xs[0][part]) * len(rows_s)].view(-1, len(rows_s))
                for x in xt:
                    torch.mm(x[part], rows_t.t(), out=out)
                for x in xs:
                    torch.mm(x[part], rows_s.t(), out=out)
                if back:
                    grad[part].addmm_(out, rows_s)

    def gradient_error(self, grad: Tensor, same_loss: bool) -> float | None:
        """Relative error of the first tokens' gradients against dense fp64; None for another loss."""
        if not same_loss:
            return None
        z = [
            chunked_logits(x[0].detach()[:CHECKED], w, self.vocabulary)
            for x, w in ((self.x_s, self.w_s), (self.x_t, self.w_t))
        ]
        z_s = z[0].requires_grad_()
        F.kl_div(z_s.log_softmax(-1), z[1].log_softmax(-1), reduction="sum", log_target=True).backward()
        exact = sum(
            z_s.grad[:, first : first + 4096] @ self.w_s[first : min(first + 4096, self.vocabulary)].double()
            for first in range(0, self.vocabulary, 4096)
        )
        return float((grad[:CHECKED].double() - exact).norm() / exact.norm())


def head(rows: int, hidden: int, **kind: Any) -> Tensor:
    """``[rows, hidden]`` normal numbers; one drawn block, turned, so that hundreds of millions are made quickly."""
    block = torch.randn(2048, hidden, **kind) * (2 / math.sqrt(hidden))
    weight = torch.empty(rows, hidden, **kind)
    for place, first in enumerate(range(0, rows, 2048)):
        part = weight[first : first + 2048]
        part.copy_(block.roll(place, dims=1)[: len(part)])
    return weight


def chunked_logits(x: Tensor, weight: Tensor, vocabulary: int) -> Tensor:
    """Dense fp64 logits of a few tokens."""
    chunks = [
        x.double() @ weight[i : min(i + 4096, vocabulary)].double().t() for i in range(0, vocabulary, 4096)
    ]
    return torch.cat(chunks, dim=1)


def make(name: str, problem: Problem) -> Callable[..., Tensor]:
    """A function that runs a technique (on a few tokens when ``warm``) and gives the small states' gradient.

    Raises:
        CannotRun: the technique's package or hardware is missing.
    """
    if name.startswith("matrix"):
        return lambda warm: all_pairs(name, problem, 8 if warm else None)
    loss = pair_loss(name, problem)

    def run(warm: bool) -> Tensor:
        tokens = 8 if warm and name != "compile" else None  # what is compiled belongs to a shape
        x = problem.x_s[0].detach()[:tokens].requires_grad_()
        loss(x, problem.x_t[0][:tokens]).backward()
        assert x.grad is not None
        return x.grad

    return run


def pair_loss(name: str, problem: Problem) -> Callable[[Tensor, Tensor], Tensor]:
    """From states to the summed loss of one pair."""
    v = problem.vocabulary
    w_s, w_t = problem.w_s[:v], problem.w_t[:v]  # what a peer does not cut is cut for it
    if name == "ours-fused":
        return in_fused(pair_loss("ours", problem))
    if name.startswith("ours"):
        plan = {"ours": None, "ours-kept": "kept", "ours-recomputed": "recomputed"}[name]
        return lambda x, x_t: divergence(x, problem.w_s, x_t, problem.w_t, vocabulary=v, plan=plan).sum()
    if name in ("eager", "compile"):
        return eager(w_s, w_t) if name == "eager" else torch.compile(eager(w_s, w_t))
    if name == "top-64":
        return top_k(w_s, w_t, 64)
    if name == "trl":
        try:
            from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
        except ImportError as error:
            raise CannotRun(f"trl is not installed ({error})") from error
        return lambda x, x_t: ChunkedDivergenceFunction.apply(x, w_s, None, x_t, w_t, None, 0.0)[0].sum()
    if name == "liger":
        try:
            from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
        except ImportError as error:
            raise CannotRun(f"liger-kernel is not installed ({error})") from error
        # beta 0 is the forward KL. Its default chunk of 1024 tokens would be dense here: two chunks.
        liger = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0,
            weight_soft_loss=1.0,
            beta=0.0,
            compiled=False,
            chunk_size=max(1, len(problem.x_s[0]) // 2),
        )
        labels = torch.zeros(len(problem.x_s[0]), dtype=torch.long, device=w_s.device)
        return lambda x, x_t: liger(x, w_s, x_t, w_t, labels[: len(x)]) * len(x)
    if name == "liger-triton":
        if w_s.device.type != "cuda":
            raise CannotRun("LigerFusedLinearJSD is a Triton kernel and needs a GPU")
        return liger_triton(w_s, w_t)
    raise CannotRun(f"there is no technique '{name}'")


def in_fused(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same, compiled as a run with ``compile: true`` has it."""

    def run(*args: Any) -> Tensor:
        with fused():
            return loss(*args)

    return run


def liger_triton(w_s: Tensor, w_t: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Liger's Triton kernel; it normalises by the tokens, and here losses are sums."""
    try:
        from liger_kernel.transformers import LigerFusedLinearJSD
    except ImportError as error:
        raise CannotRun(f"liger-kernel is not installed ({error})") from error
    fused = LigerFusedLinearJSD(jsd_beta=0.0)
    return lambda x, x_t: fused(x, w_s, x_t, w_t) * len(x)


def eager(w_s: Tensor, w_t: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The textbook: dense logits of both models."""

    def loss(x: Tensor, x_t: Tensor) -> Tensor:
        log_s, log_t = F.linear(x, w_s).log_softmax(-1), F.linear(x_t, w_t).log_softmax(-1)
        return F.kl_div(log_s, log_t, reduction="sum", log_target=True)

    return loss


def top_k(w_s: Tensor, w_t: Tensor, k: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Another, cheaper loss: the KL over the large model's k likeliest words and one bucket for the others."""

    def loss(x: Tensor, x_t: Tensor) -> Tensor:
        with torch.no_grad():
            log_t = F.linear(x_t, w_t).log_softmax(-1)
            top, index = log_t.topk(k, dim=-1)
            rest = (1 - top.exp().sum(-1)).clamp_min(1e-6)
        log_s = F.linear(x, w_s).log_softmax(-1).gather(-1, index)
        rest_s = (1 - log_s.exp().sum(-1)).clamp_min(1e-6)
        return (top.exp() * (top - log_s)).sum() + (rest * (rest / rest_s).log()).sum()

    return loss


def all_pairs(name: str, problem: Problem, tokens: int | None) -> Tensor:
    """The matrix of all pairs; with ``+``, then one drawn pair a small layer with its gradient."""
    if name == "matrix+fused":
        return in_fused(all_pairs)("matrix+drawn", problem, tokens)
    v = problem.vocabulary
    x_t = [x[:tokens] for x in problem.x_t]
    if name == "matrix":
        return divergence_matrix(
            [x.detach()[:tokens] for x in problem.x_s], problem.w_s, x_t, problem.w_t, vocabulary=v
        )
    x_s = [x.detach()[:tokens].requires_grad_() for x in problem.x_s]
    way = {"matrix+sums": "sums", "matrix+recompute": "recompute", "matrix+drawn": None}[name]
    pairs = AllPairs(x_s, problem.w_s, x_t, problem.w_t, vocabulary=v, gradient=way)
    losses = [pairs.loss(s, [min(s, len(x_t) - 1)]) for s in range(len(x_s))]
    torch.stack(losses).sum().backward()
    assert x_s[0].grad is not None
    return x_s[0].grad
