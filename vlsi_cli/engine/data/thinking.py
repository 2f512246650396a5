"""Chat templates of models that can think before they answer.

Such a template (Qwen3.5's, say) puts thoughts between ``<think>`` and ``</think>`` in front of an answer. It is told by
a variable whether the next answer is to be thought about: if so, the prompt ends inside an open block, and otherwise
behind an empty one. When the talk goes on, blocks of earlier answers are dropped.

Here a response is prompted for as it was given: without thoughts, behind an empty block; with thoughts, inside an open
one, and the thoughts and the end of the block are part of the response.

Other templates (those of Qwen3-VL's thinking models) cannot be told and leave the block open always: there the end of
the block is part of every response, and a response without thoughts is one whose block is closed at once.
"""

from __future__ import annotations

import re

OPEN, CLOSE = "<think>", "</think>"
#: The variable by which templates are told.
SWITCH = "enable_thinking"
_BLOCK = re.compile(f"{OPEN}.*?{CLOSE}\\n*", re.DOTALL)


def can_be_told(template: object) -> bool:
    """Whether a chat template can be told to think or not to."""
    return SWITCH in str(template)


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
