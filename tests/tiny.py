"""Tiny random model folders of every supported family, written to disk in well under a second each.

A folder has what a downloaded checkpoint has: ``config.json``, ``model.safetensors``, ``generation_config.json``,
a byte-level BPE tokenizer, a chat template and an image processor, so tests go through the same doors as real models.
All folders share one tokenizer text, so two folders of one family can be distilled into each other; pass another
``tokenizer_text`` to get a pair that must be refused.

    from tests.tiny import tiny_folder
    folder = tiny_folder("qwen2_vl", tmp_path / "large", layers=6, hidden=64)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.templates import (
    CHATML,
    GEMMA4_LARGE_TEMPLATE,
    GEMMA4_TEMPLATE,
    GEMMA_TEMPLATE,
    MISTRAL_TEMPLATE,
    SMOL,
    THINKING,
)
from tests.tiny_configs import EXPERTS, FAMILIES, GEMMA4, PATCH, QWEN, TILE, pinpoints, tiny_config

__all__ = ["EXPERTS", "FAMILIES", "GEMMA4", "QWEN", "tiny_folder", "tiny_tokenizer"]

#: What the tokenizer's merges are learned from. Any text works: bytes cover the rest.
TOKENIZER_TEXT = (
    "What is shown in the picture? A red circle, a blue square and a green triangle stand in a row. "
    "How many shapes are there? Which shape is missing? The answer is three. Yes. No. Left, right, above, below. "
    "0 1 2 3 4 5 6 7 8 9 10 user assistant system You are a helpful assistant."
)

#: Tokens that an InternVL tokenizer knows by name.
INTERN = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


#: Likewise Gemma's.
GEMMA = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}

#: Likewise Gemma 4's.
GEMMA4_TOKENS = {
    "boi_token": "<|image>",
    "image_token": "<|image|>",
    "eoi_token": "<image|>",
    "boa_token": "<|audio>",
    "audio_token": "<|audio|>",
    "eoa_token": "<audio|>",
    "soc_token": "<|channel>",
    "eoc_token": "<channel|>",
    "think_token": "<|think|>",
}


def special_tokens(family: str) -> list[str]:
    """The added tokens of a family, in id order. The first three are pad, turn start and turn end."""
    base = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    family = family.removesuffix("_moe")
    if family in QWEN:
        return [*base, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    if family == "llava_onevision":
        return [*base, "<image>", "<video>"]
    if family == "internvl":
        return [*base, *INTERN.values()]
    if family == "gemma3":
        return ["<pad>", "<start_of_turn>", "<end_of_turn>", "<bos>", *GEMMA.values()]
    if family in GEMMA4:
        return ["<pad>", "<|turn>", "<turn|>", "<bos>", "<eos>", *GEMMA4_TOKENS.values(), "<|video|>"]
    if family == "mistral3":
        marks = ["[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
        return ["<pad>", "[INST]", "</s>", "<s>", *marks, "[THINK]", "[/THINK]"]
    grid = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
    return [*base, "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *grid]


def tiny_tokenizer(family: str, text: str = TOKENIZER_TEXT) -> Any:
    """A byte-level BPE tokenizer: 256 bytes, up to 64 merges learned from ``text``, the family's added tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    family = family.removesuffix("_moe")
    specials = special_tokens(family)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_special_tokens(specials)
    end = "<end_of_utterance>" if family in ("smolvlm", "idefics3") else specials[2]
    end = "<eos>" if family in GEMMA4 else end  # which ends texts; answers end with their turn
    named = {"internvl": INTERN, "gemma3": GEMMA} | dict.fromkeys(GEMMA4, GEMMA4_TOKENS)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=specials[0],
        eos_token=end,
        extra_special_tokens=named.get(family, specials[1:]),
        **(
            {"bos_token": specials[3], "model_input_names": ["input_ids", "attention_mask"]}
            if family in ("gemma3", *GEMMA4, "mistral3")
            else {}
        ),
        clean_up_tokenization_spaces=False,
        padding_side="left" if family in GEMMA4 else "right",
        model_max_length=4096,
    )
    if family == "qwen3_5":
        made.add_tokens(["<think>", "</think>"])
    return made


