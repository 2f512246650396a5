"""What the data tests share: processors of tiny folders, pictures, and short ways to write records."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from tests.tiny import tiny_folder
from vlsi_cli.engine.backbones.processors import load_processor
from vlsi_cli.engine.data.records import ImageRef, Message, Record, make_record


def processor_of(family: str, folder: Path, **settings: Any) -> Any:
    return load_processor(tiny_folder(family, folder, layers=1, hidden=32), **settings)


def picture(width: int = 16, height: int = 16, colour: str = "red") -> ImageRef:
    return ImageRef(picture=Image.new("RGB", (width, height), colour))


def encoded_bytes(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def conversation(*texts: str, id: str = "r", system: str | None = None, images: int = 0) -> Record:
    """User and assistant in turn; images stand at the start of the first user message."""
    messages = [] if system is None else [Message("system", (system,))]
    for number, text in enumerate(texts):
        role = "user" if number % 2 == 0 else "assistant"
        parts = (*range(images), text) if number == 0 else (text,)
        messages.append(Message(role, parts))
    return make_record(id, messages, [picture() for _ in range(images)])
