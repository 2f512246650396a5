"""How layers are read and compared: the defaults of ``vlsi verbalize`` and ``vlsi match-layers``, and of Python."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from vlsi_cli.errors import ConfigError

#: Longest answer of a layer, in tokens.
MAX_NEW_TOKENS = 32
#: How many of a layer's likeliest tokens are told.
TOP_K = 5
#: Records over which the layers of two models are compared.
SAMPLES = 64
#: Draws of each batch for the drawn matches.
DRAWS = 100
#: Share of a run's steps that are its start, and its end.
ENDS = 0.1
#: Records read together where no configuration says how many.
BATCH_SIZE = 8


def require_counts(**given: Any) -> None:
    """Refuse numbers that count nothing; None is one that is not given. (Of the command line, its options see to it.)

    Raises:
        ConfigError: one is below 1, or no whole number.
    """
    for name, value in given.items():
        if value is not None and (not isinstance(value, Integral) or value < 1):
            raise ConfigError(f"{name} is {value!r}, and must be a whole number from 1 on")
