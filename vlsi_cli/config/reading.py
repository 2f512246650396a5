"""How layers are read and compared: the defaults of ``vlsi verbalize`` and ``vlsi match-layers``, and of Python."""

from __future__ import annotations

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