def _processor_files(family: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """``preprocessor_config.json`` and ``processor_config.json`` as the hub's folders have them."""
    family = family.removesuffix("_moe")
    half = [0.5, 0.5, 0.5]
    image: dict[str, Any] = {"image_mean": half, "image_std": half}
    if family in QWEN:
        name = "Qwen3VLProcessor" if family in ("qwen3_vl", "qwen3_5") else "Qwen2_5_VLProcessor"
        name = "Qwen2VLProcessor" if family == "qwen2_vl" else name
        image |= {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": PATCH, "merge_size": 2}
        image |= {"temporal_patch_size": 2, "size": {"shortest_edge": 64, "longest_edge": 1024}}
        return image, {"processor_class": name}
    if family == "llava_onevision":
        image |= {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "image_grid_pinpoints": pinpoints(),
        }
        image |= {"size": {"height": TILE, "width": TILE}}
        processor = {"processor_class": "LlavaOnevisionProcessor", "num_image_tokens": (TILE // PATCH) ** 2}
        return image, processor | {"vision_feature_select_strategy": "full"}
    if family == "internvl":
        image |= {"image_processor_type": "GotOcr2ImageProcessor", "size": {"height": TILE, "width": TILE}}
        image |= {"crop_to_patches": False, "min_patches": 1, "max_patches": 6}
        return image, {
            "processor_class": "InternVLProcessor",
            "image_seq_length": (TILE // PATCH // 2) ** 2,
        }
    if family == "gemma3":
        image |= {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": TILE, "width": TILE}}
        return image, {"processor_class": "Gemma3Processor", "image_seq_length": 4}
    if family in GEMMA4:
        image = {"image_processor_type": "Gemma4ImageProcessor", "do_normalize": False, "patch_size": PATCH}
        image |= {"pooling_kernel_size": 2, "max_soft_tokens": 70, "image_seq_length": 70}
        video = {"video_processor_type": "Gemma4VideoProcessor", "patch_size": PATCH, "max_soft_tokens": 70}
        sound = {"feature_extractor_type": "Gemma4AudioFeatureExtractor", "sampling_rate": 16000}
        return {}, {
            "processor_class": "Gemma4Processor",
            "image_processor": image,
            "video_processor": video,
            "feature_extractor": sound,
            "image_seq_length": 70,
        }
    if family == "mistral3":
        image |= {"image_processor_type": "PixtralImageProcessor", "patch_size": PATCH}
        image |= {"size": {"longest_edge": 2 * TILE}}
        processor = {"processor_class": "PixtralProcessor", "patch_size": PATCH, "spatial_merge_size": 2}
        return image, processor | {"image_token": "[IMG]"}
    stem = "SmolVLM" if family == "smolvlm" else "Idefics3"
    image |= {"image_processor_type": f"{stem}ImageProcessor", "size": {"longest_edge": 2 * TILE}}
    image |= {"max_image_size": {"longest_edge": TILE}, "do_image_splitting": True}
    return image, {"processor_class": f"{stem}Processor", "image_seq_len": (TILE // PATCH // 2) ** 2}


def tiny_folder(
    family: str,
    path: Path | str,
    *,
    layers: int = 4,
    hidden: int = 64,
    vocabulary_rows: int | None = None,
    seed: int = 0,
    tied: bool = True,
    tokenizer_text: str = TOKENIZER_TEXT,
) -> Path:
    """Write a complete random checkpoint of ``family`` to ``path`` and return the path.

    Args:
        family: one of ``FAMILIES`` or ``EXPERTS``.
        layers, hidden: decoder depth and width (a multiple of 16).
        vocabulary_rows: rows of embeddings and head; default is the tokenizer's length rounded up to 64, so that
            padding rows exist, as they do in real checkpoints.
        tied: whether the head is the embedding matrix.
        tokenizer_text: what the BPE merges are learned from; another text gives another tokenizer.
    """
    import torch
    from transformers import AutoModelForImageTextToText, GenerationConfig

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(family, tokenizer_text)
    rows = vocabulary_rows or -(-len(tokenizer) // 64) * 64
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special_tokens(family)}
    shape = {"layers": layers, "hidden": hidden, "vocabulary_rows": rows, "tied": tied}
    config = tiny_config(family, tokenizer, ids, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
        with torch.no_grad():  # one-dimensional weights start at 1 or 0: make them distinguishable
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.05 * torch.randn_like(parameter))
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id], pad_token_id=tokenizer.pad_token_id
    )
    if family in (*GEMMA4, "gemma4_moe"):
        model.generation_config.eos_token_id = [*tokenizer.convert_tokens_to_ids(["<eos>", "<turn|>"]), 0]
        _make_buffers_distinct(model)
    model.save_pretrained(folder)
    if family == "gemma4":
        _add_unread_weights(folder, model)
    tokenizer.save_pretrained(folder)
    image, processor = _processor_files(family)
    if (
        family == "mistral3"
    ):  # as published: one file of settings, and only the decoder says whether the head is tied
        processor["image_processor"] = image
        whole = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        del whole["tie_word_embeddings"]
        (folder / "config.json").write_text(json.dumps(whole, indent=2), encoding="utf-8")
    elif image:
        (folder / "preprocessor_config.json").write_text(json.dumps(image, indent=2), encoding="utf-8")
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2), encoding="utf-8")
    family = "gemma4 dense" if family == "gemma4_moe" else family.removesuffix("_moe")
    placeholder = "<|vision_start|><|image_pad|><|vision_end|>" if family in QWEN else "<image>\n"
    placeholder = "<IMG_CONTEXT>\n" if family == "internvl" else placeholder
    template = SMOL if family in ("smolvlm", "idefics3") else CHATML.replace("@IMAGE@", placeholder)
    own = {"qwen3_5": THINKING, "gemma3": GEMMA_TEMPLATE, "mistral3": MISTRAL_TEMPLATE}
    own |= {"gemma4": GEMMA4_TEMPLATE, "gemma4 dense": GEMMA4_LARGE_TEMPLATE}
    template = own.get(family, template)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def _make_buffers_distinct(model: Any) -> None:
    """Numbers that are stored and never trained: factors of layers, bounds of clipped maps, shifts of features."""
    import torch

    bounds = {"input_min": -2.0, "input_max": 2.5, "output_min": -3.0, "output_max": 3.5}
    for name, buffer in model.named_buffers():
        last = name.rpartition(".")[2]
        if last in ("layer_scalar", "std_scale"):
            buffer.mul_(1 + 0.1 * torch.rand_like(buffer))
        elif last == "std_bias":
            buffer.copy_(0.1 * torch.randn_like(buffer))
        elif last in bounds:
            buffer.fill_(bounds[last])


def _add_unread_weights(folder: Path, model: Any) -> None:
    """Keys and values of the layers that read earlier ones: the published files have them, and no class does."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    for number, layer in enumerate(model.model.language_model.layers):
        if layer.self_attn.is_kv_shared_layer:
            room = f"model.language_model.layers.{number}.self_attn"
            width = layer.self_attn.head_dim
            tensors[f"{room}.k_proj.weight"] = torch.zeros(width, layer.hidden_size)
            tensors[f"{room}.v_proj.weight"] = torch.zeros(width, layer.hidden_size)
            tensors[f"{room}.k_norm.weight"] = torch.ones(width)
    save_file(tensors, path, metadata={"format": "pt"})
