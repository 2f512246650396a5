"""What a decoder takes of a text beside states and positions: what is looked up for tokens, and whose keys are read.

In most models that is a token's embedding and a layer's own keys. In Gemma 4 tokens that stand for pictures are looked
up as padding wherever they stand; in its small sizes every layer takes an input of its own of every token, and the last
layers read the keys and values of earlier ones.

Shapes: B rows, S positions, H hidden width, L decoder layers, D width of a layer's own input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlsi_cli.engine.backbones.backbone import Backbone


def key_layers(backbone: Backbone) -> tuple[int, ...]:
    """For each decoder layer, from 0, the one whose keys and values it reads: itself, or the last of its kind that has
    made any."""
    kinds = backbone.layer_kinds
    first = len(kinds) - (getattr(backbone.config.get_text_config(), "num_kv_shared_layers", 0) or 0)
    made = {kind: number for number, kind in enumerate(kinds[:first])}
    return tuple(number if number < first else made[kind] for number, kind in enumerate(kinds))


def as_embedded(backbone: Backbone, ids: Tensor) -> Tensor:
    """Tokens that a model has said itself as it looks them up when it goes on, whatever its ids say."""
    held = [getattr(backbone.config, name) for name in backbone.family.placeholders]
    places = torch.tensor([token for token in held if token is not None], device=ids.device)
    if not len(places):
        return ids
    return ids.masked_fill(torch.isin(ids, places), backbone.config.get_text_config().pad_token_id)


def token_tables(backbone: Backbone) -> list[nn.Embedding]:
    """What is looked up for each token: its embedding, and beside it, where there are any, its inputs of all layers."""
    beside = (getattr(backbone.decoder, name, None) for name in backbone.family.beside_embeddings)
    return [backbone.embeddings, *(table for table in beside if isinstance(table, nn.Embedding))]


def layer_inputs(backbone: Backbone, ids: Tensor, embedded: Tensor) -> Tensor | None:
    """What decoder layers take of tokens beside their states, ``[B, S, L, D]``; None where they take nothing.

    Args:
        ids: as they are looked up, ``[B, S]``.
        embedded: their embeddings, ``[B, S, H]``.
    """
    decoder: Any = backbone.decoder
    if len(token_tables(backbone)) == 1:
        return None
    made: Tensor = decoder.project_per_layer_inputs(embedded, decoder.get_per_layer_inputs(ids, embedded))
    return made
