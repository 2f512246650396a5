"""How much memory a stage asks for: counts times bytes, and what the passes keep.

Weights, gradients and optimizer state follow from the configuration and are exact as far as the counts are. What a
backward pass keeps per token and decoder layer is the sum of what the operators of that layer save for it; the
coefficients below were counted on the layers of transformers themselves, on tensors without storage, and a test
counts them again. Everything is for records of the assumed length, padding included.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from vlsi_cli.config.facts import ModelFacts
from vlsi_cli.config.mixed import LayerKind

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
# Of a quantized decoder layer: LLM.int8() has an fp32 scale a row beside its bytes; NF4 a scale of 8 bits for 64
# weights, and an fp32 scale for 256 of those. Norms and biases stay as they are, a 2000th of a layer.
QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.5 + (1 + 4 / 256) / 64}
# What trains is held in fp32 (weight 4, gradient 4) with two fp32 moments of AdamW (8); so is every verbalizer.
TRAINED_WEIGHT, GRADIENT, MOMENTS = 4, 4, 8
# Numbers that DeepSpeed exchanges at once (its own 500 million would take 2 GB of fp32), and bytes of its two buffers.
ZERO_BUCKET = 50_000_000
ZERO_BUCKETS = 2 * 4 * ZERO_BUCKET
# Share of a record's tokens that are response tokens (the method's figure for instruction data).
RESPONSE_SHARE = 0.1
# Buffers of logits in the losses (engine.losses.rectangles), in bytes at most, on an accelerator and on a CPU: the
# rectangles that are alive together, the rows that are kept for a block where products run in half precision, and the
# sums that give every pair of layers its gradient where they run in fp32 (engine.losses.pairs).
RECTANGLES, RECTANGLES_CPU = 512 * 2**20, 8 * 2**20
KEPT_ROWS, KEPT_ROWS_CPU = 1536 * 2**20, 128 * 2**20
SUMS, SUMS_CPU = 4096 * 2**20, 512 * 2**20

# Bytes that one decoder layer keeps for its backward, per token: (hidden, ffn, query, key/value width) coefficients.
# `mixed` is fp32 weights under bf16 autocast. A family whose attention repeats keys and values to the width of the
# queries keeps more of that width instead of the key/value width.
_KEPT = {"fp32": (24, 16, 8, 8), "mixed": (26, 8, 4, 4), "bf16": (16, 8, 4, 4)}
_REPEATED = {"fp32": (8, -8), "mixed": (4, -4), "bf16": (4, -4)}
# The same where queries and keys are normalised. Gated attention keeps more, and so do four norms.
_NORMED = {"fp32": (24, 16, 24, 8), "mixed": (26, 8, 14, 6), "bf16": (16, 8, 14, 6)}
_GATED = {"fp32": (24, 16, 40, 8), "mixed": (26, 8, 22, 8), "bf16": (20, 8, 22, 8)}
_FOUR_NORMS = {"fp32": (40, 16, 24, 8), "mixed": (42, 8, 16, 8), "bf16": (36, 8, 16, 8)}
# Where layers are not alike (Gemma 4): (hidden, that of each map of keys or values, ffn, query width, key/value width),
# and where they have inputs of their own (hidden, width of those); keys that were not made here are kept once.
_MIXED = {"fp32": (40, 0, 16, 24, 12), "mixed": (38, 2, 8, 16, 12), "bf16": (36, 0, 8, 16, 12)}
_INPUTS = {"fp32": (12, 24), "mixed": (10, 22), "bf16": (10, 16)}
# Linear attention by transformers' own code: (hidden, ffn, key width, key width repeated for every value head, value
# width, value heads, state of a head). The kernels of flash-linear-attention keep less.
_LINEAR = {
    "fp32": (24, 16, 25, 43, 44, 1600, 1 / 16),
    "mixed": (28, 8, 8, 37, 36, 934, 1 / 8),
    "bf16": (20, 8, 8, 37, 34, 934, 1 / 8),
}


@dataclass(frozen=True)
class Memory:
    """Bytes of one stage on one device.

    Attributes:
        weights: of the models, frozen and trained ones, as they are stored.
        verbalizers: of both sides.
        gradients: of what trains.
        optimizer: AdamW's moments.
        activations: what the passes keep of the backbones.
        losses: states at the target layers and vocabulary-sized buffers, or the widest moment of one decoder layer
            if that is more: they are not alive together.
    """

    weights: int
    verbalizers: int
    gradients: int
    optimizer: int
    activations: int
    losses: int

    @property
    def total(self) -> int:
        """Rough peak."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True)
