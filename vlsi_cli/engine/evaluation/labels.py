"""Records and the answers that they want: where they are open, what became of them, what is known of them already."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlsi_cli.engine.data.records import Message, Record

#: Where a record stands: number of its source, and its index there.
Place = tuple[int, int]

#: Why an answer is not taken, beside the reasons for which a reader of the record would refuse it.
CUT, EMPTY = "answer-cut", "answer-empty"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a record that could be read.

    Attributes:
        digest: of its text and its pictures' names: who reads it again can tell that it is the same.
        keys: of its answers in the journal, in the order of the turns; empty for one that was answered already.
        left_out: why it is not to be written; None for one that is.
    """

    digest: bytes
    keys: tuple[str, ...] = ()
    left_out: str | None = None


def open_turns(record: Record, *, anew: bool) -> list[int]:
    """Places among the messages at which an answer is wanted: a missing last one, or every one."""
    count = len(record.messages)
    missing = [count] if record.messages[-1].role == "user" else []
    given = [place for place, message in enumerate(record.messages) if message.role == "assistant"]
    return (given if anew else []) + missing


def with_answers(record: Record, places: Sequence[int], texts: Sequence[str]) -> Record:
    """The record with these texts for the answers at these places."""
    messages = list(record.messages)
    for place, text in zip(places, texts, strict=True):
        messages[place : place + 1] = [Message("assistant", (text,))]
    return replace(record, messages=tuple(messages))


def record_digest(record: Record) -> bytes:
    """16 bytes of a record's text, roles and the names of its pictures."""
    names = [ref.path for ref in record.images]
    talk = [(message.role, message.parts) for message in record.messages]
    return hashlib.blake2b(json.dumps([record.id, talk, names]).encode(), digest_size=16).digest()


def known_answer(key: str, longest: int, *journals: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """An answer by its key, with ``cut`` as it is under this bound of tokens; None where it has to be generated."""
    for lines in journals:
        if (line := lines.get(key)) is not None:
            return {**line, "cut": line["tokens"] >= longest}  # its end of turn is a token too
        if (line := lines.get(f"{key}/{longest}")) is not None:
            return line
    return None


def left_out(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many records are not written, by why, most frequent first."""
    return dict(Counter(each.left_out for each in outcomes if each.left_out is not None).most_common())
