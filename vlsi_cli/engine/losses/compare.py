"""One loss between a model's words and something else's: the walks over rectangles that give values and gradients.

Three plans, all exact and tested equal:

``online``
    One walk. Softmaxes are summed up unnormalised with a reference that moves when it must, and so are
    ``S = sum_v p_s W`` and ``Q = sum_v p_t W``, both only ``[t, H]``; the gradient of the kinds whose gradient is
    ``p_s - p_t`` is S - Q. Nothing of the width of the vocabulary exists. S and Q are two means of the same rows and
    cancel as the small model nears the large one, so products have to be fp32.
``kept``
    Two walks over blocks of tokens whose logits are kept in between: normalisers first, then ``p_s - p_t`` before its
    product. Fewest products, most memory. Kinds with another gradient take a walk more, for its correction.
``recomputed``
    The same two walks, projecting twice. Most products, no memory.

On the machine of a half-precision head (an accelerator) the choice is ``kept``; with fp32 products it is ``online`` for
the kinds that can, else ``kept`` (:meth:`Comparison.choose_plan`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vlsi_cli.engine.losses import bodies
from vlsi_cli.engine.losses.exponentials import Exponentials
from vlsi_cli.engine.losses.kinds import LINEAR, Part, locate
from vlsi_cli.engine.losses.readout import Readout
from vlsi_cli.engine.losses.rectangles import Tiling, choose_tiling, slices

Plan = Literal["online", "kept", "recomputed"]


class Found(NamedTuple):
    """What the walks give.

    Attributes:
        losses: ``[R]``.
        grad_x: ``[R, H]`` gradient of each token's loss with respect to its state; None when not wanted.
        log_sums: ``[R]`` each: log-normalisers of the small and, where there is one, of the large model.
        correction: ``[R]`` see :class:`vlsi_cli.engine.losses.kinds.Part`.
    """

    losses: Tensor
    grad_x: Tensor | None
    log_sums: tuple[Tensor, ...]
    correction: Tensor

    def block(self, tokens: slice) -> Found:
        """Views of a run of tokens."""
        grad_x = self.grad_x[tokens] if self.grad_x is not None else None
        sums = tuple(each[tokens] for each in self.log_sums)
        return Found(self.losses[tokens], grad_x, sums, self.correction[tokens])

    def add(self, tokens: slice, part: Part) -> None:
        """Add what a rectangle of these tokens contributes to the losses and to the correction."""
        self.losses[tokens] += part.value
        if part.correction is not None:
            self.correction[tokens] += part.correction


class Comparison:
    """A loss of one :class:`Readout` against another one or against given words.

    Args:
        kind: one of :data:`vlsi_cli.engine.losses.kinds.KINDS`, or ``hard`` with targets.
        small: whose states get the gradient.
        large: what it is compared with; None for ``hard``.
        targets: ``[R]`` the right words, for ``hard``.
        beta: weight of the large model in the mixture of ``jsd``, between 0 and 1.
    """

    def __init__(
        self,
        kind: str,
        small: Readout,
        large: Readout | None,
        targets: Tensor | None = None,
        *,
        beta: float = 0.5,
    ) -> None:
        self.kind, self.small, self.large, self.targets, self.beta = kind, small, large, targets, beta
        self.readouts = (small,) if large is None else (small, large)

    @property
    def linear(self) -> bool:
        """Whether the gradient is a difference of two terms that each need one model's softmax alone."""
        return self.kind == "hard" or self.kind in LINEAR

    @property
    def _wide(self) -> bool:
        """Whether terms of the gradient are of another size than probabilities.

        ``p_s log(p_s / p_t)`` has no bound, and ``p_s (p_s - p_t)`` is the smaller the more words are likely.
        """
        return self.kind in ("reverse_kl", "l2")

    def choose_plan(self) -> Plan:
        """The plan for this loss under a head that does not train; see the module."""
        return "online" if self.linear and self.small.exact else "kept"

    def tiling(self, plan: Plan, *, tile_tokens: int | None, tile_words: int | None) -> Tiling:
        """The rectangles of a walk by ``plan``."""
        return choose_tiling(
            len(self.small.x),
            self.small.vocabulary,
            buffers=2 * len(self.readouts),
            device=self.small.x.device,
            dtype=self.small.dtype,
            kept=len(self.readouts) if plan == "kept" else 0,
            tile_tokens=tile_tokens,
            tile_words=tile_words,
        )

    def run(self, plan: Plan, tiling: Tiling, *, want: bool) -> Found:
        """Values, and when wanted gradients, under a head that does not train.

        Raises:
            ValueError: ``online`` for a kind that has no such form.
        """
        if plan == "online" and not self.linear:
            raise ValueError(f"divergence: the plan 'online' has no form for {self.kind}")
        x = self.small.x
        tokens = len(x)
        zeros = torch.zeros(tokens, dtype=self.small.dtype, device=x.device)
        found = Found(
            torch.empty_like(zeros),
            zeros.new_zeros(x.shape) if want else None,
            tuple(torch.full_like(zeros, -torch.inf) for _ in self.readouts),
            zeros,
        )
        for block in tiling.blocks(tokens):
            part = self._part(block)
            (part._online if plan == "online" else part._twice)(tiling, found.block(block), plan == "kept")
        if found.grad_x is not None and self.small.gain != 1.0:
            found.grad_x.mul_(self.small.gain)
        return found

    def _part(self, tokens: slice) -> Comparison:
        large = self.large.part(tokens) if self.large is not None else None
        targets = self.targets[tokens] if self.targets is not None else None
        return Comparison(self.kind, self.small.part(tokens), large, targets, beta=self.beta)

    def _online(self, tiling: Tiling, found: Found, _: bool) -> None:
        small, large, grad = self.small, self.large, found.grad_x
        count = len(small.x)
        p_s, p_t = Exponentials(count, small), Exponentials(count, small)
        cross = torch.zeros_like(found.losses)  # sum e_t (z_t - z_s), or - sum e_t z_s
        pulled = torch.zeros_like(grad) if grad is not None and large is not None else None  # Q, unnormalised
        for tokens, words in tiling.rectangles(count, small.vocabulary):
            z_s = small.logits(tokens, words)
            bend = small.bend(z_s) if grad is not None else None
            powers = p_s.add(tokens, z_s, grad)
            if grad is not None:
                small.pull(powers if bend is None else powers.mul_(bend), words, grad[tokens])
            if large is None:
                assert self.targets is not None
                here, index = locate(self.targets[tokens], words.start, z_s.shape[1])
                cross[tokens] -= torch.where(here, z_s.gather(1, index).squeeze(1), 0.0)
                continue
            z_t = large.logits(tokens, words)
            if self.kind == "forward_kl":
                powers, terms = p_t.add_weighing(tokens, z_t, z_s, cross, pulled)
            else:
                powers = p_t.add(tokens, z_t, cross, pulled)
                terms = z_s.mul_(powers).sum(-1).neg_()
            cross[tokens] += terms
            if pulled is not None:
                small.pull(powers if bend is None else powers.mul_(bend), words, pulled[tokens])
        found.log_sums[0].copy_(p_s.log())
        losses = torch.add(cross, found.log_sums[0], out=found.losses)
        if large is not None:
            found.log_sums[1].copy_(p_t.log())
            torch.add(cross.div_(p_t.total), found.log_sums[0], out=losses)
            if self.kind == "forward_kl":
                losses.sub_(found.log_sums[1])
        if grad is not None:
            grad.div_(p_s.total[:, None])
            if pulled is not None:
                grad.sub_(pulled.div_(p_t.total[:, None]))
            else:
                self._subtract_target_rows(grad, -cross)

    def _subtract_target_rows(self, grad: Tensor, logits: Tensor) -> None:
        """``grad -= W[targets]``, bent where logits are capped (``logits [R]``, those of the targets)."""
        assert self.targets is not None
        bend = self.small.bend(logits)
        for tokens in slices(len(grad), 64):
            rows = self.small.gather(self.targets[tokens])
            grad[tokens] -= rows if bend is None else rows * bend[tokens, None]

    def _twice(self, tiling: Tiling, found: Found, keep: bool) -> None:
        count, vocabulary = len(self.small.x), self.small.vocabulary
        kept = [found.losses.new_empty(count, vocabulary) if keep else None for _ in self.readouts]
        for tokens, words in tiling.rectangles(count, vocabulary):
            for readout, store, sums in zip(self.readouts, kept, found.log_sums, strict=True):
                out = store[tokens, words] if store is not None else None
                tile = readout.logits(tokens, words, out)
                sums[tokens] = bodies.with_log_sum(tile, sums[tokens])
        grad, log_sums, dtype = found.grad_x, found.log_sums, self.small.dtype
        found.losses.zero_()
        known = grad is not None and not self.linear
        if known:
            # A correction is of the size of the loss, and the gradient may be far smaller: it is taken off in full
            # precision, before half of the digits go. A walk more over logits, and a product less.
            for tokens, words in tiling.rectangles(count, vocabulary):
                logits = self._logits(tokens, words, kept, anew=True)
                found.add(tokens, self._compare(tokens, words, logits, log_sums, False, dtype))
        for tokens, words in tiling.rectangles(count, vocabulary):
            logits = self._logits(tokens, words, kept)
            bend = self.small.bend(logits[0]) if grad is not None else None
            pulled = self.small.pulled if bend is None and self.linear else dtype
            part = self._compare(tokens, words, logits, log_sums, grad is not None, pulled)
            if not known:
                found.add(tokens, part)
            if part.first is None or grad is None:
                continue
            first = part.first
            if part.p_s is not None:
                first.sub_(part.p_s.mul_(found.correction[tokens, None]))
            self.small.pull(first if bend is None else first.mul_(bend), words, grad[tokens], wide=self._wide)

    def _logits(
        self, tokens: slice, words: slice, kept: list[Tensor | None], *, anew: bool = False
    ) -> list[Tensor]:
        """Every readout's logits of a rectangle, to be overwritten: those that are kept, or (``anew``) a copy."""
        return [
            readout.logits(tokens, words)
            if store is None
            else store[tokens, words].clone()
            if anew
            else store[tokens, words]
            for readout, store in zip(self.readouts, kept, strict=True)
        ]

    def _compare(
        self,
        tokens: slice,
        words: slice,
        logits: list[Tensor],
        log_sums: tuple[Tensor, ...],
        want: bool,
        dtype: torch.dtype,
    ) -> Part:
        """One rectangle's part of the loss from its logits, which are overwritten; its gradients in ``dtype``."""
        log = [each[tokens] for each in log_sums]
        if self.targets is not None:
            return bodies.against_words(logits[0], log[0], self.targets[tokens], words.start, want, dtype)
        return bodies.compared(self.kind, logits, log, want, self.beta, dtype)

    def train_head(
        self,
        tiling: Tiling,
        log_sums: tuple[Tensor, ...],
        correction: Tensor,
        factors: Tensor,
        scale: Tensor,
        grad_x: Tensor | None,
        grad_weight: Tensor,
    ) -> None:
        """Gradients of ``scale * sum(factors * losses)`` for the states and the head, from a finished forward pass.

        Each row of the head's gradient is summed up over all tokens in fp32 and written once, in its own dtype: no
        second buffer of the head's size.

        Args:
            tiling: the rectangles; its blocks are not used.
            log_sums, correction: of the forward pass.
            factors: ``[R]`` what comes from above, brought to at most 1.
            scale: by what it was divided for that.
            grad_x: ``[R, H]`` zeros in the accumulation dtype, filled; None when the states need none.
            grad_weight: ``[V, H]`` real rows of the head's gradient, written.
        """
        count, rows = len(self.small.x), None
        for tokens, words in tiling.rectangles(count, self.small.vocabulary):
            logits = [readout.logits(tokens, words) for readout in self.readouts]
            bend = self.small.bend(logits[0])
            part = self._compare(tokens, words, logits, log_sums, True, self.small.dtype)
            assert part.first is not None
            grad = part.first
            if part.p_s is not None:
                grad.sub_(part.p_s.mul_(correction[tokens, None]))
            grad.mul_(factors[tokens, None])
            if bend is not None:
                grad.mul_(bend)
            if grad_x is not None:
                self.small.pull(grad, words, grad_x[tokens], wide=self._wide)
            if tokens.start == 0:
                rows = grad.new_zeros(words.stop - words.start, grad_weight.shape[1])
            assert rows is not None
            self.small.pull_weight(grad, tokens, rows, wide=self._wide)
            if tokens.stop == count:
                grad_weight[words] = rows.mul_(scale * self.small.gain).to(grad_weight.dtype)
        if grad_x is not None:
            grad_x.mul_(scale * self.small.gain)
