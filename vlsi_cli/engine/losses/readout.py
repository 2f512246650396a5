"""A language head seen through a window: logits of some tokens for some words, and gradients back through them.

A language head turns hidden states ``x [R, H]`` into logits ``x W^T [R, V]``. With V = 151,936 and R = 2048 that is
1.16 GiB in fp32, several times over once softmaxes and gradients are counted, so it is never formed: everything here
works on rectangles of it (:mod:`vlsi_cli.engine.losses.rectangles`).

Which numbers: the operands of a product are in the head's own dtype (or in what autocast would give a linear layer),
its result and everything after it in fp32. On a CPU the product itself is fp32, since the rounding of a bf16 result
would be all that is saved; on an accelerator it runs on half operands and sums in fp32. fp64 throughout when
everything is fp64, for gradient checks.

This class is also the place for a kernel of one's own on an accelerator: whatever fuses a projection with what follows
it would sit behind :meth:`Readout.logits` and :meth:`Readout.pull`, with what is here as its oracle.

Dimension names: R response tokens, H hidden size, V vocabulary (the tokenizer's real length; rows of a head beyond it
are padding and are cut off before any softmax), t and w the tokens and words of one rectangle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# fp16 has no exponents below 2^-24; a tail of 150,000 probabilities of 1e-8 would vanish from the gradient.
_FP16_SCALE = 1024.0


@dataclass(frozen=True)
class LogitRule:
    """What a model does to its logits after its head, as its config says.

    ``logits = softcap * tanh(scale * z / softcap)`` of the head's product z, or ``scale * z`` without a cap.

    Attributes:
        scale: Cohere's ``logit_scale``; one over Granite's ``logits_scaling``.
        softcap: Gemma's ``final_logit_softcapping``; None for no cap.
    """

    scale: float = 1.0
    softcap: float | None = None

    def apply_(self, product: Tensor, temperature: float = 1.0) -> Tensor:
        """Logits over ``temperature`` from a head's product, written over it."""
        gain = self.scale / temperature
        if self.softcap is None:
            return product if gain == 1.0 else product.mul_(gain)
        cap = self.softcap / temperature
        # as models do it, bit for bit, where nothing but the cap is asked for
        return (product.div_(cap) if gain == 1.0 else product.mul_(gain / cap)).tanh_().mul_(cap)

    def bend(self, logits: Tensor, temperature: float = 1.0) -> Tensor | None:
        """``1 - (logits / cap)^2``, what a cap makes of a gradient with respect to the logits; None without one.

        The constant factor ``scale / temperature`` of such a gradient is left to the caller.
        """
        if self.softcap is None:
            return None
        return logits.div(self.softcap / temperature).square_().neg_().add_(1.0)


#: Most families: the head's product is the logits.
PLAIN = LogitRule()


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """fp64 when every tensor is fp64 (for gradient checks), else fp32: the dtype of softmaxes and sums."""
    return torch.float64 if all(t.dtype == torch.float64 for t in tensors) else torch.float32


def operand_dtype(weight: Tensor) -> torch.dtype:
    """The dtype a product with this head takes its operands in: the weight's, or autocast's for a linear layer."""
    device = weight.device.type
    if weight.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def product_dtype(device: torch.device, operands: torch.dtype, accumulation: torch.dtype) -> torch.dtype:
    """The dtype a product runs in: fp32 on a CPU, where halves are slow and only lose bits; else the operands'."""
    return accumulation if device.type == "cpu" else operands


def no_autocast(device: torch.device) -> torch.autocast:
    """Within: dtypes are what the code says."""
    return torch.autocast(device.type, enabled=False)


def check_head(name: str, x: Tensor, weight: Tensor, vocabulary: int) -> None:
    """Refuse shapes that would broadcast or index silently into something else."""
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{name}: states must be [R, H] and the head [V, H], not {list(x.shape)} and {list(weight.shape)}"
        )
    if not 0 < vocabulary <= weight.shape[0]:
        raise ValueError(
            f"{name}: a vocabulary of {vocabulary} does not fit a head of {weight.shape[0]} rows"
        )


