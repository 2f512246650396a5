"""The shapes in which conversations are written down, each turned into a :class:`Record`.

``llava``: ``{"id", "image": path | [paths], "conversations": [{"from": "human", "value": "<image>\\n..."},
...]}``. ``messages``: ``{"messages": [{"role", "content": text | [parts]}, ...], "images": [...]}`` where a
part is ``{"type": "text", "text"}`` or ``{"type": "image", "image" | "path" | "url"}``; an image part without
a source, and a ``<image>`` inside text, take the next entry of ``images``.

With ``unanswered`` a conversation may end with the user's message, and an empty last answer counts as none.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from vlsi_cli.engine.data.records import (
    MAX_IMAGES,
    MAX_MESSAGES,
    BadRecord,
    ImageRef,
    Message,
    Numbering,
    Part,
    Record,
    Role,
    make_record,
)

_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


_LONGEST_ID = 200
#: Where the kinds have their conversations.
_KEYS = ("messages", "conversations")
#: Lists in lists that images may lie in.
_DEEPEST = 4
#: A data URL (RFC 2397): the bytes of a picture, written where its address would stand.
_DATA_URL = re.compile(r"data:[^,]*?;base64,", re.IGNORECASE)


def from_llava(
    row: Mapping[str, Any], *, default_id: str, where: str, root: Path | None, unanswered: bool = False
) -> Record:
    """A record from a LLaVA-style object.

    Raises:
        BadRecord: a field of the wrong type, or a conversation that :func:`make_record` refuses.
    """
    return _conversation(row, row.get("conversations"), "from", "value", default_id, where, root, unanswered)


def from_messages(
    row: Mapping[str, Any], *, default_id: str, where: str, root: Path | None, unanswered: bool = False
) -> Record:
    """A record from an object with chat ``messages``.

    Raises:
        BadRecord: a field of the wrong type, or a conversation that :func:`make_record` refuses.
    """
    return _conversation(row, row.get("messages"), "role", "content", default_id, where, root, unanswered)


def from_row(
    row: Mapping[str, Any], *, default_id: str, where: str, root: Path | None, unanswered: bool = False
) -> Record:
    """A record from a table's row.

    The conversation is ``messages`` or ``conversations``, keyed by role/content or by from/value, or
    ``texts`` of ``{"user", "assistant"}`` pairs about all ``images``.
    """
    talk = row.get("messages")
    if talk is None:
        talk = row.get("conversations")
    if talk is None and isinstance(row.get("texts"), list):
        talk = _pairs(row)
    llava = isinstance(talk, Sequence) and bool(talk) and isinstance(talk[0], Mapping) and "from" in talk[0]
    keys = ("from", "value") if llava else ("role", "content")
    return _conversation(row, talk, *keys, default_id, where, root, unanswered)


def from_question(
    row: Mapping[str, Any],
    *,
    question: str,
    answer: str | None,
    image: str | None,
    default_id: str,
    where: str,
    root: Path | None,
    unanswered: bool = False,
) -> Record:
    """A record of one turn from columns of a question, an answer and (optionally) one image or several.

    Images stand where the question has ``<image>``, or in front of it where it has none. Without a column of answers,
    which only ``unanswered`` allows, it ends with the question.
    """
    name = record_id(row, default_id)
    texts = [row.get(question), row.get(answer) if answer else None]
    if unanswered and _is_blank(texts[1]):
        del texts[1]
    if not all(isinstance(text, str) for text in texts):
        raise BadRecord(
            "bad-format", f"columns {question!r} and {answer!r} must be text", record=name, where=where
        )
    images = image_refs(row.get(image) if image else None, root, name, where)
    asked = Numbering().split(str(texts[0]))
    if not any(isinstance(part, int) for part in asked):
        asked = (*range(len(images)), *asked)
    talk = [Message("user", asked)]
    talk += [Message("assistant", (str(text),)) for text in texts[1:]]
    return make_record(name, talk, images, where=where, unanswered=unanswered)


def record_id(row: Mapping[str, Any], default: str) -> str:
    """The row's own id as text, of at most 200 characters, or the default."""
    value = row.get("id")
    if value is None or value == "":
        return default
    # half a surrogate pair could not be written into a report
    return str(value)[:_LONGEST_ID].encode("utf-8", "backslashreplace").decode()


