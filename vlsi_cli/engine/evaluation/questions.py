"""From the harness's chat messages to a record of ours, and to a key that stands for exactly that question."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from vlsi_cli.engine.data.records import BadRecord, ImageRef, Message, Part, make_record
from vlsi_cli.engine.evaluation.generation import Question, Settings
from vlsi_cli.errors import ConfigError, DataError

DEFAULT_NEW_TOKENS = 1024
"""Longest answer where a task names no length, as the harness's own models have it."""
_STAND_IN = "."
_INJECTED = ["\n\n"]


def settings_from(
    wanted: Mapping[str, Any], *, longest: int | None = None, own_stops: bool = False
) -> tuple[Settings, tuple[str, ...]]:
    """Generation settings from what a task asks for.

    Answers are greedy whatever a task says: MM-Vet's temperature of 0.2, for one, goes with sampling switched off.

    Args:
        wanted: the task's ``generation_kwargs``.
        longest: overrides the task's length.
        own_stops: whether its ``until`` is known to be the task's own. Otherwise a lone blank line is taken for the
            one that the harness puts into every task without stops, where it would cut an answer that reasons.

    Returns:
        The settings, and words for what was asked for and is not done (sampling, beams).

    Raises:
        ConfigError: a length or a stop that is none.
    """
    given = wanted.get("until") or []
    stops = [given] if isinstance(given, str) else list(given)
    if not own_stops and stops == _INJECTED:
        stops = []
    length = longest if longest is not None else wanted.get("max_new_tokens", DEFAULT_NEW_TOKENS)
    if not isinstance(length, int) or length < 1 or not all(isinstance(s, str) and s for s in stops):
        raise ConfigError(f"the task's generation_kwargs are not usable: {dict(wanted)}")
    ignored = []
    if wanted.get("do_sample"):
        ignored.append("sampling")
    if int(wanted.get("num_beams") or 1) > 1:
        ignored.append(f"{wanted['num_beams']} beams")
    return Settings(length, tuple(stops)), tuple(ignored)


def question_from(
    where: str, messages: Sequence[Mapping[str, Any]], settings: Settings, answer: str | None = None
) -> Question:
    """A question from chat messages as the harness writes them: roles, and parts of text and pictures.

    Neighbouring messages of one role are joined. The key is a digest of roles, texts, pixels, settings and, for a
    loss, the answer: equal keys are equal questions.

    Args:
        where: what to call it in a message.
        answer: the answer whose loss is wanted; None when the model is to answer.

    Raises:
        DataError: a video, a sound, a picture that cannot be read, or roles out of order.
    """
    digest = hashlib.sha256(json.dumps([asdict(settings), answer], sort_keys=True).encode())
    images: list[ImageRef] = []
    joined: list[tuple[str, list[Part]]] = []
    for message in messages:
        role = str(message["role"])
        parts: list[Part] = []
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                parts.append(str(part["text"]))
                digest.update(f"\0{role}\0text\0{part['text']}".encode())
            elif part["type"] in ("image", "image_url"):
                ref = _image(part.get("url") or part.get("image") or part.get("image_url"), where)
                digest.update(f"\0{role}\0image\0".encode() + _pixels(ref))
                parts.append(len(images))
                images.append(ref)
            else:
                raise DataError(f"{where} holds a '{part['type']}', and only text and pictures are read")
        if joined and joined[-1][0] == role:
            joined[-1][1].extend(parts)
        else:
            joined.append((role, parts))
    joined.append(("assistant", [answer if answer is not None else _STAND_IN]))
    try:
        talk = [Message(role, tuple(parts)) for role, parts in joined]  # type: ignore[arg-type]
        record = make_record(where, talk, images, where=where)
    except BadRecord as bad:
        raise DataError(str(bad)) from bad
    return Question(digest.hexdigest(), record, settings)


def _image(value: Any, where: str) -> ImageRef:
    if isinstance(value, Image.Image):
        return ImageRef(picture=value)
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        return ImageRef(data=value["bytes"])
    if isinstance(value, bytes):
        return ImageRef(data=value)
    if isinstance(value, str) and Path(value).is_file():
        return ImageRef(data=Path(value).read_bytes())
    shown = f"'{value[:80]}'" if isinstance(value, str) else f"a {type(value).__name__}"
    raise DataError(f"{where} names a picture that is not here: {shown}")


def _pixels(ref: ImageRef) -> bytes:
    if ref.data is not None:
        return hashlib.sha256(ref.data).digest()
    picture = ref.picture
    assert isinstance(picture, Image.Image)
    return hashlib.sha256(f"{picture.mode}{picture.size}".encode() + picture.tobytes()).digest()


def shown_parts(question: Question) -> list[str | Image.Image]:
    """Texts and pictures of a question in reading order, for a page."""
    parts: list[str | Image.Image] = []
    for message in question.record.messages[:-1]:
        for part in message.parts:
            if isinstance(part, str):
                parts.append(part)
                continue
            ref = question.record.images[part]
            parts.append(ref.picture if ref.picture is not None else Image.open(io.BytesIO(ref.data or b"")))
    return parts
