"""How long a record will be, found without decoding its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlsi_cli.engine.data.images import image_size
from vlsi_cli.engine.data.records import BadRecord, ImageRef, Record
from vlsi_cli.engine.data.template import ChatEncoder


def record_length(encoder: ChatEncoder, record: Record) -> int:
    """Tokens of the encoded record, image tokens included.

    Text is rendered and tokenized as :meth:`ChatEncoder.encode` does. How many tokens an image becomes is what the
    processor says of its size; some of them count a few too many or too few, so the length is good for an order only.
    A record that seems too long, and one of a processor that does not know, is encoded.

    Raises:
        BadRecord: as :meth:`ChatEncoder.encode`, but damaged pixels are not seen.
    """
    try:
        segments = [piece for turn in encoder.turns(record) for piece in turn]
        length = _length(encoder, segments, record.images)
    except BadRecord as bad:
        raise bad.at(record=record.id, where=record.where) from bad
    if length is None or (encoder.max_length is not None and length > encoder.max_length):
        return len(encoder.encode(record).input_ids)
    return length


def prompt_length(encoder: ChatEncoder, record: Record) -> int:
    """Tokens of what the record's last response is generated from, found and good as :func:`record_length`.

    Thoughts of earlier responses, which a template drops from a prompt, are counted too.

    Raises:
        BadRecord: as :meth:`ChatEncoder.encode`, but neither damaged pixels nor too many tokens are seen.
    """
    *texts, _ = (piece for turn in encoder.turns(record) for piece in turn)
    length = _length(encoder, texts, record.images)
    return len(encoder.encode_prompt(record).input_ids) if length is None else length


def _length(encoder: ChatEncoder, texts: Sequence[str], images: Sequence[ImageRef]) -> int | None:
    """Tokens of texts and of the images among them; None where the processor does not know."""
    count = getattr(encoder.processor, "_get_num_multimodal_tokens", None)
    if images and count is None:
        return None
    sizes = [image_size(ref, encoder.limits, encoder.fetch) for ref in images]
    plain = (text.replace(encoder.image_token, "") for text in texts)
    length = sum(len(encoder.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in plain)
    return length + (_image_tokens(count, sizes) + len(sizes) * _around(encoder) if sizes else 0)


def _around(encoder: ChatEncoder) -> int:
    """Tokens that Gemma's processors write around the image tokens of a picture, and do not count."""
    processor = encoder.processor
    written, image_tokens = getattr(processor, "full_image_sequence", None), 0
    if written is not None:  # Gemma 3
        image_tokens = int(processor.image_seq_length)
    elif hasattr(processor, "boi_token"):  # Gemma 4
        written = processor.boi_token + processor.eoi_token
    else:
        return 0
    return len(encoder.tokenizer(written, add_special_tokens=False)["input_ids"]) - image_tokens


def _image_tokens(count: Any, sizes: list[tuple[int, int]]) -> int:
    found = count(image_sizes=[[height, width] for width, height in sizes])
    return sum(int(tokens) for tokens in found["num_image_tokens"])
