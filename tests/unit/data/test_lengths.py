"""Lengths found without pixels, against those of the encoded records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny import FAMILIES
from tests.unit.data.kit import encoded_bytes, picture, processor_of
from vlsi_cli.engine.data.images import image_size, load_image
from vlsi_cli.engine.data.lengths import prompt_length, record_length
from vlsi_cli.engine.data.records import BadRecord, ImageRef, Message, Record, make_record
from vlsi_cli.engine.data.template import ChatEncoder

SIZES = ([], [(16, 16)], [(40, 16)], [(30, 70)], [(100, 20)], [(16, 16), (40, 30)])


def talk(*images: ImageRef) -> Record:
    messages = [Message("user", (*range(len(images)), "What is it?")), Message("assistant", ("A red one.",))]
    return make_record("r", [*messages, Message("user", ("And?",)), Message("assistant", ("No.",))], images)


@pytest.mark.parametrize("family", FAMILIES)
def test_lengths_are_those_of_the_encoded_records(family: str, tmp_path: Path) -> None:
    encoder = ChatEncoder(processor_of(family, tmp_path))
    for sizes in SIZES:
        record = talk(*(picture(*size) for size in sizes))
        found, true = record_length(encoder, record), len(encoder.encode(record).input_ids)
        if (
            family == "llava_onevision" and len(sizes) > 1
        ):  # it does not say that several images are laid out smaller
            assert found > true
        else:
            assert found == true
        prompt = prompt_length(encoder, record)
        if family in (
            "qwen3_5",
            "gemma4 dense",
        ):  # its template drops the block of thoughts of the first response
            assert prompt > len(encoder.encode_prompt(record).input_ids)
        else:
            assert found - prompt == true - len(encoder.encode_prompt(record).input_ids)
    longest = talk(picture(30, 70))
    encoder.max_length = len(encoder.encode(longest).input_ids)
    assert record_length(encoder, longest) == encoder.max_length
    encoder.max_length -= 1
    with pytest.raises(BadRecord, match="more tokens than max_length"):
        record_length(encoder, longest)


def test_what_a_header_does_not_show_is_not_seen(tmp_path: Path) -> None:
    encoder = ChatEncoder(processor_of("qwen2_vl", tmp_path))
    whole = encoded_bytes(Image.effect_noise((40, 30), 90))
    damaged = talk(ImageRef(data=whole[: len(whole) // 2]))
    assert record_length(encoder, damaged) == record_length(encoder, talk(picture(40, 30)))
    with pytest.raises(BadRecord, match="pixels cannot be decoded"):
        encoder.encode(damaged)
    with pytest.raises(BadRecord) as caught:
        record_length(encoder, replace(damaged, images=(ImageRef(data=b"nothing"),)))
    assert (caught.value.reason, caught.value.record) == ("image-unreadable", "r")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_the_size_is_that_of_the_upright_picture(format: str, orientation: int | None) -> None:
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    ref = ImageRef(data=encoded_bytes(Image.new("RGB", (24, 10)), format, exif=exif))
    assert image_size(ref) == load_image(ref).size
