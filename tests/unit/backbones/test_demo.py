"""The demo pair's folders: what ships is what the code makes, and plain transformers reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

import vlsi_cli
from vlsi_cli.engine.backbones.demo import SIZES, SPECIAL_TOKENS, write_demo_folder
from vlsi_cli.engine.data.patterns import pattern_record, pattern_texts

SHIPPED = Path(vlsi_cli.__file__).parent / "demo"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(SHIPPED / "small")


@pytest.mark.parametrize("size", SIZES)
def test_shipped_folder_is_what_the_code_writes(size, tmp_path):
    write_demo_folder(size, tmp_path, pattern_texts())
    for made in tmp_path.iterdir():
        shipped, new = (SHIPPED / size / made.name).read_text(), made.read_text()
        if made.suffix == ".json":
            shipped, new = json.loads(shipped), json.loads(new)
            for written in (shipped, new):
                written.pop("transformers_version", None)
        assert shipped == new, made.name


def test_the_pair_shares_tokenizer_template_and_image_settings():
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "preprocessor_config.json",
    ):
        assert (SHIPPED / "large" / name).read_bytes() == (SHIPPED / "small" / name).read_bytes()


def test_shipped_size():
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) <= 10_000_000


@pytest.mark.parametrize("text", ["a red circle", "naïve — 日本語 \U0001f600\n\ttabs", "{}<>|%$ 12345"])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_words_of_the_puzzles_are_single_tokens(tokenizer):
    for word in ("red", " circle", " missing", " three", "nothing", "user", "assistant", *SPECIAL_TOKENS):
        assert len(tokenizer(word)["input_ids"]) == 1, word
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_chat_template_has_the_format_of_qwen2_vl(tokenizer):
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": "And this?"},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>\n"
        "<|im_start|>assistant\nred<|im_end|>\n"
        "<|im_start|>user\nAnd this?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("size", SIZES)
def test_pictures_are_not_resized_and_a_cell_is_one_token(size):
    processor = Qwen2VLImageProcessorPil.from_pretrained(SHIPPED / size)
    for index in range(8):
        image = pattern_record("train", index).image
        grid = processor(images=[image], return_tensors="pt")["image_grid_thw"][0].tolist()
        assert grid == [1, image.height // 4, image.width // 4]
        tokens = grid[1] * grid[2] // processor.merge_size**2
        assert tokens == (4 if image.height == 8 else 16)


def test_configs_are_a_pair_that_can_be_distilled(tokenizer):
    large, small = (AutoConfig.from_pretrained(SHIPPED / size) for size in ("large", "small"))
    assert large.model_type == small.model_type == "qwen2_vl"
    rows = large.text_config.vocab_size, small.text_config.vocab_size
    assert rows[0] > rows[1] > len(tokenizer)
    assert (large.tie_word_embeddings, small.tie_word_embeddings) == (False, True)
    assert large.text_config.num_hidden_layers > small.text_config.num_hidden_layers
    for config in (large, small):
        text = config.text_config
        head_width = text.hidden_size // text.num_attention_heads
        assert sum(text.rope_parameters["mrope_section"]) == head_width // 2
        for name in ("image", "video", "vision_start", "vision_end"):
            token = {"image": "<|image_pad|>", "video": "<|video_pad|>"}.get(name, f"<|{name}|>")
            assert getattr(config, f"{name}_token_id") == tokenizer.convert_tokens_to_ids(token)


@pytest.mark.parametrize("size", SIZES)
def test_stock_model_answers_a_forward_pass(size, tokenizer):
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(AutoConfig.from_pretrained(SHIPPED / size)).eval()
    processor = Qwen2VLImageProcessorPil.from_pretrained(SHIPPED / size)
    row = pattern_record("train", 0, questions=["describe"])
    pixels = processor(images=[row.image], return_tensors="pt")
    text = "<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>Describe the row."
    inputs = tokenizer(text, return_tensors="pt")
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()
    with torch.no_grad():
        logits = model(**inputs, **pixels).logits
    assert logits.shape == (1, inputs["input_ids"].shape[1], model.config.text_config.vocab_size)
    assert torch.isfinite(logits).all()
