"""What the data tests share: processors of tiny folders, pictures, and short ways to write records and streams."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

from PIL import Image

from tests.tiny import tiny_folder
from vlsi_cli.engine.backbones.processors import load_processor
from vlsi_cli.engine.data.records import BadRecord, ImageRef, Message, Record, make_record
from vlsi_cli.engine.data.schedule import EndOfSource, RecordSource
from vlsi_cli.engine.data.stream import RecordStream


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


class Numbers:
    """Records named a0, a1, ...; those in ``bad`` cannot be used. ``ends`` is a length the stream is not told of."""

    def __init__(
        self, name: str, size: int | None, *, bad: frozenset[int] = frozenset(), ends: int | None = None
    ) -> None:
        self.name, self.size, self.bad, self.ends = name, size, bad, ends
        self.shuffles_itself = size is None
        self.streamed = ends is not None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state == {}

    def read(self, index: int, epoch: int = 0) -> Record:
        if self.ends is not None and index >= self.ends:
            raise EndOfSource(self.name)
        assert self.size is None or 0 <= index < self.size
        if index in self.bad:
            raise BadRecord(
                "too-long", "9 tokens", record=f"{self.name}{index}", where=f"{self.name}:{index}"
            )
        return conversation("Q", "A", id=f"{self.name}{index}")


def encoded(record: Record) -> str:
    """The id; of some records it shows only now that they are damaged."""
    if record.id in ("a4", "b6", "b9"):
        raise BadRecord("image-damaged", record=record.id, where=record.id)
    return record.id


def length_of(name: str) -> int:
    return zlib.crc32(name.encode()) % 50


def length(record: Record) -> int:
    return length_of(record.id)


def stream(*sources: tuple[RecordSource, float], **settings: object) -> RecordStream[str, list[str]]:
    standard = {"seed": 0, "encode": lambda record: record.id, "measure": length}
    return RecordStream(sources, collate=list, **{**standard, **settings})  # type: ignore[arg-type]


def take(source: RecordStream[str, list[str]], number: int) -> list[str]:
    return [source.next_batch(1)[0] for _ in range(number)]


def sources_of(kind: str) -> list[tuple[RecordSource, float]]:
    if kind == "finite":
        return [(Numbers("a", 7, bad=frozenset({2, 5})), 1.5), (Numbers("b", 4), 0.5)]
    return [
        (Numbers("a", 5, bad=frozenset({1})), 1.0),
        (Numbers("b", None), 2.0),
        (Numbers("c", None, ends=3), 0.7),
    ]
