"""Many continuations of one prompt at once, each followed only as deep as it needs.

Every decoder layer that is read continues the prompt in its own words, so the continuations ("branches") differ from
the first token on, but what they continue is the same. They are kept apart inside one sequence: the prompt's keys and
values exist once, each branch's tokens are appended behind them, and a mask lets a token see the prompt and its own
branch. A branch of depth d is a row in layers 1..d and is gone from layer d + 1 on: with the deepest branch first, the
rows of every layer are a leading slice of those of the layer before.

The decoder layers are transformers' own modules, called one by one with what the decoder itself would pass: hidden
states, rotary embeddings, a mask and the cache. Only the loop over them is here.

Shapes: n branches, H hidden width, S prompt positions, T positions that branches have appended to a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlsi_cli.engine.backbones.arguments import cache_argument
from vlsi_cli.engine.backbones.backbone import Backbone


class Branches:
    """Continuations of one prompt, one for each depth.

    Args:
        backbone: in eval mode, attending fully (:attr:`Backbone.attends_fully`), with the attention kernel ``sdpa`` or
            ``eager`` (others do not take a mask of this form).
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
        self._cache = DynamicCache()
        where = torch.tensor([0]), torch.tensor([self._prompt - 1])
        with self.backbone.tap(self.depths, rows=where[0], cols=where[1]) as tapped:
            self.backbone.forward_base(inputs, cache=self._cache)
            states = {depth: tapped[depth][0] for depth in self.depths}
        self._position = self._prompt + self.backbone.text_offset
        self._owners = []
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
        ids = torch.tensor([[tokens[depth] for depth in going]], device=device)
        hidden: Tensor = self.backbone.embeddings(ids)
        rotary = self.backbone.text_rotary(self._position)  # all branches are equally long
        self._owners.append(torch.tensor(going, device=device))
        found: dict[int, Tensor] = {}
        passed = 0
        # From each depth to the next all branches, ended ones too, have left keys in either every layer or none.
        for depth in (depth for depth in reversed(self.depths) if depth <= going[0]):
            rows = [branch for branch in going if branch >= depth]
            hidden = hidden[:, : len(rows)]
            mask = self._mask(rows, depth, hidden)
            for layer in self.backbone.layers[passed:depth]:
                output = layer(
                    hidden,
                    attention_mask=mask,
                    position_embeddings=rotary,
                    use_cache=True,
                    **cache_argument(layer, self._cache),
                )
                hidden = output if isinstance(output, Tensor) else output[0]
            found[depth] = hidden[0]
            passed = depth
        self._position += 1
        return found

    def _mask(self, branches: Sequence[int], depth: int, hidden: Tensor) -> Tensor:
        """What each branch sees in layer ``depth``: the prompt and itself. [1, 1, n, S + T], for transformers to add.

        Zero where it looks, the lowest number where it must not.
        """
        owners = torch.cat(self._owners)
        owners = owners[owners >= depth]  # of shallower branches this layer's cache holds nothing
        own = torch.tensor(branches, device=hidden.device)[:, None] == owners[None, :]
        seen = torch.cat([own.new_ones(len(branches), self._prompt), own], dim=1)
        mask = torch.zeros(seen.shape, dtype=hidden.dtype, device=hidden.device)
        return mask.masked_fill(~seen, torch.finfo(hidden.dtype).min)[None, None]
