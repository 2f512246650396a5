"""The shape of a backbone, and the parameter counts that follow from it: arithmetic, no tensors.

Facts come from the built-in catalogue, from a folder's ``config.json``, or from the hub's cache on this
machine.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlsi_cli.config.experts import Experts, experts_of
from vlsi_cli.config.mixed import LayerKind, MixedLayers, mixed_of
from vlsi_cli.config.models import Architecture
from vlsi_cli.config.presence import weight_files

#: Families, and decoders of families that have several, with a bias on queries, keys and values.
ATTENTION_BIASED = frozenset({"qwen2_vl", "qwen2_5_vl", "llava_onevision", "qwen2"})
#: Those that normalise queries and keys per head.
QK_NORMED = frozenset(
    {"qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen3", "qwen3_moe", "gemma3", "gemma4"}
)
#: Families whose queries come with a gate of their width for what attention gives.
GATED = frozenset({"qwen3_5", "qwen3_5_moe"})
#: Norms of a decoder layer where there are not two of them.
NORMS = {"gemma3": 4, "gemma4": 4}
# What Gemma's public configs leave to the defaults of its class.
_UNSAID: dict[str, dict[str, Any]] = {
    "gemma3": {
        "vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "tie_word_embeddings": True,
    },
    "gemma4": {"vocab_size": 262_144, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
               "tie_word_embeddings": True},
}  # fmt: skip
_NOT_LANGUAGE = ("visual.", "vision", "connector", "multi_modal_projector", "image_newline")
_UNREAD = ("audio_tower.", "embed_audio.")
# What is stored beside parameters: bounds of clipped maps, factors and shifts.
_BUFFERS = ("input_min", "input_max", "output_min", "output_max", "std_bias", "std_scale", "layer_scalar")


@dataclass(frozen=True)
class LinearAttention:
    """Layers of linear attention (a gated delta rule) in the place of some layers of attention, as in Qwen3.5.

    Attributes:
        layers: how many of the decoder layers are of this kind.
        key_heads, value_heads: heads of keys and queries, and of values.
        key_dim, value_dim: width of each.
        kernel: width of the convolution over keys, queries and values.
    """

    layers: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int

    @property
    def keys(self) -> int:
        """Width of the keys of all heads, and of the queries."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Width of the values of all heads."""
        return self.value_heads * self.value_dim

    def parameters(self, hidden: int) -> int:
        """Of what stands in the place of attention: projections, gates and decay, convolution, norm."""
        mixed = 2 * self.keys + self.values
        maps = hidden * (mixed + 2 * self.values + 2 * self.value_heads)
        return maps + mixed * self.kernel + 2 * self.value_heads + self.value_dim

    def sides(self, hidden: int) -> int:
        """Inputs and outputs of its five linear maps, added up."""
        mixed = 2 * self.keys + self.values
        return 5 * hidden + mixed + 2 * self.values + 2 * self.value_heads


