"""How far every layer of one model is from every layer of another, over a sample of data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.losses import divergence_matrix
from vlsi_cli.engine.teachers.teacher import Teacher
from vlsi_cli.errors import TrainingError


@dataclass(frozen=True)
class LayerDivergences:
    """``KL(large l || small s)`` of every pair of target layers, a matrix for each batch.

    Attributes:
        batches: ``[N, n_small, n_large]`` fp64 on the host: mean over a batch's response tokens, nats.
        tokens: ``[N]`` response tokens of each batch.
        records: of all batches together.
    """

    batches: Tensor
    tokens: Tensor
    records: int

    @property
    def mean(self) -> Tensor:
        """``[n_small, n_large]``: mean over all response tokens, so a record counts by how many it has."""
        return (self.batches * self._weights).sum(0)

    @property
    def spread(self) -> Tensor:
        """``[n_small, n_large]``: standard deviation of the batches around the mean, weighted by their tokens."""
        return ((self.batches - self.mean).square() * self._weights).sum(0).sqrt()

    @property
    def _weights(self) -> Tensor:
        return (self.tokens.double() / self.tokens.sum())[:, None, None]


@torch.no_grad()
def layer_divergences(
    small: Teacher,
    large: Teacher,
    batches: Iterable[Batch],
    *,
    vocabulary: int,
    device: torch.device,
    after_batch: Callable[[int], None] = lambda records: None,
) -> LayerDivergences:
    """Compare two models layer by layer: one forward pass of each a batch, then one pass over the vocabulary.

    Args:
        small, large: frozen models with their target layers; both read the same token ids and pixels.
        batches: at least one.
        vocabulary: the tokenizer's real length, the same on both sides.
        device: where both models are.
        after_batch: told the number of records read so far.

    Raises:
        TrainingError: a divergence that is not finite, naming both layers.
    """
    matrices, tokens, records = [], [], 0
    for batch in batches:
        batch = batch.to(device)
        small_states, large_states = (side.states(batch, side.targets) for side in (small, large))
        ours, theirs = small_states.layers, large_states.layers
        sums = divergence_matrix(
            [ours[layer] for layer in small.targets],
            small.head,
            [theirs[layer] for layer in large.targets],
            large.head,
            vocabulary=vocabulary,
            rule_s=small_states.rule,
            rule_t=large_states.rule,
        )
        matrices.append(sums.cpu().double() / max(batch.num_tokens, 1))
        _require_finite(matrices[-1], small, large)
        tokens.append(batch.num_tokens)
        records += len(batch.records)
        after_batch(records)
    return LayerDivergences(torch.stack(matrices), torch.tensor(tokens), records)


def _require_finite(matrix: Tensor, small: Teacher, large: Teacher) -> None:
    bad = (~torch.isfinite(matrix)).nonzero()
    if len(bad):
        s, t = bad[0].tolist()
        raise TrainingError(
            f"the divergence of layer {small.targets[s]} of '{small.name}' from layer {large.targets[t]} of "
            f"'{large.name}' is {float(matrix[s, t])}",
            hint="compute in another precision, such as --precision fp32",
        )