class Divided:
    """What of a stage lies in pieces where several processes divide it (``sharding``), in bytes of one process.

    Attributes:
        student: weights, gradients and moments of what trains, and the small model's layers (``student``, ``both``).
        teacher: of the large model's layers and verbalizers beside that (``both``).
        gathered: what is whole again for a moment all the same: two units' weights and one's gradients, and what trains
            outside the layers, from the forward pass to the end of the backward.
        gathered_teacher: two of the large model's layers.
    """

    student: int
    teacher: int = 0
    gathered: int = 0
    gathered_teacher: int = 0


@dataclass(frozen=True)
class Workload:
    """What one micro-batch brings.

    Attributes:
        records: B.
        length: S, tokens of the longest record; the others are padded to it.
        responses: R, response tokens of the whole micro-batch.
        image_tokens: of the whole micro-batch.
    """

    records: int
    length: int
    responses: int
    image_tokens: int

    @property
    def tokens(self) -> int:
        """Positions of the padded micro-batch."""
        return self.records * self.length


def forward_bytes(facts: ModelFacts, load: Workload, number_bytes: int) -> int:
    """Peak of a forward pass that keeps nothing: the widest moment of one layer.

    With experts every token has a row for each of those that it goes to: as they are sorted and given back, four of the
    hidden width are there at once.
    """
    inner = 3 * facts.widest_ffn
    if (experts := facts.experts) is not None:
        rows = experts.chosen * max(4 * facts.hidden, facts.hidden + 3 * experts.ffn)
        inner = rows + facts.hidden * (experts.shared > 0)
    return load.tokens * number_bytes * (4 * facts.hidden + inner)


def backward_bytes(
    facts: ModelFacts, load: Workload, kind: str, *, checkpointing: bool, rank: int = 0
) -> tuple[int, int]:
    """What a backward pass through all decoder layers needs: what is kept from the forward, and its widest moment.

    Args:
        kind: ``fp32``, ``mixed`` (fp32 weights under autocast) or ``bf16`` (frozen bf16 weights with adapters).
        checkpointing: keep the layers' inputs only; the moment is then one layer's insides as well.
        rank: of the adapters on the linear maps of a layer, seven in most; 0: none.
    """
    number_bytes = 4 if kind == "fp32" else 2
    beside = number_bytes * load.length  # its row of the mask
    inputs = facts.mixed.inputs if facts.mixed else 0
    linear, kept_linear = facts.linear.layers if facts.linear else 0, kept_linear_per_token(facts, kind)
    if rank:
        # The narrow state of each adapter, and in bf16 each one's own copy of its input.
        adapters = rank * number_bytes
        copies = 9 * facts.hidden if kind == "bf16" else 0
        beside += (9 if inputs else 7) * adapters + copies
        kept_linear += 8 * adapters + copies
    moment = number_bytes * 3 * facts.widest_ffn  # gradients of one feed-forward layer while it is undone
    insides = [(each.count, kept_per_token(facts, kind, each) + beside) for each in facts.kinds]
    if checkpointing:
        states = 2 if kind == "bf16" else 4
        widest = max(*(inside for _, inside in insides), kept_linear if linear else 0)
        held = facts.layers * (states * facts.hidden + number_bytes * inputs)
        return load.tokens * held, load.tokens * (widest + moment)
    kept = sum(count * inside for count, inside in insides)
    return load.tokens * (kept + linear * kept_linear), load.tokens * moment


