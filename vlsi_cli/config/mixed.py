"""Decoder layers that are not alike, as Gemma 4 has them: arithmetic, no tensors.

Most of its layers see a window of the text and some the whole; those have other heads. In the small sizes the last
layers read the keys and values of earlier ones, are wider inside, and every layer takes an input of its own of every
token, which a second table of embeddings holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlsi_cli.config.experts import Experts


@dataclass(frozen=True)
class LayerKind:
    """Layers of one shape.

    Attributes:
        count: how many.
        query, keyvalue: widths of the queries and of the keys of all heads; no keys where others' are read.
        kv_heads: heads of keys and values, also of those that are read.
        values: whether values have a map of their own, or are keys.
        head_dim: width of a head.
        ffn: inner width of its feed-forward part.
    """

    count: int
    query: int
    keyvalue: int
    kv_heads: int
    values: bool
    head_dim: int
    ffn: int


@dataclass(frozen=True)
class MixedLayers:
    """How the layers of a decoder differ.

    Attributes:
        whole: layers that see the whole text.
        head_dim, kv_heads: of those layers; what a model's facts say is that of the others.
        keys_are_values: whether those layers have no map of values.
        shared: the last layers, which read keys and values of earlier ones.
        shared_whole: how many of them see the whole text.
        widening: how many times as wide inside the shared layers are.
        inputs: width of the input that every layer takes of every token; 0 without.
        input_vocab: tokens in the table of those inputs.
    """

    whole: int
    head_dim: int
    kv_heads: int
    keys_are_values: bool = False
    shared: int = 0
    shared_whole: int = 0
    widening: int = 1
    inputs: int = 0
    input_vocab: int = 0

    def kinds(self, layers: int, heads: int, kv_heads: int, head_dim: int, ffn: int) -> tuple[LayerKind, ...]:
        """The layers, told apart by their shapes."""
        found = []
        for shared in (False, True):
            for whole in (False, True):
                count = self._count(layers, shared, whole)
                dim, own = (self.head_dim, self.kv_heads) if whole else (head_dim, kv_heads)
                found.append(
                    LayerKind(
                        count=count,
                        query=heads * dim,
                        keyvalue=0 if shared else own * dim,
                        kv_heads=own,
                        values=not shared and not (whole and self.keys_are_values),
                        head_dim=dim,
                        ffn=ffn * (self.widening if shared else 1),
                    )
                )
        return tuple(kind for kind in found if kind.count)

    def _count(self, layers: int, shared: bool, whole: bool) -> int:
        seeing = self.shared_whole if shared else self.whole - self.shared_whole
        every = self.shared if shared else layers - self.shared
        return seeing if whole else every - seeing

    def parameters(self, kind: LayerKind, hidden: int, experts: Experts | None = None) -> int:
        """One layer of a kind: attention, feed-forward part, norms, and what makes its input a part of the states.

        Args:
            experts: what its feed-forward part is made of; they have three norms more, and a factor each.
        """
        every = sum(self.linears(kind, hidden)[0]) + self._norms(kind, hidden)
        if experts is None:
            return every
        return every - 3 * hidden * kind.ffn + experts.parameters(hidden) + 3 * hidden + experts.count

    def sides(self, kind: LayerKind, hidden: int) -> int:
        """Inputs and outputs of the linear maps of a layer, added up."""
        return sum(self.linears(kind, hidden)[1])

    def linears(self, kind: LayerKind, hidden: int) -> tuple[list[int], list[int]]:
        """Numbers of each linear map of a layer, and inputs and outputs of each."""
        maps = [kind.query] * 2 + [kind.ffn] * 3 + [self.inputs] * (2 * (self.inputs > 0))
        maps += [kind.keyvalue] * ((kind.keyvalue > 0) + kind.values)
        return [hidden * each for each in maps], [hidden + each for each in maps]

    def _norms(self, kind: LayerKind, hidden: int) -> int:
        of_heads = kind.head_dim * (1 + (kind.keyvalue > 0))
        return hidden * (4 + (self.inputs > 0)) + of_heads

    def input_parameters(self, layers: int, hidden: int) -> int:
        """What makes the inputs of all layers: the table, a map of the embeddings, a norm."""
        return (self.input_vocab + hidden) * layers * self.inputs + self.inputs


def mixed_of(text: dict[str, Any]) -> MixedLayers | None:
    """How the layers of a text config differ, or None where it is not one of Gemma 4.

    Raises:
        KeyError, TypeError, ValueError: it leaves something unsaid.
    """
    if text.get("model_type") != "gemma4_text":
        return None
    layers = int(text["num_hidden_layers"])
    kinds = list(text.get("layer_types") or _usual(layers))
    kinds[-1] = _WHOLE
    shared = int(text.get("num_kv_shared_layers") or 0)
    same = bool(text.get("attention_k_eq_v", False))
    said = (text.get("per_layer_config") or {}).get(str(kinds.index(_WHOLE)), {})
    head_dim = said.get("head_dim") or text.get("global_head_dim") or 512
    other = text.get("num_global_key_value_heads") if same else None
    return MixedLayers(
        whole=kinds.count(_WHOLE),
        head_dim=int(head_dim),
        kv_heads=int(said.get("num_key_value_heads") or other or text["num_key_value_heads"]),
        keys_are_values=same,
        shared=shared,
        shared_whole=kinds[layers - shared :].count(_WHOLE),
        widening=2 if text.get("use_double_wide_mlp") else 1,
        inputs=int(text.get("hidden_size_per_layer_input", 256) or 0),
        input_vocab=int(text.get("vocab_size_per_layer_input") or text["vocab_size"]),
    )


_WHOLE = "full_attention"


def _usual(layers: int) -> list[str]:
    return [_WHOLE if (number + 1) % 6 == 0 else "sliding_attention" for number in range(layers)]
