"""Divergences between what two models would say, from their hidden states and heads, one value a token."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from vlsi_cli.engine.losses.autograd import Setting, compare
from vlsi_cli.engine.losses.compare import Plan
from vlsi_cli.engine.losses.kinds import DivergenceKind
from vlsi_cli.engine.losses.readout import PLAIN, LogitRule, check_head


def divergence(
    x_s: Tensor,
    weight_s: Tensor,
    x_t: Tensor,
    weight_t: Tensor,
    *,
    vocabulary: int,
    kind: DivergenceKind = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
    rule_s: LogitRule = PLAIN,
    rule_t: LogitRule = PLAIN,
    plan: Plan | None = None,
    tile_tokens: int | None = None,
    tile_words: int | None = None,
) -> Tensor:
    """How far the small model's distribution is from the large model's, at every token.

    ======================  ===================================================================  =======
    kind                    value, with p_t of the large and p_s of the small model              bound
    ======================  ===================================================================  =======
    ``forward_kl``          sum p_t log(p_t / p_s), the paper's KLD [D: direction]               >= 0
    ``reverse_kl``          sum p_s log(p_s / p_t)                                               >= 0
    ``jsd``                 b KL(p_t || m) + (1 - b) KL(p_s || m), m = b p_t + (1 - b) p_s       <= ln 2
    ``l2``                  sum (p_s - p_t)^2 over the vocabulary (Table 4d's L2) [D]            <= 2
    ``soft_cross_entropy``  - sum p_t log p_s: forward KL plus the large model's entropy         >= 0
    ======================  ===================================================================  =======

    L2 is between probabilities and not logits (method choice [D]): logits are defined only up to a constant a
    token, and a squared difference of them is ruled by the 150,000 tokens that nobody would say. It is a sum
    over the vocabulary, since a mean over it would shrink the loss and its gradient by that factor.

    ``jsd`` is the generalized Jensen-Shannon divergence of GKD (arXiv 2306.13649, section 3) with the beta of TRL: 1/2
    is the symmetric one, 0 is taken as the forward KL and 1 as the reverse KL, to which the divergence over beta, or
    over 1 - beta, tends there.

    Where products run in half precision (an accelerator), what multiplies the head is rounded once, after what is
    large in it has cancelled: the gradient of every kind is right to some 2^-9 of itself (bf16), whatever the loss.
    Only where it is below 1e-6 of the loss, as at a token that the small model is sure of, is nothing left of it, in
    fp32 neither. In fp16, whose smallest number is 6e-8, terms are multiplied by a power of two first, and the product
    divided by it: by 1024, or for reverse KL and L2, whose terms have other sizes than probabilities, by one for each
    token and rectangle.

    Both softmaxes divide the logits by ``temperature``; the loss is *not* multiplied by its square.

    Args:
        x_s: ``[R, H_s]`` states entering the small model's head. The gradient flows here.
        weight_s: ``[>= vocabulary, H_s]``; gets a gradient only when it requires one.
        x_t: ``[R, H_t]`` states entering the large model's head; never gets a gradient.
        weight_t: ``[>= vocabulary, H_t]``; never gets a gradient.
        vocabulary: the tokenizer's real length. Both heads are cut to it before the softmax, so padding rows
            (152,064 against 151,936, in some ports random) cannot matter.
        kind: see the table.
        temperature: > 0; the paper's is 1.
        beta: of ``jsd``, from 0 to 1.
        rule_s, rule_t: what each model does to its logits (a final softcap, a scale).
        plan: how the gradient under a frozen head is made (:mod:`vlsi_cli.engine.losses.compare`); None chooses.
        tile_tokens, tile_words: lengths of a tile; None chooses (:mod:`vlsi_cli.engine.losses.rectangles`).

    Returns:
        ``[R]`` fp32 (fp64 when everything is fp64), in nats except for ``l2``.
    """
    check_head("divergence (small)", x_s, weight_s, vocabulary)
    check_head("divergence (large)", x_t, weight_t, vocabulary)
    if x_s.shape[0] != x_t.shape[0]:
        raise ValueError(f"divergence: {x_s.shape[0]} small states against {x_t.shape[0]} large ones")
    if kind not in get_args(DivergenceKind):
        raise ValueError(f"divergence: no kind {kind!r}; one of {', '.join(get_args(DivergenceKind))}")
    if not temperature > 0:
        raise ValueError(f"divergence: the temperature must be positive, not {temperature}")
    if not 0 <= beta <= 1:
        raise ValueError(f"divergence: beta must lie between 0 and 1, not {beta}")
    if kind == "jsd" and beta in (0, 1):
        kind = "forward_kl" if beta == 0 else "reverse_kl"
    if weight_t.requires_grad or x_t.requires_grad:
        x_t, weight_t = x_t.detach(), weight_t.detach()
    setting = Setting(kind, vocabulary, temperature, beta, (rule_s, rule_t), plan, tile_tokens, tile_words)
    return compare(setting, x_s, weight_s, x_t, weight_t)