@dataclass(frozen=True)
class ModelFacts:
    """What the plan needs to know about a backbone.

    Attributes:
        name: for people, e.g. ``Qwen2-VL-2B``.
        model_type: the family as transformers spells it, e.g. ``qwen2_vl``.
        layers: decoder layers.
        hidden: width of the decoder.
        ffn: inner width of its feed-forward layers; with experts the width that a token meets.
        heads: attention heads.
        kv_heads: key/value heads.
        head_dim: width of a head.
        vocab: rows of the head, padding rows included.
        tied: whether the head is the embedding matrix.
        attention_bias: whether query, key and value projections have a bias.
        qk_norm: whether queries and keys are normalised per head.
        vision: parameters of vision tower and projector together; None when not known before loading.
        gated: whether queries come with a gate of their width for what attention gives.
        norms: norms of the hidden width in a decoder layer.
        linear: the layers of linear attention, in a model that has them beside those of attention.
        experts: what a feed-forward layer is, in a model whose tokens go to some of many.
        rounded: how the checkpoint's weights are rounded, in its own words, e.g. ``fp8``; empty: they are not.
        mixed: how its layers differ, in a model whose layers are otherwise not alike; ``ffn``, ``kv_heads`` and
            ``head_dim`` are then those of the first layer.
        unread: parameters of what is held and never fed (audio).
    """

    name: str
    model_type: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    attention_bias: bool
    qk_norm: bool
    vision: int | None
    gated: bool = False
    norms: int = 2
    linear: LinearAttention | None = None
    experts: Experts | None = None
    rounded: str = ""
    mixed: MixedLayers | None = None
    unread: int = 0

    @property
    def embedding_parameters(self) -> int:
        """The input embeddings (and the head too, when it is tied)."""
        return self.vocab * self.hidden

    @property
    def input_parameters(self) -> int:
        """What makes the inputs of all layers beside the embeddings, in a model that has them."""
        return (
            self.mixed.input_parameters(self.layers, self.hidden) if self.mixed and self.mixed.inputs else 0
        )

    @property
    def looked_up(self) -> int:
        """Of those, the table: its rows are taken out, and nothing is multiplied by the whole."""
        return self.mixed.input_vocab * self.layers * self.mixed.inputs if self.mixed else 0

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """Its decoder layers with attention, told apart by their shapes."""
        if self.mixed is not None:
            return self.mixed.kinds(self.layers, self.heads, self.kv_heads, self.head_dim, self.ffn)
        one = (self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads, True, self.head_dim)
        return (LayerKind(self.attention_layers, *one, self.ffn),)

    @property
    def widest_ffn(self) -> int:
        """Inner width of the widest feed-forward layer."""
        return max(kind.ffn for kind in self.kinds)

    @property
    def attention_layers(self) -> int:
        """Decoder layers that are not of linear attention."""
        return self.layers - (self.linear.layers if self.linear else 0)

    @property
    def layer_parameters(self) -> int:
        """One decoder layer: attention, gated feed-forward and norms; of several kinds of layers the largest."""
        if self.mixed is not None:
            return max(self.mixed.parameters(kind, self.hidden, self.experts) for kind in self.kinds)
        return max(self._attention(), self._linear()) + self._beside_attention()

    @property
    def decoder_parameters(self) -> int:
        """All decoder layers, without embeddings, final norm and head."""
        if self.mixed is not None:
            every = (
                (kind.count, self.mixed.parameters(kind, self.hidden, self.experts)) for kind in self.kinds
            )
            return sum(count * one for count, one in every)
        mixing = self.attention_layers * self._attention()
        mixing += self.linear.layers * self._linear() if self.linear else 0
        return mixing + self.layers * self._beside_attention()

    @property
    def idle_parameters(self) -> int:
        """Of all decoder layers: the experts that a token does not go to."""
        if self.experts is None:
            return 0
        return self.layers * (self.experts.parameters(self.hidden) - self.experts.active(self.hidden))

    def _attention(self) -> int:
        query, keyvalue = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (query * (1 + self.gated) + 2 * keyvalue) + query * self.hidden
        attention += (query + 2 * keyvalue) if self.attention_bias else 0
        return attention + (2 * self.head_dim if self.qk_norm else 0)

    def _linear(self) -> int:
        return self.linear.parameters(self.hidden) if self.linear else 0

    def _beside_attention(self) -> int:
        inner = self.experts.parameters(self.hidden) if self.experts else 3 * self.hidden * self.ffn
        return inner + self.norms * self.hidden

    @property
    def language_parameters(self) -> int:
        """The whole language model: embeddings, layers, final norm, head."""
        head = 0 if self.tied else self.embedding_parameters
        return (
            self.embedding_parameters + self.input_parameters + self.decoder_parameters + self.hidden + head
        )

    @property
    def parameters(self) -> int:
        """Everything that is known: the language model and, if known, the vision side, and what is never fed."""
        return self.language_parameters + (self.vision or 0) + self.unread

    def lora_parameters(self, rank: int) -> int:
        """Adapters of one rank on the linear maps of every decoder layer (seven with attention): rank x (in + out)."""
        if self.mixed is not None:
            return rank * sum(kind.count * self.mixed.sides(kind, self.hidden) for kind in self.kinds)
        query, keyvalue = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sides = (self.hidden + query) * 2 + (self.hidden + keyvalue) * 2 + query * self.gated
        every = self.attention_layers * sides + self.layers * (self.hidden + self.ffn) * 3
        every += self.linear.layers * self.linear.sides(self.hidden) if self.linear else 0
        return rank * every

    def verbalizer_parameters(self, architecture: Architecture) -> int:
        """One verbalizer without the head, which is the model's own (Table 4f; verb-FFN is 3 x h x h)."""
        one = {
            "verb-ffn": 3 * self.hidden**2,
            "ffn": 3 * self.hidden * self.ffn,
            "mlp": self.hidden**2,
            "decoder": self.layer_parameters,
        }
        return one[architecture.removesuffix("-x2")] * (2 if architecture.endswith("-x2") else 1)


