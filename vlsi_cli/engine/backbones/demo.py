"""The demo pair: two tiny models of the true Qwen2-VL architecture, for the built-in puzzles.

Everything but the weights is made here from the project's own text: configurations, a byte-level BPE tokenizer in
Qwen2's form, the chat template in Qwen2-VL's format and the image processor's settings. `write_demo_folder` writes a
folder that plain transformers loads. The weights come from training (recipes `demo-large` and `demo-small`).

What differs from a real Qwen2-VL, and why:

* patches of 4 pixels instead of 14, so that a cell of a puzzle, 8 x 8 pixels, is one image token;
* a rotary base (theta) of 10,000 instead of a million, and half of the frequencies for the column. M-RoPE (arXiv
  2409.12191, section 2.1) gives an image token's time the highest frequencies, then its row, and its column the
  lowest: here at most 0.01 rad a column, next to nothing. The puzzles therefore number their cells in the picture, and
  the slow frequencies are left to what they do best: a word of the question finds its picture from any distance.
  A base of 10, under which columns do turn, was tried: pictures were listed in order sooner, but single ones were not
  found at all in the time that training has;
* larger initial weights (0.05), which suit widths of 64 to 128.

As in the real family, the vocabulary has more rows than the tokenizer has tokens, the pair's numbers of rows differ,
and the small model's head is tied to its embeddings while the large model's is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SIZES = ("large", "small")
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
BPE_TOKENS = 600
"""Byte-level tokens: the 256 bytes and what training on the text merged; the special tokens come after them."""
PROSE_REPEATS = 20
"""How often the prose is counted beside the puzzles' text, so that its words become tokens too."""
PATCH, MERGE = 4, 2
MIN_PIXELS, MAX_PIXELS = 64, 4096

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'text' -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

PROSE = """\
This small model looks at a picture and answers a question about it in a few words. A picture is a row of four cells
or a chart with four bars. In a row, every cell shows a coloured shape: a circle, a square, a triangle or a cross, in
red, green, blue or yellow. One picture may be missing, and the rule of the row tells which one it is. In a chart, every
bar is a stack of blocks, and the height of a bar is the number of its blocks.
A large model teaches a small one. Each layer of the large model is asked to say in words what it knows so far: a
verbalizer turns the hidden state of a layer into a distribution over the vocabulary. Then each layer of the small
model is matched with a layer of the large model, and learns to say the same. At the end the small model is trained on
the answers alone, and the verbalizers are dropped.
I see two red circles and one blue square. The tallest bar is green, and the shortest is yellow. Cells one and three
share the colour. Yes. No. Please answer with a single word. What colour is it? What shape is it? How many of them
can you see? user assistant system
"""

_TEXT: dict[str, dict[str, Any]] = {
    "large": {
        "vocab_size": 704,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 10,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "mrope_section": [4, 4, 8],
    },
    "small": {
        "vocab_size": 640,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "mrope_section": [2, 2, 4],
    },
}
_ROTARY_BASE = 10000.0
_INITIALIZER_RANGE = 0.05
_VISION: dict[str, Any] = {"depth": 3, "embed_dim": 64, "num_heads": 2, "mlp_ratio": 2}


def build_tokenizer(texts: Iterable[str]) -> Any:
    """Qwen2's tokenizer class over a byte-level BPE trained on `texts` and `PROSE`; the same tokens for the same texts.

    The shipped one is built on `pattern_texts()` of the puzzles. The alphabet holds all 256 bytes, so any text survives
    encoding and decoding.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = Qwen2Tokenizer()._tokenizer.pre_tokenizer
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator([*texts, *PROSE.splitlines() * PROSE_REPEATS], trainer)
    model = json.loads(raw.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        unk_token=None,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=2048,
        chat_template=CHAT_TEMPLATE,
    )


def build_config(size: str, tokenizer: Any) -> Any:
    """The Qwen2VLConfig of "large" or "small" for this tokenizer's special tokens."""
    from transformers import Qwen2VLConfig

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = dict(_TEXT[size])
    rope = {"rope_type": "default", "rope_theta": _ROTARY_BASE, "mrope_section": text.pop("mrope_section")}
    text |= {
        "rope_parameters": rope,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "initializer_range": _INITIALIZER_RANGE,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "tie_word_embeddings": size == "small",
    }
    vision = _VISION | {
        "hidden_size": text["hidden_size"],
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "initializer_range": _INITIALIZER_RANGE,
    }
    return Qwen2VLConfig(
        architectures=["Qwen2VLForConditionalGeneration"],
        dtype="float32",
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=size == "small",
    )


def image_processor_settings() -> dict[str, Any]:
    """`preprocessor_config.json` as the real family has it, with the demo pair's sizes."""
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
    }


def write_demo_folder(size: str, folder: Path, texts: Iterable[str]) -> None:
    """Write everything of a demo model but its weights: the files shipped as `vlsi_cli/demo/<size>`.

    Args:
        size: "large" or "small".
        folder: made if absent; files of the same names are replaced, weights are left alone.
        texts: what the tokenizer is built on; the shipped folders have `vlsi_cli.engine.data.patterns.pattern_texts()`.
    """
    from transformers import GenerationConfig

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(texts)
    config = build_config(size, tokenizer)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    text = config.text_config
    GenerationConfig(
        do_sample=False,
        bos_token_id=text.bos_token_id,
        eos_token_id=[text.eos_token_id, text.pad_token_id],
        pad_token_id=text.pad_token_id,
    ).save_pretrained(folder)
    settings = json.dumps(image_processor_settings(), indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(settings, encoding="utf-8")
