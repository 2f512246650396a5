"""Which tokens stand for pictures, and how a model is told of them."""

from __future__ import annotations

import re
from typing import Any

from vlsi_cli.errors import ModelError

#: Names of the inputs that tell image tokens (1) from text (0): of most models, and of Gemma 3.
TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")


def token_types_name(processor: Any) -> str | None:
    """The name under which a model takes the types of tokens, or None for one that does not."""
    names, own = processor.model_input_names, processor.tokenizer.model_input_names
    # a tokenizer's own token_type_ids tell first and second sentences apart, and no model here takes those
    return next((name for name in reversed(TOKEN_TYPES) if name in names and name not in own), None)


def expanded(segments: list[str], token: str, expansions: list[str]) -> list[str]:
    """Each ``token`` in the segments replaced by the next expansion."""
    rest = iter(expansions)
    return [re.sub(re.escape(token), lambda _: next(rest), segment) for segment in segments]


def image_token_ids(processor: Any) -> list[int]:
    """Tokens that a processor writes for the features of pictures.

    Raises:
        ModelError: it does not say.
    """
    ids = getattr(processor, "image_token_ids", None) or [getattr(processor, "image_token_id", None)]
    known = [int(i) for i in ids if i is not None]
    if not known:
        raise ModelError(f"{type(processor).__name__} does not say which token stands for an image")
    return known