class Readout:
    """Logits of one model's states through its head, a rectangle at a time, without gradient.

    Args:
        x: ``[R, H]`` states that enter the head.
        weight: ``[>= vocabulary, H]``; only its real rows are ever read.
        vocabulary: V.
        dtype: of logits and of all sums (:func:`accumulation_dtype`).
        operands: see :func:`operand_dtype`; asked when the object is made, so that autocast is seen.
        rule: what the model does to its logits.
        temperature: the logits are divided by it after that.

    Attributes:
        exact: products run in ``dtype``, so that sums over words may be taken before they are normalised.
        capped: gradients depend on the logits (:meth:`bend_`).
        pulled: dtype in which :meth:`pull` multiplies a gradient; where it has first to scale it, ``dtype``.
        gain: constant factor of every gradient through this head: scale / temperature.
    """

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        vocabulary: int,
        *,
        dtype: torch.dtype,
        operands: torch.dtype,
        rule: LogitRule = PLAIN,
        temperature: float = 1.0,
    ) -> None:
        self.x, self.vocabulary, self.dtype = x.detach(), vocabulary, dtype
        self._weight, self._operands = weight.detach(), operands
        self._product = product_dtype(weight.device, operands, dtype)
        self._rule, self._temperature = rule, temperature
        self.gain = rule.scale / temperature
        self.capped, self.exact = rule.softcap is not None, self._product == dtype
        self.pulled = dtype if self._product == torch.float16 else self._product
        self._cast: tuple[slice, Tensor] | None = None

    def part(self, tokens: slice) -> Readout:
        """The same readout of a run of its tokens."""
        return self.joined([self], tokens)

    def joined(self, readouts: Sequence[Readout], tokens: slice) -> Readout:
        """One readout of a run of tokens of several that share this one's head, one after another."""
        parts = [readout.x[tokens] for readout in readouts]
        return Readout(
            parts[0] if len(parts) == 1 else torch.cat(parts),
            self._weight,
            self.vocabulary,
            dtype=self.dtype,
            operands=self._operands,
            rule=self._rule,
            temperature=self._temperature,
        )

    def rows(self, words: slice) -> Tensor:
        """``[w, H]`` rows of the head in the product's dtype: a view, or one cast tile, kept until the next one."""
        if self._weight.dtype == self._operands == self._product:
            return self._weight[words]
        if self._cast is None or self._cast[0] != words:
            self._cast = None  # let go of the old tile before the new one is made
            self._cast = words, self._weight[words].to(self._operands).to(self._product)
        return self._cast[1]

    def logits(self, tokens: slice, words: slice, out: Tensor | None = None) -> Tensor:
        """``[t, w]`` logits, divided by the temperature: a fresh tensor, or ``out`` filled."""
        x = self.x[tokens].to(self._operands).to(self._product)
        rows = self.rows(words).t()
        if self.exact:
            z = torch.mm(x, rows, out=out) if out is not None else torch.mm(x, rows)
        else:
            z = _product_of_halves(x, rows, self.dtype, out)
        return self._rule.apply_(z, self._temperature)

    def bend(self, logits: Tensor) -> Tensor | None:
        """``1 - (logits / cap)^2``, what a cap makes of a gradient with respect to the logits; None without one."""
        return self._rule.bend(logits, self._temperature)

    def gather(self, words: Tensor) -> Tensor:
        """``[n, H]`` the head's rows of single words, in :attr:`dtype`."""
        return self._weight[words].to(self._operands).to(self.dtype)

    def pull(self, grad: Tensor, words: slice, into: Tensor, *, wide: bool = False) -> None:
        """``into [t, H] += grad [t, w] @ W[words]``, all but the constant :attr:`gain`.

        Args:
            wide: whether a token's terms may add up to far more than two in size, or be squares of probabilities, and
                so need a scale of their own in fp16.
        """
        _add_product(into, grad, self.rows(words), wide=wide)

    def pull_weight(self, grad: Tensor, tokens: slice, into: Tensor, *, wide: bool = False) -> None:
        """``into [w, H] += grad^T [w, t] @ x[tokens]``, all but the constant :attr:`gain`; ``wide``: as there."""
        _add_product(into, grad.t(), self.x[tokens].to(self._operands).to(self._product), wide=wide)


def _product_of_halves(x: Tensor, rows: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    if x.device.type == "cuda" and x.dtype != torch.float32:
        # sums leave the kernel unrounded, and go where they belong
        return torch.mm(x, rows, out_dtype=dtype, **({} if out is None else {"out": out}))
    z = torch.mm(x, rows)
    return z.to(dtype) if out is None else out.copy_(z)


def _add_product(into: Tensor, grad: Tensor, operand: Tensor, *, wide: bool = False) -> None:
    """``into += grad @ operand`` in the operand's dtype, safe from what fp16 cannot hold: see :func:`_scale`."""
    if operand.dtype == into.dtype:
        into.addmm_(grad, operand)
    elif operand.dtype != torch.float16:
        into.add_(_product_of_halves(grad.to(operand.dtype), operand, into.dtype))
    elif wide:
        scale = _scale(grad)
        product = _product_of_halves(grad.mul(scale).to(operand.dtype), operand, into.dtype)
        into.addcmul_(product, scale.reciprocal_())
    else:
        product = _product_of_halves(grad.mul(_FP16_SCALE).to(operand.dtype), operand, into.dtype)
        into.add_(product, alpha=1 / _FP16_SCALE)


def _scale(grad: Tensor) -> Tensor:
    """``[t, 1]`` powers of two, which round nothing, times which the sizes of a row's terms add up to about a thousand.

    To :data:`_FP16_SCALE` at least and to less than twice that, so that none overflows; equal terms of 150,000 words
    are 0.007 each then, a hundred times what fp16 holds with all its digits.
    """
    size = torch.linalg.vector_norm(grad, 1, dim=-1, keepdim=True)
    exponent = torch.frexp(size).exponent.sub_(1).clamp_(-100, 100)
    return torch.ldexp(torch.full_like(size, _FP16_SCALE), -exponent)
