"""Many continuations of one prompt at once, each followed only as deep as it needs.

Every decoder layer that is read continues the prompt in its own words, so the continuations ("branches") differ from
the first token on, but what they continue is the same. They are kept apart inside one sequence: the prompt's keys and
values exist once, each branch's tokens are appended behind them, and a mask lets a token see the prompt and its own
branch. A branch of depth d is a row in layers 1..d and is gone from layer d + 1 on: with the deepest branch first, the
rows of every layer are a leading slice of those of the layer before.

Where a layer attends to a window only, the mask ends there: the cache holds what is behind it too. Where it reads the
keys and values of an earlier layer, they are that layer's, of all branches that have passed it. A layer of linear
attention sums the text up in a state instead of keeping it, so there each branch has a copy of the prompt's state, and
the branches are a batch.

The decoder layers are transformers' own modules, called one by one with what the decoder itself would pass: hidden
states, rotary embeddings, a mask and the cache. Only the loop over them is here.

Shapes: n branches, H hidden width, S prompt positions, T positions that branches have appended to a layer.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlsi_cli.engine.backbones.arguments import cache_argument, parameters
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.lookups import as_embedded, key_layers, layer_inputs

# Kinds of decoder layers, in transformers' words.
_WINDOWED, _SUMMED_UP = "sliding_attention", "linear_attention"


def can_branch(backbone: Backbone) -> bool:
    """Whether all decoder layers of a model are of kinds that :class:`Branches` knows, and so is its attention."""
    if backbone.config.get_text_config()._attn_implementation not in ("sdpa", "eager"):
        return False
    kinds = set(backbone.layer_kinds)
    return kinds <= {"full_attention", _WINDOWED} or kinds <= {"full_attention", _SUMMED_UP}


class Branches:
    """Continuations of one prompt, one for each depth.

    Args:
        backbone: in eval mode, one that :func:`can_branch`, with the attention kernel ``sdpa`` or ``eager`` (others do
            not take a mask of this form).
        depths: how many decoder layers each branch passes: distinct numbers from 1 to L.
    """

    def __init__(self, backbone: Backbone, depths: Sequence[int]) -> None:
        self.backbone = backbone
        self.depths = tuple(sorted(depths, reverse=True))
        if len(set(self.depths)) != len(self.depths) or not self.depths:
            raise ValueError("depths must be distinct numbers")
        self._cache: Any = None
        self._prompt = self._position = 0
        self._owners: list[Tensor] = []
        self._states: dict[int, list[int]] = {}
        self._holders = key_layers(backbone)

    def begin(self, inputs: dict[str, Any]) -> dict[int, Tensor]:
        """Read the prompt, once and through all layers.

        Args:
            inputs: one prompt, without padding, on the backbone's device.

        Returns:
            For each depth the raw state of the prompt's last position after that many layers, [H].
        """
        from transformers import DynamicCache

        rows, self._prompt = inputs["input_ids"].shape
        if rows != 1:
            raise ValueError(f"branches continue one prompt, not {rows}")
        # only the states of linear attention need a cache of their own make; windows are in the masks
        summed_up = _SUMMED_UP in self.backbone.layer_kinds
        self._cache = (
            DynamicCache(config=self.backbone.config.get_text_config()) if summed_up else DynamicCache()
        )
        where = torch.tensor([0]), torch.tensor([self._prompt - 1])
        with self.backbone.tap(self.depths, rows=where[0], cols=where[1]) as tapped:
            self.backbone.forward_base(inputs, cache=self._cache)
            states = {depth: tapped[depth][0] for depth in self.depths}
        self._position = self._prompt + self.backbone.text_offset
        self._owners, self._states = [], {}
        return states

    def advance(self, tokens: Mapping[int, int]) -> dict[int, Tensor]:
        """Append one token to each branch that goes on.

        Args:
            tokens: depth -> token; a branch that is left out has ended and must not come back.

        Returns:
            For each depth up to the deepest that goes on: the raw states after that many layers, [n, H], of the
            branches that go on so far, deepest first. The first row is the deepest branch's; the last one is that of
            the branch of this very depth, if it goes on.
        """
        going = [depth for depth in self.depths if depth in tokens]
        device = self.backbone.device
        ids = as_embedded(self.backbone, torch.tensor([[tokens[depth] for depth in going]], device=device))
        hidden: Tensor = self.backbone.embeddings(ids)
        own = layer_inputs(self.backbone, ids, hidden)
        kinds, holders = self.backbone.layer_kinds, self._holders
        # all branches are equally long
        rotary = {kind: self.backbone.text_rotary(self._position, kind) for kind in set(kinds)}
        # Ministral's queries grow with it. Where a token has several positions, layers take only what is made of them.
        m_rope = hasattr(self.backbone.base, "rope_deltas")
        position = {} if m_rope else {"position_ids": torch.full((1, 1), self._position, device=device)}
        self._owners.append(torch.tensor(going, device=device))
        found: dict[int, Tensor] = {}
        lent: UserDict[str, Any] = UserDict()  # keys and values that layers leave for later ones
        passed = 0
        # From each depth to the next all branches, ended ones too, have left keys in either every layer or none.
        for depth in (depth for depth in reversed(self.depths) if depth <= going[0]):
            rows = [branch for branch in going if branch >= depth]
            hidden = hidden[:, : len(rows)]
            # of a layer's own keys, those of all layers up to this depth have the same owners
            keys = [(kinds[n], passed if holders[n] == n else holders[n]) for n in range(passed, depth)]
            masks = {(kind, holder): self._mask(kind, rows, holder, hidden) for kind, holder in set(keys)}
            for number in range(passed, depth):
                layer, kind = self.backbone.layers[number], kinds[number]
                if summed_up := kind == _SUMMED_UP:
                    self._give_states(number, rows)
                more: dict[str, Any] = {} if own is None else {"per_layer_input": own[:, : len(rows), number]}
                if "shared_kv_states" in parameters(type(layer).forward):
                    more["shared_kv_states"] = lent
                output = layer(
                    hidden.transpose(0, 1) if summed_up else hidden,
                    attention_mask=masks[keys[number - passed]],
                    position_embeddings=rotary[kind],
                    use_cache=True,
                    **position,
                    **more,
                    **cache_argument(layer, self._cache),
                )
                hidden = output if isinstance(output, Tensor) else output[0]
                hidden = hidden.transpose(0, 1) if summed_up else hidden
            found[depth] = hidden[0]
            passed = depth
        self._position += 1
        return found

    def _give_states(self, number: int, branches: list[int]) -> None:
        """Let layer ``number``, from 0, have the states of these branches: at first each has the prompt's."""
        held = self._states.get(number)
        if held != branches:
            rows = [0] * len(branches) if held is None else [held.index(branch) for branch in branches]
            self._cache.layers[number].reorder_cache(torch.tensor(rows, device=self.backbone.device))
            self._states[number] = branches

    def _mask(self, kind: str, branches: Sequence[int], holder: int, hidden: Tensor) -> Tensor | None:
        """What each branch sees among the keys of layer ``holder``, from 0: the prompt and itself. [1, 1, n, S + T].

        For transformers to add: zero where it looks, the lowest number where it must not. None for a layer that looks
        at a state.
        """
        if kind == _SUMMED_UP:
            return None
        owners = torch.cat(self._owners)
        here = owners > holder  # of shallower branches this layer's cache holds nothing
        own = torch.tensor(branches, device=hidden.device)[:, None] == owners[None, here]
        seen = torch.cat([own.new_ones(len(branches), self._prompt), own], dim=1)
        if kind == _WINDOWED:
            lengths = torch.tensor([len(each) for each in self._owners], device=hidden.device)
            steps = torch.arange(len(lengths), device=hidden.device).repeat_interleave(lengths)
            places = torch.cat([torch.arange(-self._prompt, 0, device=hidden.device), steps[here]])
            seen &= places > len(lengths) - 1 - self.backbone.config.get_text_config().sliding_window
        mask = torch.zeros(seen.shape, dtype=hidden.dtype, device=hidden.device)
        return mask.masked_fill(~seen, torch.finfo(hidden.dtype).min)[None, None]
