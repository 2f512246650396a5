"""Chat templates of models that can think before they answer.

Such a template (Qwen3.5's, say) puts thoughts between ``<think>`` and ``</think>`` in front of an answer. It is told by
a variable whether the next answer is to be thought about: if so, the prompt ends inside an open block, and otherwise
behind an empty one. When the talk goes on, blocks of earlier answers are dropped.

Here a response is prompted for as it was given: without thoughts, behind an empty block; with thoughts, inside an open
one, and the thoughts and the end of the block are part of the response.

Other templates (those of Qwen3-VL's thinking models) cannot be told and leave the block open always: there the end of
the block is part of every response, and a response without thoughts is one whose block is closed at once.

Gemma 4's are told too, by the same variable, and have other words for it: thoughts stand in a channel, between
``<|channel>thought`` and ``<channel|>``, and a token among the system's words asks for them, so for all answers of a
talk or for none. They write no thoughts into a response, so that is done here. In data, and in what models are said to
have answered, thoughts are a block as everywhere.

Mistral's stand between ``[THINK]`` and ``[/THINK]``, and no template asks for them, unless by the system's words. They
are written into a response that has some, and stay when the talk goes on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

OPEN, CLOSE = "<think>", "</think>"
#: The variable by which templates are told.
SWITCH = "enable_thinking"
#: Begin and end of a channel, and the word of the one that holds thoughts; what asks for them.
CHANNEL, CHANNEL_END, _THOUGHT, _ASKED = "<|channel>", "<channel|>", "thought", "<|think|>"
CHANNEL_TOKENS = frozenset({CHANNEL, CHANNEL_END, _ASKED})
#: Begin and end of thoughts in Mistral's tokens.
MARK, MARK_END = "[THINK]", "[/THINK]"
_BLOCK = re.compile(f"{OPEN}.*?{CLOSE}\\n*", re.DOTALL)


def can_be_told(template: object) -> bool:
    """Whether a chat template can be told to think or not to."""
    return SWITCH in str(template)


def in_channels(template: object) -> bool:
    """Whether a chat template that can be told has thoughts in a channel."""
    return can_be_told(template) and CHANNEL in str(template)


def channel(text: str) -> str:
    """What stands in front of a response's words where a talk is thought about: its thoughts, or an empty channel."""
    thoughts = parts(text)[0] if has_thoughts(text) else ""
    return f"{CHANNEL}{_THOUGHT}\n" + (f"{thoughts}\n" if thoughts else "") + CHANNEL_END


def words(text: str) -> str:
    """A response without its block of thoughts."""
    return parts(text)[1] if has_thoughts(text) else text


def has_marks(tokenizer: Any) -> bool:
    """Whether a tokenizer has Mistral's tokens for thoughts."""
    return None not in _ids(tokenizer, MARK, MARK_END)


def marked(text: str) -> str:
    """A response as Mistral's templates write it: its thoughts, if it has any, between tokens instead of in a block."""
    thoughts, said = parts(text) if has_thoughts(text) else ("", text)
    return f"{MARK}{thoughts}{MARK_END}{said}" if thoughts else said


def _ids(tokenizer: Any, *tokens: str) -> list[int | None]:
    found = [
        tokenizer.convert_tokens_to_ids(token) for token in tokens
    ]  # of the unknown one, where it has one
    there = [id is not None and tokenizer.convert_ids_to_tokens(id) for id in found]
    return [id if token == one else None for id, token, one in zip(found, tokens, there, strict=True)]


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens that a model has said, without special ones; thoughts in a channel or marked, as a block."""
    held = list(ids)
    pairs = (_ids(tokenizer, *pair) for pair in ((CHANNEL, CHANNEL_END), (MARK, MARK_END)))
    begin, end = next((pair for pair in pairs if None not in pair and pair[0] in held), (None, None))
    if begin is None or end is None:
        return str(tokenizer.decode(held, skip_special_tokens=True))
    last = len(held) - 1 - held[::-1].index(end) if end in held else len(held)
    thoughts, said = (
        str(tokenizer.decode(part, skip_special_tokens=True)).strip()
        for part in (held[:last], held[last + 1 :])
    )
    thoughts = thoughts.removeprefix(_THOUGHT).strip()
    if end not in held:
        return f"{OPEN}\n{thoughts}"
    return f"{OPEN}\n{thoughts}\n{CLOSE}\n\n{said}" if thoughts else said


def is_open(prompt: str) -> bool:
    """Whether a prompt ends inside a block of thoughts that has just begun."""
    return prompt.rstrip().endswith(OPEN)


def has_thoughts(text: str) -> bool:
    """Whether a response begins with a block of thoughts."""
    return text.lstrip().startswith(OPEN) and CLOSE in text


def without_block(rendered: str) -> str:
    """A rendered response with its block of thoughts dropped, as templates drop it when the talk goes on."""
    return _BLOCK.sub("", rendered, count=1)


def parts(text: str) -> tuple[str, str]:
    """Thoughts and words of a response, white space around them apart; templates write their own there."""
    thoughts, close, words = text.partition(CLOSE)
    if not close:
        return "", text.strip()
    return thoughts.strip().removeprefix(OPEN).strip(), words.strip()


def is_same(answer: str, wanted: str, *, inside: bool, can_think: bool) -> bool:
    """Whether a rendered response is the wanted one.

    Args:
        answer: what the template made of it, behind the prompt.
        wanted: the response of the data.
        inside: the answer begins in a block of thoughts.
        can_think: the template knows such blocks at all; elsewhere they are text like any other.
    """
    thoughts = has_thoughts(wanted)
    if inside or (can_think and thoughts):
        return parts(answer) == (parts(wanted) if thoughts else ("", wanted))
    return answer.strip() == wanted
