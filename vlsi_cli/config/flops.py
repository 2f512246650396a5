"""How much arithmetic a micro-batch asks for: two operations a multiply-add, matrix products only.

A frozen part that gradients pass through costs two forward passes' worth (forward, gradient of its input); a
trained one three (and the gradient of its weights); gradient checkpointing adds one. Causal attention counts half of
its square.
"""

from __future__ import annotations

from vlsi_cli.config.facts import ModelFacts
from vlsi_cli.config.memory import Workload
from vlsi_cli.config.models import Architecture

# Patches that the vision tower works on for each image token that reaches the decoder.
_PATCHES_PER_TOKEN = {
    "qwen2_vl": 4,
    "qwen2_5_vl": 4,
    "qwen3_vl": 4,
    "qwen3_vl_moe": 4,
    "qwen3_5": 4,
    "qwen3_5_moe": 4,
    "llava_onevision": 1,
    "internvl": 4,
    "gemma3": 16,
    "gemma4": 9,
    "mistral3": 4,
    "idefics3": 16,
    "smolvlm": 16,
}
FORWARD, THROUGH, TRAINED = 1, 2, 3
#: Positions that linear attention works on at once; its state goes from one such piece to the next.
_CHUNK = 64


def decoder(facts: ModelFacts, load: Workload) -> int:
    """One forward pass of all decoder layers over a padded micro-batch."""
    # scores and values, half of the square
    attention = sum(2 * load.length * kind.count * kind.query for kind in facts.kinds)
    work = 2 * (facts.decoder_parameters - facts.idle_parameters) + attention
    if facts.mixed:  # the map of embeddings to the inputs of all layers
        work += 2 * facts.layers * facts.hidden * facts.mixed.inputs
    if linear := facts.linear:
        # within a chunk two products of the width of keys and one of that of values, and a triangular system solved for
        # both, which is half of a product; three products with the state
        rule = (
            _CHUNK * (2.5 * linear.key_dim + 1.5 * linear.value_dim) + 3 * linear.key_dim * linear.value_dim
        )
        work += linear.layers * linear.value_heads * round(2 * rule)
    return load.tokens * work


def vision(facts: ModelFacts, load: Workload) -> int:
    """One forward pass of the vision side; its own attention is left out, as it depends on the pictures."""
    return 2 * (facts.vision or 0) * load.image_tokens * _PATCHES_PER_TOKEN.get(facts.model_type, 1)


def heads(facts: ModelFacts, load: Workload, count: int) -> int:
    """One forward pass of the language head behind ``count`` layers, at the response tokens only."""
    return count * 2 * load.responses * facts.vocab * facts.hidden


def compared_heads(
    small: ModelFacts, large: ModelFacts, load: Workload, targets: int, candidates: int, *, answers: bool
) -> int:
    """All heads of step 2 and their gradients: of the matrix, of the drawn pairs, of the last layer and the answers.

    Args:
        targets: of the small model.
        candidates: of the large one.
        answers: whether the answers in the data have a part in the loss.
    """
    work = 4 * heads(small, load, targets + 1)  # the matrix, the drawn pairs again, their gradient
    work += 2 * heads(large, load, candidates + 1)
    return work + (THROUGH * heads(small, load, 1) if answers else 0)


def verbalizers(facts: ModelFacts, load: Workload, count: int, architecture: Architecture) -> int:
    """One forward pass of ``count`` verbalizers, at the response tokens (decoders: at every token)."""
    tokens = load.tokens if architecture.startswith("decoder") else load.responses
    return count * 2 * tokens * facts.verbalizer_parameters(architecture)
