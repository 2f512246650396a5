"""Thoughts that stand in a channel, as in Gemma 4."""

from __future__ import annotations

import pytest
import torch

from tests.unit.data.kit import conversation
from tests.unit.data.test_template import encoder, processor
from vlsi_cli.engine.data import thinking
from vlsi_cli.engine.data.records import BadRecord

CHANNELS = ("gemma4", "gemma4 dense")


def decoded_channels(family: str, *texts: str, system: str | None = None) -> tuple[str, str]:
    """As :func:`decoded_turns`, of a model whose thoughts stand in a channel."""
    encoded = encoder(family).encode(conversation(*texts, system=system))
    decode = processor(family).tokenizer.decode
    return decode(encoded.input_ids), decode(encoded.input_ids[encoded.trained])


@pytest.mark.parametrize("family", CHANNELS)
def test_without_thoughts_channels_are_what_the_prompt_of_each_size_has(family: str) -> None:
    """The system's words reach the template as it takes them; the large sizes are prompted with an empty channel."""
    empty = "<|channel>thought\n<channel|>" if family == "gemma4 dense" else ""
    whole, trained = decoded_channels(family, "What?", "Red.", "And?", "Blue.", system="Be brief.")
    assert trained == "Red.<turn|>Blue.<turn|>"
    assert whole == (
        "<bos><|turn>system\nBe brief.<turn|>\n"
        f"<|turn>user\nWhat?<turn|>\n<|turn>model\n{empty}Red.<turn|>\n"
        f"<|turn>user\nAnd?<turn|>\n<|turn>model\n{empty}Blue.<turn|>"
    )


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("family", CHANNELS)
def test_thoughts_in_a_channel_are_part_of_a_response(family: str, system: str | None) -> None:
    """They are asked for in front of the talk, so that a response without any begins with an empty channel."""
    texts = ("What?", "<think>\nIt glows.\n</think>\n\nRed.", "And?", "Blue.")
    whole, trained = decoded_channels(family, *texts, system=system)
    first = "<|channel>thought\nIt glows.\n<channel|>Red.<turn|>"
    second = "<|channel>thought\n<channel|>Blue.<turn|>"
    assert trained == first + second
    assert whole == (
        f"<bos><|turn>system\n<|think|>\n{system or ''}<turn|>\n<|turn>user\nWhat?<turn|>\n<|turn>model\n{first}\n"
        f"<|turn>user\nAnd?<turn|>\n<|turn>model\n{second}"
    )


@pytest.mark.parametrize("answer", ["Red.", "<think>It is warm.</think>Red."])
@pytest.mark.parametrize("family", CHANNELS)
def test_a_prompt_of_a_model_with_channels_is_the_stock_one(family: str, answer: str) -> None:
    record = conversation("What is it?", "<think>Round.</think>A circle.", "What colour?", answer)
    ours = encoder(family).encode_prompt(record)
    chat = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("user", "What is it?"), ("assistant", "A circle."), ("user", "What colour?"))
    ]
    stock = processor(family).apply_chat_template(
        chat, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt",
        enable_thinking=answer != "Red.",
    )  # fmt: skip
    assert torch.equal(ours.input_ids, stock["input_ids"][0])
    assert ours.reference == "Red."


@pytest.mark.parametrize(
    "token", ["<|channel>", "<channel|>", "<|think|>", "<|image|>", "<|video|>", "<turn|>"]
)
def test_tokens_of_channels_in_a_text(token: str) -> None:
    with pytest.raises(BadRecord) as caught:
        encoder("gemma4").encode(conversation("What?", f"Red {token} blue."))
    assert caught.value.reason == "control-token"


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("Red.", "Red."),
        ("<|channel>thought\nIt glows.\n<channel|>Red.", "<think>\nIt glows.\n</think>\n\nRed."),
        ("<|channel>thought\n<channel|>Red.", "Red."),
        ("<|channel>thought\nIt glows and", "<think>\nIt glows and"),
    ],
)
def test_what_is_said_in_a_channel_becomes_a_block(said: str, text: str) -> None:
    tokenizer = processor("gemma4").tokenizer
    ids = tokenizer(said + "<turn|>", add_special_tokens=False)["input_ids"]
    assert thinking.decoded(tokenizer, ids) == text
    assert thinking.decoded(processor("qwen2_vl").tokenizer, [40, 41]) == processor(
        "qwen2_vl"
    ).tokenizer.decode([40, 41])