def kept_per_token(facts: ModelFacts, kind: str, layer: LayerKind | None = None) -> int:
    """Bytes that one decoder layer with attention keeps per token for its backward, the attention mask apart.

    Args:
        layer: which of its layers, where they are not alike; None: the first kind.
    """
    if facts.mixed is not None:
        layer = layer or facts.kinds[0]
        hidden, each, ffn, query, keyvalue = _MIXED[kind]
        hidden += each * ((layer.keyvalue > 0) + layer.values)
        kept = hidden * facts.hidden + ffn * layer.ffn + query * layer.query + keyvalue * layer.keyvalue
        if facts.mixed.inputs:
            wide, own = _INPUTS[kind]
            kept += wide * facts.hidden + own * facts.mixed.inputs
        return kept + 8 * facts.heads + 4 * layer.kv_heads * (layer.keyvalue > 0)
    if facts.qk_norm:
        table = _GATED if facts.gated else _FOUR_NORMS if facts.norms == 4 else _NORMED
        hidden, ffn, query, keyvalue = table[kind]
        kept = hidden * facts.hidden + ffn * facts.ffn + 8 * facts.heads + 4 * facts.kv_heads
        return kept + (query * facts.heads + keyvalue * facts.kv_heads) * facts.head_dim
    hidden, ffn, query, keyvalue = _KEPT[kind]
    if facts.model_type not in ("qwen2_vl", "qwen2_5_vl"):
        query, keyvalue = query + _REPEATED[kind][0], keyvalue + _REPEATED[kind][1]
    kept = hidden * facts.hidden + ffn * facts.ffn + 4 * facts.heads
    return kept + (query * facts.heads + keyvalue * facts.kv_heads) * facts.head_dim


def kept_linear_per_token(facts: ModelFacts, kind: str) -> int:
    """Bytes that one decoder layer with linear attention keeps per token for its backward; 0 in a model without."""
    if (one := facts.linear) is None:
        return 0
    widths = (
        facts.hidden, facts.ffn, one.keys, one.value_heads * one.key_dim, one.values, one.value_heads,
        one.value_heads * one.key_dim * one.value_dim,
    )  # fmt: skip
    return round(sum(each * width for each, width in zip(_LINEAR[kind], widths, strict=True)))


def cast_bytes(parameters: int, kind: str) -> int:
    """The bf16 copies of fp32 weights that autocast makes and the backward keeps."""
    return 2 * parameters if kind == "mixed" else 0


def taps_bytes(
    facts: ModelFacts, targets: int, responses: int, *, trained: bool, narrow: bool = False
) -> int:
    """States of the target layers at the response tokens, in fp32, with what a trained verbalizer keeps.

    ``narrow``: the verbalizers compute in bf16, and what they keep is half as wide.
    """
    kept = 0 if not trained else 3 if narrow else 6
    return responses * 4 * facts.hidden * targets * (1 + kept)


def tile_bytes(vocabulary: int, responses: int, *, heads: int, narrow: bool, on_cpu: bool) -> int:
    """Buffers of logits of a loss on ``heads`` heads; beyond the budgets their size does not grow with the batch."""
    logits = heads * responses * vocabulary * 4
    rectangles = min(RECTANGLES_CPU if on_cpu else RECTANGLES, 2 * logits)
    return rectangles + (min(KEPT_ROWS_CPU if on_cpu else KEPT_ROWS, logits) if narrow else 0)


def sums_bytes(facts: ModelFacts, layers: int, responses: int, *, narrow: bool, on_cpu: bool) -> int:
    """What the gradients of all pairs of ``layers`` small and large layers take, if they are taken along at all."""
    wanted = layers * responses * facts.hidden * 4
    return 0 if narrow or wanted > (SUMS_CPU if on_cpu else SUMS) else wanted
