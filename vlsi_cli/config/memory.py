"""How much memory a stage asks for: counts times bytes, and a rough term for activations.

Weights, gradients and optimizer state follow from the configuration and are exact as far as the counts are.
Activations depend on kernels and pictures; the formula here is a rule of thumb for the longest allowed
records and is labelled as an estimate wherever it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlsi_cli.config.facts import ModelFacts

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
# What trains is held in fp32 (weight 4, gradient 4) with two fp32 moments of AdamW (8).
TRAINED_WEIGHT, GRADIENT, MOMENTS = 4, 4, 8
# Share of a record's tokens that are response tokens (the method's figure for instruction data).
RESPONSE_SHARE = 0.1
# Rows of the vocabulary-sized tiles, and how many fp32 tiles are alive at once in the losses.
TILE_TOKENS, TILES = 256, 4


@dataclass(frozen=True)
class Memory:
    """Bytes of one stage on one device.

    Attributes:
        weights: parameters as they are stored, frozen and trained ones.
        gradients: of what trains.
        optimizer: AdamW's moments.
        activations: rough peak of everything else.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Rough peak."""
        return self.weights + self.gradients + self.optimizer + self.activations


def stage_memory(*, frozen: int, frozen_bytes: int, trained: int, activations: int) -> Memory:
    """Memory of a stage from its numbers of frozen and trained parameters and its activations in bytes."""
    return Memory(
        weights=frozen * frozen_bytes + trained * TRAINED_WEIGHT,
        gradients=trained * GRADIENT,
        optimizer=trained * MOMENTS,
        activations=activations,
    )


def forward_bytes(facts: ModelFacts, tokens: int, number_bytes: int) -> int:
    """Peak of a forward pass that keeps nothing: the widest moment of one layer."""
    return tokens * number_bytes * (4 * facts.hidden + 3 * facts.ffn)


def backward_bytes(facts: ModelFacts, tokens: int, number_bytes: int, *, checkpointing: bool) -> int:
    """What a backward pass through all decoder layers needs kept: one layer's insides, or only its input.

    Per token and layer about 8 x hidden, the projections of attention, and 4 x ffn numbers.
    """
    inside = 8 * facts.hidden + (facts.heads + 2 * facts.kv_heads) * facts.head_dim + 4 * facts.ffn
    kept = facts.layers * facts.hidden + inside if checkpointing else facts.layers * inside
    return tokens * number_bytes * kept


def taps_bytes(facts: ModelFacts, targets: int, response_tokens: int, *, trained: bool) -> int:
    """States of the target layers at the response tokens, in fp32, with what a trained verbalizer keeps."""
    return response_tokens * 4 * facts.hidden * targets * (6 if trained else 2)


def tile_bytes(vocabulary: int) -> int:
    """Vocabulary-sized tiles of the losses; their number does not grow with the batch."""
    return TILES * TILE_TOKENS * vocabulary * 4
