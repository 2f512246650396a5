"""What enters the language head behind every layer while each layer's own answer grows.

Two ways to the same numbers: :class:`SharedPrompt` reads the prompt once and computes nothing twice;
:class:`Recomputed` runs the whole model on the whole text for every token of every layer, which serves the
verbalizers that the first cannot: decoder layers, which read whole sequences.

Shapes: H hidden width, S positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.branches import Branches, can_branch
from vlsi_cli.engine.backbones.lookups import as_embedded, token_tables
from vlsi_cli.engine.data.tokens import TOKEN_TYPES
from vlsi_cli.engine.verbalizing.verbalizer import Verbalizers

#: Layer -> what enters the head behind it, [H].
Heads = dict[int, Tensor]


class Following(Protocol):
    """Head inputs of layers, token by token; the last decoder layer is always one of them."""

    layer_tokens: int
    """Tokens computed so far, once for every decoder layer they passed."""

    def begin(self, inputs: dict[str, Any]) -> tuple[Heads, Heads]:
        """Read one prompt: what predicts each layer's first token, twice, since all still agree on the text."""

    def advance(self, tokens: Mapping[int, int]) -> tuple[Heads, Heads]:
        """Append one token to the answer of each layer that goes on.

        Returns:
            What predicts the next token of each layer's own answer that goes on; and what every layer makes of the
            *final* answer at that place (empty once that has ended, or when nobody wants it).
        """


def enter_head(
    backbone: Backbone,
    verbalizers: Verbalizers | None,
    layer: int,
    state: Tensor,
    call: dict[str, Any] | None = None,
) -> Tensor:
    """What a layer's raw state enters the head as: through its verbalizer, or only the final norm (the logit lens).

    The last layer is the model itself: final norm and head.

    Args:
        state: [..., H], or [1, S, H] for verbalizers that read sequences.
        call: keyword arguments of that layer, for those.
    """
    if verbalizers is None or layer == backbone.num_layers:
        normed: Tensor = backbone.final_norm(state)
        return normed
    entered: Tensor = verbalizers(layer, state, call)
    return entered


def follow(
    backbone: Backbone, verbalizers: Verbalizers | None, layers: Sequence[int], *, along: bool = False
) -> Following:
    """The quickest way that is right for this model and these verbalizers.

    Args:
        layers: distinct decoder layers from 1, the last among them.
        along: whether every layer is to be read along the final answer too.
    """
    shared = can_branch(backbone) and not (verbalizers is not None and verbalizers.needs_sequence)
    way = SharedPrompt if shared else Recomputed
    return way(backbone, verbalizers, layers, along=along)


class SharedPrompt:
    """One pass over the prompt; then all layers' answers grow in one batch that gets narrower with depth."""

    def __init__(
        self,
        backbone: Backbone,
        verbalizers: Verbalizers | None,
        layers: Sequence[int],
        *,
        along: bool = False,
    ) -> None:
        self._backbone, self._verbalizers, self._along = backbone, verbalizers, along
        self._branches = Branches(backbone, layers)
        self.layer_tokens = 0

    def begin(self, inputs: dict[str, Any]) -> tuple[Heads, Heads]:
        """See :class:`Following`."""
        states = self._branches.begin(inputs)
        self.layer_tokens = inputs["input_ids"].numel() * self._backbone.num_layers
        heads = {layer: self._enter(layer, states[layer]) for layer in sorted(states)}
        return heads, heads

    def advance(self, tokens: Mapping[int, int]) -> tuple[Heads, Heads]:
        """See :class:`Following`."""
        states = self._branches.advance(tokens)
        self.layer_tokens += sum(tokens)  # a layer's own number is how many layers its token passes
        own = {layer: self._enter(layer, states[layer][-1]) for layer in sorted(tokens)}
        if not self._along or self._backbone.num_layers not in tokens:
            return own, {}
        return own, {layer: self._enter(layer, rows[0]) for layer, rows in states.items()}

    def _enter(self, layer: int, state: Tensor) -> Tensor:
        return enter_head(self._backbone, self._verbalizers, layer, state)


class Recomputed:
    """A whole forward pass for every token of every layer's answer: slow, and right for any verbalizer."""

    def __init__(
        self,
        backbone: Backbone,
        verbalizers: Verbalizers | None,
        layers: Sequence[int],
        *,
        along: bool = False,
    ) -> None:
        self._backbone, self._verbalizers, self._along = backbone, verbalizers, along
        self._layers = tuple(layers)
        self._inputs: dict[str, Any] = {}
        self._added: dict[int, list[int]] = {layer: [] for layer in layers}
        self.layer_tokens = 0

    def begin(self, inputs: dict[str, Any]) -> tuple[Heads, Heads]:
        """See :class:`Following`."""
        self._inputs = inputs
        heads = self._read([], self._layers)
        return heads, heads

    def advance(self, tokens: Mapping[int, int]) -> tuple[Heads, Heads]:
        """See :class:`Following`."""
        own: Heads = {}
        along: Heads = {}
        last = self._backbone.num_layers
        for layer, token in tokens.items():
            self._added[layer].append(token)
            shown = self._along and layer == last
            heads = self._read(self._added[layer], self._layers if shown else (layer,))
            own[layer] = heads[layer]
            along = heads if shown else along
        return own, along

    def _read(self, added: Sequence[int], layers: Sequence[int]) -> Heads:
        inputs = dict(self._inputs)
        last = int(inputs["input_ids"][0, -1])
        for name, fill in {"input_ids": last, "attention_mask": 1, **dict.fromkeys(TOKEN_TYPES, 0)}.items():
            if name in inputs:
                new = inputs[name].new_full((1, len(added)), fill)
                inputs[name] = torch.cat([inputs[name], new], dim=1)
        with _ending_in(self._backbone, added), self._backbone.tap(layers, calls=True) as tapped:
            self._backbone.forward_base(inputs)
            heads = {
                layer: enter_head(
                    self._backbone, self._verbalizers, layer, tapped[layer], tapped.call[layer]
                )[0, -1]
                for layer in layers
            }
        self.layer_tokens += inputs["input_ids"].numel() * self._backbone.num_layers
        return heads


@contextmanager
def _ending_in(backbone: Backbone, added: Sequence[int]) -> Iterator[None]:
    """Within, a text's last tokens are looked up as these, whatever their ids say.

    A layer may come to say a token that stands for a picture. As ids the model would miss the picture's features;
    behind a cache, as in generation, it is a token like any other.
    """
    if not added:
        yield
        return
    ids = as_embedded(backbone, torch.tensor([added], device=backbone.device))

    def ending_in(said: Tensor) -> Any:
        def end(module: nn.Module, args: Any, embedded: Tensor) -> Tensor:
            return torch.cat([embedded[:, : -len(added)], said.to(embedded.dtype)], dim=1)

        return end

    with ExitStack() as stack:
        for table, said in [(table, table(ids)) for table in token_tables(backbone)]:
            stack.callback(table.register_forward_hook(ending_in(said)).remove)
        yield
