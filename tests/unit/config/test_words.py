"""Words of the command line."""

from __future__ import annotations

import pytest

from vlsi_cli.config.words import layers_from_word
from vlsi_cli.errors import ConfigError


@pytest.mark.parametrize(
    ("word", "layers"),
    [
        ("3", (3,)),
        ("10,2, 6", (2, 6, 10)),
        ("2-26:4", (2, 6, 10, 14, 18, 22, 26)),
        ("1-3,3,28", (1, 2, 3, 28)),
        ("4-4", (4,)),
    ],
)
def test_layers(word: str, layers: tuple[int, ...]) -> None:
    assert layers_from_word(word) == layers


@pytest.mark.parametrize("word", ["", "0", "0-3", "5-2", "2-6:0", "all", "1,,2", "-3", "1.5", "2:4", "99999"])
def test_what_is_no_layer(word: str) -> None:
    with pytest.raises(ConfigError, match="is not a decoder layer or a range of them"):
        layers_from_word(word)