def image_refs(value: Any, root: Path | None, record: str, where: str, depth: int = 0) -> list[ImageRef]:
    """References to one image, several, or none.

    An image is a path, an address, ``{"bytes", "path"}`` as Hugging Face tables store it, ``{"image" | "path" | "url":
    path}``, raw bytes, a data URL in base64, or a PIL picture.
    """
    if value is None or value == "":
        return []
    if depth > _DEEPEST:
        raise BadRecord("bad-format", "an image inside lists inside lists", record=record, where=where)
    if isinstance(value, list | tuple):
        if len(value) > MAX_IMAGES:
            raise BadRecord("too-large", f"{len(value):,} images", record=record, where=where)
        return [ref for item in value for ref in image_refs(item, root, record, where, depth + 1)]
    if isinstance(value, str):
        if head := _DATA_URL.match(value):
            return [ImageRef(data=_decoded(value[head.end() :], record, where))]
        return [ImageRef(path=value, root=root)]
    if isinstance(value, bytes):
        return [ImageRef(data=value)]
    if isinstance(value, Mapping):
        if isinstance(value.get("bytes"), bytes):
            return [ImageRef(data=value["bytes"])]
        for key in ("image", "path", "url"):
            if value.get(key) is not None:
                return image_refs(value[key], root, record, where, depth + 1)
        raise BadRecord("bad-format", "an image without bytes or path", record=record, where=where)
    if hasattr(value, "getbands"):  # a PIL picture, told without importing PIL
        return [ImageRef(picture=value)]
    raise BadRecord("bad-format", f"an image of type {type(value).__name__}", record=record, where=where)


def _decoded(text: str, record: str, where: str) -> bytes:
    """The bytes of a data URL's base64, whose line breaks and percent signs are not part of it."""
    try:
        return base64.b64decode(b"".join(unquote_to_bytes(text).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRecord("image-unreadable", f"base64: {error}", record=record, where=where) from error


def _pairs(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    talk: list[dict[str, Any]] = []
    for pair in row["texts"]:
        for role in ("user", "assistant"):
            talk.append({"role": role, "content": pair.get(role) if isinstance(pair, Mapping) else None})
    images = row.get("images") or ()
    if talk and isinstance(talk[0]["content"], str):
        talk[0]["content"] = [{"type": "image"}] * len(images) + [
            {"type": "text", "text": talk[0]["content"]}
        ]
    return talk


def _conversation(
    row: Mapping[str, Any],
    talk: Any,
    role_key: str,
    text_key: str,
    default_id: str,
    where: str,
    root: Path | None,
    unanswered: bool,
) -> Record:
    name = record_id(row, default_id)

    def bad(reason: str, detail: str) -> BadRecord:
        return BadRecord(reason, detail, record=name, where=where)

    if not isinstance(talk, list | tuple) or not talk:
        other = next((key for key in _KEYS if talk is None and row.get(key)), None)
        raise bad(
            "bad-format", "no list of messages" + (f", but {other!r}, of another kind" if other else "")
        )
    if len(talk) > MAX_MESSAGES:
        raise bad("too-large", f"{len(talk):,} messages")
    given = row.get("images")
    if given is None:
        given = row.get("image")
    listed = image_refs(given, root, name, where)
    images: list[ImageRef] = []
    numbering, messages = Numbering(), []
    if unanswered and _ends_blank(talk, role_key, text_key):
        talk = talk[:-1]
    for entry in talk:
        if not isinstance(entry, Mapping) or not isinstance(entry.get(role_key), str):
            raise bad("bad-format", f"a message without {role_key!r}")
        role = _ROLES.get(entry[role_key])
        if role is None:
            raise bad("bad-role", repr(entry[role_key])[:60])
        messages.append(
            Message(role, _parts(entry.get(text_key), numbering, listed, images, root, name, where))
        )
    if numbering.count > len(images) or listed:
        raise bad("image-count", f"{numbering.count} in the text, {len(images) + len(listed)} images")
    return make_record(name, messages, images, where=where, unanswered=unanswered)


def _ends_blank(talk: Sequence[Any], role_key: str, text_key: str) -> bool:
    """Whether the last message stands for an answer that has not been given."""
    last = talk[-1]
    if not isinstance(last, Mapping) or not isinstance(last.get(role_key), str):
        return False
    return _ROLES.get(last[role_key]) == "assistant" and _is_blank(last.get(text_key))


def _is_blank(text: Any) -> bool:
    return text is None or (isinstance(text, str) and not text.strip())


def _parts(
    content: Any,
    numbering: Numbering,
    listed: list[ImageRef],
    images: list[ImageRef],
    root: Path | None,
    record: str,
    where: str,
) -> tuple[Part, ...]:
    """The pieces of one message. Moves images from ``listed`` to ``images`` as they are mentioned."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(blocks, list | tuple):
        raise BadRecord("bad-format", "a message without text", record=record, where=where)
    parts: list[Part] = []
    for block in blocks:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "text" and isinstance(block.get("text"), str):
            pieces = numbering.split(block["text"])
            mentioned = sum(isinstance(piece, int) for piece in pieces)
            images.extend(listed[:mentioned])
            del listed[:mentioned]
            parts.extend(pieces)
        elif kind in ("image", "image_url"):
            parts.append(numbering.next())
            own = [block[key] for key in ("image", "path", "url", "image_url") if block.get(key) is not None]
            if own:
                source = own[0]
                images.extend(image_refs(source, root, record, where)[:1])
            else:
                images.extend(listed[:1])
                del listed[:1]
        else:
            raise BadRecord("bad-format", f"a part of type {kind!r}", record=record, where=where)
    return tuple(parts)
