"""The language side as graphs: token embeddings, and the decoder with its cache and head.

Qwen3-VL's pictures say more than what takes the place of their tokens: DeepStack features are added to what the first
decoder layers say at those places. They travel with the embeddings, side by side in one wide row, so that whatever puts
features in the places of tokens carries them too; rows of text end in zeros, which add nothing.

Shapes: B rows, S new positions, P positions in the cache, K logits asked for, H hidden width, W = (1 + n) H with n
DeepStack features (none in most families), V vocabulary rows, G key/value heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlsi_cli.engine.backbones.arguments import cache_argument


@contextmanager
def deepstack_beside(decoder: nn.Module) -> Iterator[None]:
    """Let Qwen3-VL's decoder add features of all positions, [B, S, H], where its code scatters those of pictures."""
    stock = "_deepstack_process"
    if hasattr(decoder, stock):
        setattr(decoder, stock, lambda states, places, features: states + features.to(states.dtype))
    try:
        yield
    finally:
        if stock in vars(decoder):
            delattr(decoder, stock)


class Embeddings(nn.Module):
    """``input_ids`` [B, S] -> ``inputs_embeds`` [B, S, W]. The caller puts picture features in their places.

    Args:
        embeddings: the token embeddings.
        stacked: how many DeepStack features a picture has.
    """

    def __init__(self, embeddings: nn.Embedding, stacked: int = 0) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.room = stacked * embeddings.embedding_dim

    def forward(self, input_ids: Tensor) -> Tensor:
        """Rows of the embedding matrix."""
        rows: Tensor = self.embeddings(input_ids)
        return F.pad(rows.float(), (0, self.room)) if self.room else rows.float()


class Decoder(nn.Module):
    """Decoder, cache and head in one graph, for the first pass and for every later one.

    Positions are an input: the graph knows nothing of pictures. The mask is causal, and hides padding by
    ``attention_mask`` [B, P + S].

    Args:
        decoder: embeddings to final-normed states.
        head: the language head.
        keep: give logits of the last ``num_logits_to_keep`` positions only (0: of all), as an input of the graph.
        stacked: how many DeepStack features a picture has; call it inside :func:`deepstack_beside`.
    """

    def __init__(self, decoder: nn.Module, head: nn.Linear, *, keep: bool, stacked: int = 0) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = head
        self.keep = keep
        self.stacked = stacked

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        num_logits_to_keep: Tensor | None,
        past: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits and the grown cache.

        Args:
            inputs_embeds: [B, S, W].
            attention_mask: [B, P + S], 1 for tokens and 0 for padding.
            position_ids: [3, B, S] in time, height and width (M-RoPE), or [B, S].
            num_logits_to_keep: [] or None.
            past: a pair a layer, keys and values [B, G, P, D].

        Returns:
            logits [B, K, V], and keys and values of all layers, [B, G, P + S, D] each.
        """
        from transformers import DynamicCache

        new, total = inputs_embeds.shape[1], attention_mask.shape[1]
        columns = torch.arange(total, device=inputs_embeds.device)
        rows = torch.arange(new, device=inputs_embeds.device)[:, None] + (total - new)
        allowed = (columns[None, :] <= rows)[None, None] & attention_mask.bool()[:, None, None, :]
        # A row of padding would see nothing, and a softmax over nothing is not a number: each row sees itself.
        allowed = allowed | (columns[None, :] == rows)[None, None]  # [B, 1, S, P + S]
        cache: Any = DynamicCache(past)
        embeds, *stacked = inputs_embeds.to(self.head.weight.dtype).chunk(1 + self.stacked, dim=-1)
        beside = {"deepstack_visual_embeds": stacked} if stacked else {}
        states = self.decoder(
            inputs_embeds=embeds,
            attention_mask=allowed,
            position_ids=position_ids,
            **cache_argument(self.decoder, cache),
            **beside,
            use_cache=True,
        ).last_hidden_state
        if num_logits_to_keep is not None:
            # 0 means all: the first position kept is S - n, or 0 for n = 0
            kept = torch.arange(new, device=states.device)
            first = torch.where(num_logits_to_keep > 0, new - num_logits_to_keep, 0)
            states = states[:, kept[kept >= first]]
        logits = self.head(states).float()
        return logits, [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


class MergedEmbeddings(nn.Module):
    """``input_ids`` [B, S] and ``image_features`` [F, W] -> ``inputs_embeds`` [B, S, W], features in their places.

    F may be 0, as in every pass after the first.

    Args:
        embeddings: the token embeddings.
        image_token_id: the token that each feature replaces.
        stacked: how many DeepStack features a picture has.
    """

    def __init__(self, embeddings: nn.Embedding, image_token_id: int, stacked: int = 0) -> None:
        super().__init__()
        self.rows = Embeddings(embeddings, stacked)
        self.image_token_id = image_token_id

    def forward(self, input_ids: Tensor, image_features: Tensor) -> Tensor:
        """Rows of the embedding matrix, or features."""
        rows: Tensor = self.rows(input_ids)
        here = input_ids == self.image_token_id
        number = (here.flatten().cumsum(0) - 1).clamp(min=0).view_as(input_ids)
        # One row more, so that there is something to take where there is no feature at all; the limit, a tensor for
        # the exporter's sake, keeps a stray token from reading past the end.
        padded = torch.cat([image_features, image_features.new_zeros(1, rows.shape[-1])])
        limit = torch.ones_like(image_features[:, :1], dtype=torch.long).sum()
        return torch.where(here[..., None], padded[torch.minimum(number, limit)], rows)
