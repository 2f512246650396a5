"""One record of training data, whatever it was read from, and the reasons why one cannot be used.

A record is a conversation: an optional system message, then user and assistant in turn, ending with the
assistant, but for records that are still to be answered. Images stand in user messages, in the order in which the
text mentions them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from vlsi_cli.errors import DataError

Role = Literal["system", "user", "assistant"]

#: A piece of a message: text, or the index of an image of the record.
Part = str | int

#: What LLaVA-style text writes where an image stands.
PLACEHOLDER = "<image>"
#: The same and what other data write for it: ``<|image|>`` in mPLUG's (DocDownstream, DocReason), and with the image's
#: number, from 1, ``<image1>`` in MathVision or ``<image 1>``.
_ANY_PLACEHOLDER = re.compile(r"<image>|<\|image\|>|<image[ _]?(?P<number>[1-9][0-9]?)>")

#: Every reason for which a record is not used, and what it means. The report counts by these words.
REASONS: dict[str, str] = {
    "broken-json": "the line, or entry of an array, is not valid JSON",
    "bad-format": "fields are missing or of the wrong type",
    "bad-role": "a role other than system, user (human) and assistant (gpt)",
    "role-order": "not an optional system message followed by user and assistant in turn",
    "no-response": "the conversation does not end with an assistant message",
    "empty-response": "an assistant message without text",
    "image-count": "the number of image placeholders is not the number of images",
    "image-in-response": "an image inside an assistant or system message",
    "control-token": "text that holds a control token of the model (turn markers, image tokens)",
    "image-missing": "the image file does not exist",
    "image-escape": "the image path leaves the image folder, or there is none",
    "image-url": "the image is an address, and none is fetched",
    "image-address": "the image's address is one that may not be asked",
    "image-not-fetched": "the image could not be fetched from its address",
    "image-unreadable": "not an image in a supported format",
    "image-damaged": "the image's pixels cannot be decoded (truncated or corrupt)",
    "image-animated": "the image has several frames",
    "image-mode": "pixels without a known white (32-bit integer or floating point)",
    "image-too-large": "more pixels than the limit, by its header",
    "image-aspect-ratio": "one side is more than 200 times the other",
    "image-refused": "the model's image processor refused the image",
    "too-long": "more tokens than max_length",
    "too-large": "more than 32 MiB, 1,000 messages or 256 images",
    "template-refused": "the chat template refused the conversation",
    "template-history": "the chat template rewrites earlier turns when one is added",
    "template-response": "the response cannot be found, or its end told, in the rendered conversation",
    "template-thoughts": "the chat template asks for thoughts before every answer and writes none into responses",
    "not-everywhere": "one of several processes could not use it, this one could",
}


_HINTS = {
    "no-response": "`vlsi data answer` has a large model answer such records",
    "image-missing": "image paths start from the folder of the data file, or from its image_root: "
    "--set data.sources.0.image_root=FOLDER",
    "image-address": "a host inside a private network has to be named in data.image_urls.private_hosts, "
    "another port in data.image_urls.hosts",
    "too-long": "raise data.max_length, or make pictures smaller with data.max_pixels",
    "template-thoughts": "take the model's variant that answers at once (Instruct), or change chat_template.jinja in a "
    "local copy of it: the prompt should not end in <think>, or responses begin with a block of thoughts",
    "image-url": "images are fetched from http and https addresses with --set data.image_urls.fetch=true; a "
    "file:// address is written as a plain path",
}


#: What a record may hold at most. Each message is rendered with all before it, and each image is kept until the record
#: is encoded: without bounds one line of a file could take a machine's time and memory.
MAX_BYTES, MAX_MESSAGES, MAX_IMAGES = 32 * 2**20, 1_000, 256
#: What of a value is repeated in a message.
_LONGEST_DETAIL = 300


class BadRecord(DataError):
    """A record that cannot be used: counted and skipped, or the end of the run, as the policy says.

    Args:
        reason: a key of :data:`REASONS`.
        detail: the value at fault, in a few words.
        record: id of the record, where known.
        where: file and line, or data set and row.
    """

    def __init__(self, reason: str, detail: str = "", *, record: str = "", where: str = "") -> None:
        detail = detail if len(detail) <= _LONGEST_DETAIL else f"{detail[:_LONGEST_DETAIL]}..."
        self.reason, self.detail, self.record, self.where = reason, detail, record, where
        name = f"record {record!r}" if record and record != where else "record"
        place = f"{where}: " if where else ""
        tail = f" ({detail})" if detail else ""
        super().__init__(f"{place}{name} cannot be used: {REASONS[reason]}{tail}", hint=_HINTS.get(reason))

    def __reduce__(self) -> tuple[Any, ...]:
        return _bad_record, (self.reason, self.detail, self.record, self.where)

    def at(self, *, record: str, where: str) -> Self:
        """The same fault, told of this record at this place."""
        return type(self)(self.reason, self.detail, record=self.record or record, where=self.where or where)


def _bad_record(reason: str, detail: str, record: str, where: str) -> BadRecord:
    return BadRecord(reason, detail, record=record, where=where)


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image that is not decoded yet: exactly one of a path, the bytes of a file, or a PIL picture.

    A path is looked up under ``root`` and may not leave it; without a root there is nowhere to look.
    """

    path: str | None = None
    root: Path | None = None
    data: bytes | None = None
    picture: Any = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message: a role and its pieces, text and image indices in reading order."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text pieces alone, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation with its images. Construct through :func:`make_record`, which checks it.

    ``kind`` is the kind of question, where a source knows one: scores are told apart by it. ``more`` are other fields
    of the object that it was read from, where it is to be written down again.
    """

    id: str
    messages: tuple[Message, ...]
    images: tuple[ImageRef, ...] = ()
    where: str = field(default="", compare=False)
    kind: str = ""
    more: Mapping[str, Any] | None = field(default=None, compare=False)

    @property
    def turns(self) -> int:
        """Number of responses."""
        return sum(message.role == "assistant" for message in self.messages)


def make_record(
    id: str,
    messages: Sequence[Message],
    images: Sequence[ImageRef] = (),
    *,
    where: str = "",
    kind: str = "",
    unanswered: bool = False,
) -> Record:
    """A checked record.

    Args:
        unanswered: let it end with the user's message, as a question that is still to be answered.

    Raises:
        BadRecord: roles out of order, no or empty response, text that is none, images that do not fit their
            placeholders, more of anything than a record may hold.
    """

    def bad(reason: str, detail: str = "") -> BadRecord:
        return BadRecord(reason, detail, record=id, where=where)

    if len(messages) > MAX_MESSAGES or len(images) > MAX_IMAGES:
        raise bad("too-large", f"{len(messages):,} messages, {len(images):,} images")
    if not all(_is_text(message.text) for message in messages):
        raise bad("bad-format", "half of a surrogate pair, which is no text")
    talk = [m for m in messages if m.role != "system"]
    if any(m.role == "system" for m in messages[1:]):
        raise bad("role-order", "a system message after the first")
    if not talk or (not unanswered and all(m.role != "assistant" for m in talk)):
        raise bad("no-response")
    for position, message in enumerate(talk):
        expected = ("user", "assistant")[position % 2]
        if message.role != expected:
            raise bad("role-order", f"message {position + 1} is of the {message.role}, not of the {expected}")
    if len(talk) % 2 and not unanswered:
        raise bad("no-response", "the last message is of the user")
    for message in messages:
        if message.role != "user" and any(isinstance(part, int) for part in message.parts):
            raise bad("image-in-response")
        if message.role == "assistant" and not message.text.strip():
            raise bad("empty-response")
    mentioned = [part for message in messages for part in message.parts if isinstance(part, int)]
    if mentioned != list(range(len(images))):
        raise bad("image-count", f"{len(mentioned)} in the text, {len(images)} images")
    return Record(id=id, messages=tuple(messages), images=tuple(images), where=where, kind=kind)


def _is_text(text: str) -> bool:
    """Whether a string can be written down: JSON's ``\\ud800`` alone cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_AROUND = re.compile(rf"\n?(?:{_ANY_PLACEHOLDER.pattern})\n?")


def mentions_image(text: str) -> bool:
    """Whether a text holds a placeholder of an image."""
    return _ANY_PLACEHOLDER.search(text) is not None


class Numbering:
    """Hands out image indices in reading order while messages are parsed."""

    def __init__(self) -> None:
        self.count = 0

    def split(self, text: str) -> tuple[Part, ...]:
        """Text cut at ``<image>``, ``<|image|>`` or ``<image1>``; one line break on each side belongs to it.

        A number that is not the next image's is words: it points back at one that stands where it was first named.
        LLaVA-style data write ``<image>\\nquestion``; the chat template of the model decides what really
        stands between an image and the text.
        """
        parts: list[Part] = []
        end = 0
        for match in _AROUND.finditer(text):
            if match["number"] not in (None, str(self.count + 1)):
                continue
            if text[end : match.start()]:
                parts.append(text[end : match.start()])
            parts.append(self.next())
            end = match.end()
        if text[end:]:
            parts.append(text[end:])
        return tuple(parts)

    def next(self) -> int:
        """The next image index."""
        self.count += 1
        return self.count - 1
