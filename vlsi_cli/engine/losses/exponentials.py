"""Softmaxes that are summed up unnormalised, a rectangle at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsi_cli.engine.losses import bodies
from vlsi_cli.engine.losses.readout import Readout

# How far above its reference a logit may rise before sums are rescaled: exp(30) = 1e13 keeps fp32 sums of 150,000
# terms far from overflow, and a relative error does not know the scale.
_HEADROOM = 30.0


class Exponentials:
    """Running ``sum exp(z)`` of every token over the rectangles of its row, and whatever else is summed with it.

    Args:
        tokens: R.
        like: dtype and device.

    Attributes:
        total: ``[R]`` sum of exp(z - reference) so far.
    """

    def __init__(self, tokens: int, like: Readout) -> None:
        self._reference = torch.full((tokens,), -torch.inf, dtype=like.dtype, device=like.x.device)
        self.total = torch.zeros_like(self._reference)

    def add(self, tokens: slice, z: Tensor, *sums: Tensor | None, out: Tensor | None = None) -> Tensor:
        """``exp(z - reference)`` of a rectangle, added to the totals.

        Args:
            tokens: the rectangle's tokens.
            z: ``[t, w]`` logits, left as they are.
            sums: ``[R, ...]`` sums of earlier rectangles with these exponentials as weights; rescaled where the
                reference moves.
            out: ``[t, w]`` to write to.
        """
        e, total = bodies.exponentials(z, self._reference_for(tokens, z, sums), out)
        self.total[tokens] += total
        return e

    def add_weighing(
        self, tokens: slice, z: Tensor, other: Tensor | None, *sums: Tensor | None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`add`; and ``[t]`` sums of ``z - other`` (of ``z``), weighed with them. ``z`` may be overwritten."""
        e, total, weighed = bodies.weighing_exponentials(z, other, self._reference_for(tokens, z, sums), out)
        self.total[tokens] += total
        return e, weighed

    def log(self) -> Tensor:
        """``[R]`` log sum exp(z)."""
        return self.total.log().add_(self._reference)

    def _reference_for(self, tokens: slice, z: Tensor, sums: tuple[Tensor | None, ...]) -> Tensor:
        """``[t]`` the reference of a rectangle, moved, with all sums, where its logits are too high for the old one."""
        top, reference = z.amax(-1), self._reference[tokens]
        low = top > reference + _HEADROOM
        if _may_ask(z.device) and not bool(low.any()):
            return reference
        moved = torch.where(low, top, reference)
        factor = (reference - moved).exp_()
        self._reference[tokens] = moved
        for each in (self.total, *sums):
            if each is not None:
                each[tokens] *= factor.view(-1, *[1] * (each.ndim - 1))
        return moved


def _may_ask(device: torch.device) -> bool:
    """Whether a number may be looked at: an accelerator would first finish all work under way, and ones cost less."""
    return device.type == "cpu"
