"""What a model would be trained on, piece by piece, for a person to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlsi_cli.engine.data.template import Encoded

_UNFINISHED = "�"


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens shown together: one token as a rule, a run of image tokens, or the bytes of one
    character.

    Attributes:
        text: as the tokenizer decodes it; of an image run, one image token.
        tokens: how many tokens.
        trained: whether they are response tokens.
        image: whether they are image tokens.
    """

    text: str
    tokens: int
    trained: bool
    image: bool = False


def pieces(encoded: Encoded, tokenizer: Any, image_token_ids: tuple[int, ...]) -> list[Piece]:
    """The record's tokens in order, decoded, runs of one image token collapsed."""
    result: list[Piece] = []
    held: list[int] = []
    ids, flags = encoded.input_ids.tolist(), encoded.trained.tolist()
    for position, (token, trained) in enumerate(zip(ids, flags, strict=True)):
        if token in image_token_ids:
            text = tokenizer.decode([token])
            if result and result[-1].image and result[-1].text == text and result[-1].trained == trained:
                result[-1] = Piece(text, result[-1].tokens + 1, trained, image=True)
            else:
                result.append(Piece(text, 1, trained, image=True))
            continue
        held.append(token)
        text = tokenizer.decode(held)
        last = (
            position + 1 == len(ids) or flags[position + 1] != trained or ids[position + 1] in image_token_ids
        )
        # A character of several bytes may be several tokens, which decode to it only together.
        if last or not text.endswith(_UNFINISHED):
            result.append(Piece(text, len(held), trained))
            held = []
    return result
