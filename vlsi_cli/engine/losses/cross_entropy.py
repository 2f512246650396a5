"""The autoregressive loss on hidden states: verbalization, reinforcement and the "CE" choices of Table 4d."""

from __future__ import annotations

from torch import Tensor

from vlsi_cli.engine.losses.autograd import Setting, compare
from vlsi_cli.engine.losses.compare import Plan
from vlsi_cli.engine.losses.readout import PLAIN, LogitRule, check_head


def cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    vocabulary: int,
    rule: LogitRule = PLAIN,
    plan: Plan | None = None,
    tile_tokens: int | None = None,
    tile_words: int | None = None,
) -> Tensor:
    """``-log p(target)`` of every token, in nats, through a language head (arXiv 2412.01822, section 3.2).

    Args:
        x: ``[R, H]`` states entering the head, after the final norm. Any float dtype; the softmax is fp32
            (fp64 when everything is fp64).
        weight: ``[>= vocabulary, H]`` head. Receives a gradient of its full shape when it requires one; rows
            from ``vocabulary`` on are padding, take no part in the softmax and get zeros.
        targets: ``[R]`` token ids, already shifted; each below ``vocabulary``.
        vocabulary: the tokenizer's real length.
        rule: what the model does to its logits (a final softcap, a scale).
        plan: how the gradient under a frozen head is made (:mod:`vlsi_cli.engine.losses.compare`); None chooses.
        tile_tokens, tile_words: lengths of a tile; None chooses (:mod:`vlsi_cli.engine.losses.rectangles`).

    Returns:
        ``[R]`` fp32: one value a token. Dividing by a count of tokens is the caller's.
    """
    check_head("cross_entropy", x, weight, vocabulary)
    if targets.shape != x.shape[:1]:
        raise ValueError(f"cross_entropy: targets must be [{x.shape[0]}], not {list(targets.shape)}")
    setting = Setting(
        "hard", vocabulary, rules=(rule, PLAIN), plan=plan, tile_tokens=tile_tokens, tile_words=tile_words
    )
    return compare(setting, x, weight, targets=targets)
