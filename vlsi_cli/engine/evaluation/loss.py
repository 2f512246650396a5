"""Mean loss of a model on held-out records."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.losses import cross_entropy


@torch.no_grad()
def mean_loss(
    backbone: Backbone, batches: Iterable[Batch], *, after_batch: Callable[[], None] = lambda: None
) -> float:
    """Mean cross-entropy of the response tokens, in nats, through the model's own head.

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
            total += float(losses.double().sum())
            count += batch.num_tokens
            after_batch()
    finally:
        backbone.train()
    return total / max(count, 1)