def facts_from_folder(folder: Path, name: str | None = None) -> ModelFacts | None:
    """The facts of a checkpoint on disk, or None when its ``config.json`` leaves one of them unsaid."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    text = {**_UNSAID.get(str(config.get("model_type")), {}), **config, **(config.get("text_config") or {})}
    try:
        model_type = str(config["model_type"])
        hidden, heads = int(text["hidden_size"]), int(text["num_attention_heads"])
        experts, sizes = experts_of(text), _stored_sizes(folder)
        return ModelFacts(
            name=name or folder.name,
            model_type=model_type,
            layers=int(text["num_hidden_layers"]),
            hidden=hidden,
            ffn=experts.width if experts else int(text["intermediate_size"]),
            heads=heads,
            kv_heads=int(text.get("num_key_value_heads") or heads),
            head_dim=int(text.get("head_dim") or hidden // heads),
            vocab=int(text["vocab_size"]),
            tied=bool(text.get("tie_word_embeddings", False)),
            attention_bias=model_type in ATTENTION_BIASED or _decoder_of(text) in ATTENTION_BIASED,
            qk_norm=model_type in QK_NORMED or _decoder_of(text) in QK_NORMED,
            vision=_parameters_named(sizes, _NOT_LANGUAGE) if sizes else None,
            gated=model_type in GATED,
            norms=NORMS.get(model_type, 2),
            linear=_linear_attention(text),
            experts=experts,
            rounded=rounded(config),
            mixed=mixed_of(text),
            unread=_parameters_named(sizes, _UNREAD),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def rounded(config: dict[str, Any]) -> str:
    """How a checkpoint's weights are rounded, by its parsed ``config.json``, e.g. ``fp8``; empty: they are not."""
    quantization = config.get("quantization_config")
    return str(quantization.get("quant_method", "quantized")) if isinstance(quantization, dict) else ""


def _decoder_of(text: dict[str, Any]) -> str:
    """``model_type`` of a text config merged into its parent."""
    return str(text.get("model_type", ""))


def _linear_attention(text: dict[str, Any]) -> LinearAttention | None:
    """The layers of linear attention that a text config tells of, or None."""
    if "linear_num_value_heads" not in text:
        return None
    kinds = text.get("layer_types")
    layers, interval = int(text["num_hidden_layers"]), int(text.get("full_attention_interval") or 4)
    return LinearAttention(
        layers=kinds.count("linear_attention") if kinds else layers - layers // interval,
        key_heads=int(text["linear_num_key_heads"]),
        value_heads=int(text["linear_num_value_heads"]),
        key_dim=int(text["linear_key_head_dim"]),
        value_dim=int(text["linear_value_head_dim"]),
        kernel=int(text["linear_conv_kernel_dim"]),
    )


def _stored_sizes(folder: Path) -> dict[str, int]:
    """Number of values of each tensor of a checkpoint, from the headers of its files; none if one cannot be read."""
    shapes: dict[str, int] = {}
    for file in weight_files(folder):
        try:
            shapes.update(_tensor_sizes(file))
        except (OSError, ValueError, RecursionError, struct.error):
            return {}
    return shapes


def _parameters_named(sizes: dict[str, int], marks: tuple[str, ...]) -> int:
    """Parameters whose names have one of the marks."""
    return sum(
        size
        for name, size in sizes.items()
        if any(mark in name for mark in marks) and not name.endswith(_BUFFERS)
    )


def _tensor_sizes(file: Path) -> dict[str, int]:
    """Number of values of each tensor: the header is 8 bytes of length (little endian), then JSON."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > 100_000_000:
            raise ValueError("not a safetensors file")
        header: dict[str, Any] = json.loads(stream.read(length))
    return {name: math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
