"""Every small layer against every large layer from one walk, and the gradient of the pairs that are drawn afterwards.

For one token ``KL(l || s) = sum_v p_l log p_l - sum_v p_l log p_s``: the first term belongs to l alone, and the second
couples the two in a product ``P_l [n_large, V] @ Z_s^T [V, n_small]``. So each layer is projected and normalised once,
and all pairs together cost one small matrix product a token: equal to the loop over pairs within fp32 rounding, for
the price of n_small + n_large projections.

Layers are matched on these values and only then is it known which pairs need a gradient. Two ways, both exact:

``sums``
    The gradient of a pair is ``S_s - Q_l`` with ``S_s = sum_v p_s W`` and ``Q_l = sum_v p_l W`` over the *small* head,
    each ``[R, H_s]``: taken along in the one walk for every layer, so that any pair is a subtraction. Costs
    (n_small + n_large) H_s products a word and as many states in memory.
``recompute``
    The drawn pair is projected once more, with the normalisers already known: (2 H_s + H_t) products a word for each
    small layer, no memory.

:func:`choose_gradient` takes the one with fewer products if it fits. ``sums`` needs fp32 products (S and Q cancel as
the small model nears the large one) and a small model without a softcap, which would make Q depend on both layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vlsi_cli.engine.batch import sent
from vlsi_cli.engine.losses.autograd import with_gradient
from vlsi_cli.engine.losses.divergence import divergence
from vlsi_cli.engine.losses.exponentials import Exponentials
from vlsi_cli.engine.losses.readout import (
    PLAIN,
    LogitRule,
    Readout,
    accumulation_dtype,
    check_head,
    no_autocast,
    operand_dtype,
)
from vlsi_cli.engine.losses.rectangles import MIB, Tiling, choose_tiling, memory_of

Gradient = Literal["sums", "recompute"]

#: Bytes that S and Q may take together, at most 1/32 of the device's memory.
SUMS_BYTES = {"cpu": 512 * MIB}
SUMS_BYTES_ACCELERATOR = 4096 * MIB
#: Rows that a product wants: layers of a short batch are stacked up to so many, and not at all for less than a fourth.
STACKED_ROWS = 512


def choose_gradient(
    tokens: int,
    small: int,
    large: int,
    hidden: tuple[int, int],
    *,
    exact: bool,
    capped: bool,
    device: torch.device,
) -> Gradient:
    """How drawn pairs get their gradient, by the number of products and the memory at hand.

    Args:
        tokens: R.
        small, large: layers that take part.
        hidden: (H_s, H_t).
        exact: products run in the accumulation dtype.
        capped: the small model caps its logits.
        device: where it happens.
    """
    h_s, h_t = hidden
    budget = min(SUMS_BYTES.get(device.type, SUMS_BYTES_ACCELERATOR), memory_of(device) // 32)
    fits = (small + large) * tokens * h_s * 4 <= budget
    cheaper = (small + large) * h_s <= small * (2 * h_s + h_t)
    return "sums" if exact and not capped and fits and cheaper else "recompute"


class AllPairs:
    """The divergences of all pairs of layers of one batch; :meth:`loss` gives one pair a gradient.

    Args:
        temperature: as in :func:`vlsi_cli.engine.losses.divergence`: both softmaxes divide the logits by it, and
            nothing is multiplied by its square. The other arguments are those of
            :func:`vlsi_cli.engine.losses.divergence_matrix`.
        gradient: how drawn pairs get theirs; None chooses.

    Attributes:
        matrix: ``[n_small, n_large]`` forward KL(large l || small s) in nats, summed over tokens, without
            gradient; 0 where the mask is False. Divide by R for the mean.
        gradient: which way was taken, or None when no layer wants a gradient.
    """

    matrix: Tensor
    gradient: Gradient | None

    def __init__(
        self,
        xs_s: Sequence[Tensor],
        weight_s: Tensor,
        xs_t: Sequence[Tensor],
        weight_t: Tensor,
        *,
        vocabulary: int,
        mask: Tensor | None = None,
        rule_s: LogitRule = PLAIN,
        rule_t: LogitRule = PLAIN,
        temperature: float = 1.0,
        gradient: Gradient | None = None,
        tile_tokens: int | None = None,
        tile_words: int | None = None,
    ) -> None:
        for name, states, weight in (("small", xs_s, weight_s), ("large", xs_t, weight_t)):
            for x in states:
                check_head(f"divergence_matrix ({name})", x, weight, vocabulary)
        lengths = {x.shape[0] for x in (*xs_s, *xs_t)}
        if len(lengths) != 1:
            raise ValueError(
                f"divergence_matrix: every layer needs the same number of tokens, not {sorted(lengths)}"
            )
        shape = (len(xs_s), len(xs_t))
        if mask is not None and tuple(mask.shape) != shape:
            raise ValueError(f"divergence_matrix: the mask must be {list(shape)}, not {list(mask.shape)}")
        cells = torch.ones(shape, dtype=torch.bool) if mask is None else mask.cpu()
        self._small = [s for s in range(shape[0]) if bool(cells[s].any())]
        self._large = [t for t in range(shape[1]) if bool(cells[:, t].any())]
        self._xs_s, self._xs_t, self._weights = tuple(xs_s), tuple(xs_t), (weight_s, weight_t)
        self._rules, self._vocabulary, self._cells = (rule_s, rule_t), vocabulary, cells
        self._temperature = temperature
        self._tile_tokens, self._tile_words = tile_tokens, tile_words
        self._dtype = accumulation_dtype(*xs_s, weight_s, *xs_t, weight_t)
        self._operands = (operand_dtype(weight_s), operand_dtype(weight_t))
        self._tokens, self._device = lengths.pop(), xs_s[0].device
        wanted = torch.is_grad_enabled() and any(x.requires_grad for x in xs_s)
        with torch.no_grad(), no_autocast(self._device):
            self._ours = [self._readout(0, xs_s[s]) for s in self._small]
            self._theirs = [self._readout(1, xs_t[t]) for t in self._large]
            self.gradient = self._choose(gradient) if wanted and self._small else None
            self._walk()
            self.matrix = torch.zeros(shape, dtype=self._dtype, device=self._device)
            if self._small:
                rows, columns = (
                    sent(torch.tensor(each), self._device) for each in (self._small, self._large)
                )
                self.matrix[rows[:, None], columns] = self._each.sum(0)
                self.matrix.masked_fill_(sent(~cells, self._device), 0)

    def loss(self, small: int, large: Sequence[int]) -> Tensor:
        """``[R]`` mean divergence of small layer ``small`` from the given large layers, with its gradient.

        Args:
            small: place of the small layer among those given.
            large: places of one or more large layers; every cell must be one of the mask's.
        """
        if not large or not all(bool(self._cells[small, t]) for t in large):
            raise ValueError(
                f"AllPairs: no divergences of small layer {small} from {list(large)} were asked for"
            )
        x, (weight_s, weight_t) = self._xs_s[small], self._weights
        if torch.is_grad_enabled() and weight_s.requires_grad:
            each = [
                divergence(
                    x,
                    weight_s,
                    self._xs_t[t],
                    weight_t,
                    vocabulary=self._vocabulary,
                    rule_s=self._rules[0],
                    rule_t=self._rules[1],
                    temperature=self._temperature,
                    tile_tokens=self._tile_tokens,
                    tile_words=self._tile_words,
                )
                for t in large
            ]
            return torch.stack(each).mean(0)
        s, places = self._small.index(small), [self._large.index(t) for t in large]
        losses = torch.stack([self._each[:, s, t] for t in places], 1).mean(1)
        if not torch.is_grad_enabled() or not x.requires_grad:
            return losses
        with torch.no_grad(), no_autocast(self._device):
            means_s, means_t = self._sums
            if means_s is not None and means_t is not None:
                mean = (
                    torch.stack([means_t[t] for t in places]).mean(0)
                    if len(places) > 1
                    else means_t[places[0]]
                )
                grad = (means_s[s] - mean).mul_(self._ours[s].gain)
            else:
                grad = self._recompute(s, places)
        return with_gradient(x, losses, grad)

    def _readout(self, side: int, x: Tensor) -> Readout:
        return Readout(
            x,
            self._weights[side],
            self._vocabulary,
            dtype=self._dtype,
            operands=self._operands[side],
            rule=self._rules[side],
            temperature=self._temperature,
        )

    def _choose(self, gradient: Gradient | None) -> Gradient:
        small, large = self._ours[0], self._theirs[0]
        usable = small.exact and not small.capped
        if gradient == "sums" and not usable:
            raise ValueError("AllPairs: sums need fp32 products and a small model without a softcap")
        return gradient or choose_gradient(
            self._tokens,
            len(self._ours),
            len(self._theirs),
            (small.x.shape[1], large.x.shape[1]),
            exact=small.exact,
            capped=small.capped,
            device=self._device,
        )

    def _tiling(self, buffers: int) -> Tiling:
        return choose_tiling(
            self._tokens,
            self._vocabulary,
            buffers=buffers,
            device=self._device,
            dtype=self._dtype,
            tile_tokens=self._tile_tokens,
            tile_words=self._tile_words,
        )

    def _walk(self) -> None:
        """Fill ``_each [R, small, large]``, the layers' ``_log_sums`` and, on the way of ``sums``, S and Q."""
        n_s, n_t, tokens = len(self._ours), len(self._theirs), self._tokens
        self._each = torch.empty(tokens, n_s, n_t, dtype=self._dtype, device=self._device)
        new = self._each.new_empty
        self._log_sums = new(n_s, tokens), new(n_t, tokens)
        self._sums: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.gradient == "sums":
            width = self._xs_s[0].shape[1]
            self._sums = new(n_s, tokens, width).zero_(), new(n_t, tokens, width).zero_()
        if not n_s:
            return
        tiling = self._tiling(n_s + n_t + 1)
        area = tiling.tokens * tiling.words
        stores = new(n_s * area), new(n_t * area)
        for block in tiling.blocks(tokens):
            self._walk_block(tiling, block, stores)

    def _walk_block(self, tiling: Tiling, block: slice, stores: tuple[Tensor, Tensor]) -> None:
        count = block.stop - block.start
        stacked = STACKED_ROWS // count if tiling.tokens >= count and 4 * count <= STACKED_ROWS else 1
        ours, theirs = (_stack(side, block, stacked) for side in (self._ours, self._theirs))
        means_s, means_t = (each[:, block] if each is not None else None for each in self._sums)
        powers_s = [Exponentials(count, r) for r in self._ours]
        powers_t = [Exponentials(count, r) for r in self._theirs]
        coupled = self._each[block].zero_()  # [t, n_s, n_t], sum e_l (z_l - z_s), unnormalised
        own = coupled.new_zeros(len(powers_t), count)  # sum e_l z_l
        for tokens, words in tiling.rectangles(count, self._vocabulary):
            t, w = tokens.stop - tokens.start, words.stop - words.start
            z_s = stores[0][: len(powers_s) * t * w].view(-1, t, w)
            e_t = stores[1][: len(powers_t) * t * w].view(-1, t, w)
            for first, group in ours:
                n = len(group.x) // count
                group.logits(_times(tokens, n), words, z_s[first : first + n].view(n * t, w))
                for place in range(first, first + n):
                    mean = means_s[place] if means_s is not None else None
                    powers = powers_s[place].add(tokens, z_s[place], mean)
                    if mean is not None:
                        group.pull(powers, words, mean[tokens])
            for first, group in theirs:
                n = len(group.x) // count
                for place, z in enumerate(group.logits(_times(tokens, n), words).view(n, t, w), first):
                    mean = means_t[place] if means_t is not None else None
                    sums = (own[place], coupled[:, :, place], mean)
                    powers, terms = powers_t[place].add_weighing(tokens, z, None, *sums, out=e_t[place])
                    own[place, tokens] += terms
                    if mean is not None:
                        ours[0][1].pull(powers, words, mean[tokens])
            coupled[tokens].baddbmm_(z_s.transpose(0, 1), e_t.permute(1, 2, 0))
        for side, each, means in ((0, powers_s, means_s), (1, powers_t, means_t)):
            for place, found in enumerate(each):
                self._log_sums[side][place, block] = found.log()
                if means is not None:
                    means[place].div_(found.total[:, None])
        # KL = sum p_l (z_l - z_s) - log Z_l + log Z_s. Subtract a token at a time: two sums over a batch would lose the
        # small difference between them.
        totals = torch.stack([found.total for found in powers_t])
        log_s, log_t = (each[:, block].t() for each in self._log_sums)
        coupled.sub_(own.t()[:, None]).div_(totals.t()[:, None]).neg_()
        coupled.sub_(log_t[:, None]).add_(log_s[:, :, None])

    def _recompute(self, s: int, places: Sequence[int]) -> Tensor:
        """``[R, H_s]`` gradient of the mean over large ``places``, from logits made again."""
        ours, theirs = self._ours[s], [self._theirs[t] for t in places]
        grad_x = torch.zeros(ours.x.shape, dtype=self._dtype, device=self._device)
        tiling = self._tiling(3)
        for block in tiling.blocks(self._tokens):
            small, large = ours.part(block), [r.part(block) for r in theirs]
            log_s = self._log_sums[0][s, block]
            log_t = [self._log_sums[1][t, block] for t in places]
            for tokens, words in tiling.rectangles(block.stop - block.start, self._vocabulary):
                z = small.logits(tokens, words)
                bend = small.bend(z)
                grad = z.sub_(log_s[tokens, None]).exp_()
                for readout, log in zip(large, log_t, strict=True):
                    p_t = readout.logits(tokens, words).sub_(log[tokens, None]).exp_()
                    grad.sub_(p_t, alpha=1 / len(large))
                small.pull(grad if bend is None else grad.mul_(bend), words, grad_x[block][tokens])
        return grad_x.mul_(ours.gain) if ours.gain != 1.0 else grad_x


def _stack(side: list[Readout], block: slice, size: int) -> list[tuple[int, Readout]]:
    """(place of its first layer, readout) of every ``size`` layers: the block of one layer after that of another."""
    firsts = range(0, len(side), size)
    return [(first, side[first].joined(side[first : first + size], block)) for first in firsts]


def _times(tokens: slice, layers: int) -> slice:
    """The rows of a rectangle's tokens in ``layers`` stacked ones; those of one layer where nothing is stacked."""
    return tokens if layers == 1 else slice(0, layers * tokens.stop)
