"""What the forward passes of transformers are called with, which differs between its versions."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

from torch import nn


@lru_cache  # to look is as slow as a layer
def parameters(function: Any) -> frozenset[str]:
    """Names of a function's parameters."""
    return frozenset(inspect.signature(function).parameters)


@lru_cache
def positions(function: Any) -> tuple[str, ...]:
    """Names of a method's parameters in their order, without the object itself."""
    return tuple(inspect.signature(function).parameters)[1:]


def cache_argument(module: nn.Module, cache: Any) -> dict[str, Any]:
    """A cache of keys and values by the name that a model or decoder layer takes it under.

    ``cache`` from transformers 5.24 on, ``past_key_values`` before.
    """
    return {"cache" if "cache" in parameters(type(module).forward) else "past_key_values": cache}
