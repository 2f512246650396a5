"""What losses do to a rectangle of logits between its products, as functions that ``torch.compile`` can fuse.

As written, every operation is a walk of its own over the rectangle, in place. In the cache of a CPU that costs little
beside the exponentials; on a GPU each is a trip to memory, and a dozen take longer than the product they follow. Within
:func:`fused` each function is compiled instead and makes one trip or two; its sums are rounded in another order.

Every function may overwrite the rectangles it is given, unless it says otherwise; ``t`` and ``w`` are their tokens and
words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from vlsi_cli.engine.losses.kinds import KINDS, Part, hard_targets

P = ParamSpec("P")
T = TypeVar("T")

_fusing = False


@contextmanager
def fused(wanted: bool = True) -> Iterator[None]:
    """Within, if ``wanted``: losses are compiled, each when it is first needed, for rectangles of all lengths."""
    global _fusing
    before, _fusing = _fusing, wanted
    try:
        yield
    finally:
        _fusing = before


def _fusable(body: Callable[P, T]) -> Callable[P, T]:
    @wraps(body)
    def either(*args: P.args, **named: P.kwargs) -> T:
        return (_compiled(body) if _fusing else body)(*args, **named)

    return either


@cache
def _compiled(body: Callable[P, T]) -> Callable[P, T]:
    compiled: Callable[P, T] = torch.compile(body, dynamic=True)
    return compiled


def _over(rectangle: Tensor) -> Tensor | None:
    """Where a first result goes: over its operand; in compiled code to a register, which need not be written back."""
    return None if torch.compiler.is_compiling() else rectangle


@_fusable
def with_log_sum(z: Tensor, sums: Tensor) -> Tensor:
    """``[t]`` log sum exp of ``z [t, w]``, left as it is, and of what came before it, whose own is ``sums [t]``."""
    return torch.logaddexp(sums, z.logsumexp(-1))


@_fusable
def exponentials(z: Tensor, reference: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """``e = exp(z - reference) [t, w]``, written to ``out`` if given, and ``sum e [t]``; ``z`` is left as it is."""
    e = torch.sub(z, reference[:, None], out=out).exp_()
    return e, e.sum(-1)


@_fusable
def weighing_exponentials(
    z: Tensor, other: Tensor | None, reference: Tensor, out: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`exponentials`, and ``sum e (z - other) [t]``; ``other [t, w]`` is left as it is, None is zero."""
    e = torch.sub(z, reference[:, None], out=out).exp_()
    gap = z if other is None else torch.sub(z, other, out=_over(z))
    return e, e.sum(-1), torch.mul(gap, e, out=_over(z)).sum(-1)


@_fusable
def compared(
    kind: str,
    logits: list[Tensor],
    log_sums: list[Tensor],
    want: bool,
    beta: float,
    dtype: torch.dtype,
) -> Part:
    """A kind of divergence (:mod:`vlsi_cli.engine.losses.kinds`) from both models' logits and log-normalisers.

    Args:
        kind: one of :data:`vlsi_cli.engine.losses.kinds.KINDS`.
        logits: ``[t, w]`` of the small and of the large model.
        log_sums: ``[t]`` each.
        want: whether a gradient is wanted.
        beta: of ``jsd``.
        dtype: of what is multiplied with a head afterwards.
    """
    pairs = zip(logits, log_sums, strict=True)
    small, large = (torch.sub(z, log_sum[:, None], out=_over(z)) for z, log_sum in pairs)
    return _in(dtype, KINDS[kind](small, large, want, beta))


@_fusable
def against_words(
    z: Tensor, log_sum: Tensor, targets: Tensor, first_word: int, want: bool, dtype: torch.dtype
) -> Part:
    """Cross-entropy with ``targets [t]`` from logits ``[t, w]`` and log-normalisers ``[t]``; gradient in ``dtype``."""
    log_s = torch.sub(z, log_sum[:, None], out=_over(z))
    if not torch.compiler.is_compiling():
        return _in(dtype, hard_targets(log_s, targets, first_word, want))
    # the same without an index into memory, which would be a walk of its own
    here = torch.arange(z.shape[1], device=z.device) == (targets - first_word)[:, None]
    value = -torch.where(here, log_s, 0.0).sum(-1)
    return _in(dtype, Part(value, log_s.exp() - here.to(z.dtype) if want else None))


def _in(dtype: torch.dtype, part: Part) -> Part:
    first, p_s = (each if each is None else each.to(dtype) for each in (part.first, part.p_s))
    return Part(part.value, first, p_s, part.correction)  # torch 2.11 cannot compile a _replace
