"""Mean loss of a model on held-out records."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.losses import cross_entropy


def mean_loss(
    backbone: Backbone, batches: Iterable[Batch], *, after_batch: Callable[[], None] = lambda: None
) -> float:
    """Mean cross-entropy of the response tokens, in nats, through the model's own head; see :func:`sum_loss`."""
    total, count = sum_loss(backbone, batches, after_batch=after_batch)
    return total / max(count, 1)


@torch.no_grad()
def sum_loss(
    backbone: Backbone, batches: Iterable[Batch], *, after_batch: Callable[[], None] = lambda: None
) -> tuple[float, int]:
    """Sum of the cross-entropies of the response tokens, in nats, and their number.

    Args:
        backbone: any, in eval mode while this runs.
        batches: right-padded batches.
        after_batch: called after each of them.
    """
    total, count = 0.0, 0
    backbone.train(False)
    try:
        for batch in batches:
            batch = batch.to(backbone.device)
            states = backbone.forward_base(batch.inputs)[batch.rows, batch.cols]
            losses = cross_entropy(
                states,
                backbone.head.weight,
                batch.targets,
                vocabulary=backbone.tokenizer_length,
                rule=backbone.logit_rule,
            )
            total += float(losses.cpu().double().sum())  # Apple's GPUs have no fp64
            count += batch.num_tokens
            after_batch()
    finally:
        backbone.train()
    return total, count
