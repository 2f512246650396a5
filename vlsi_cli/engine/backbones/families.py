"""The families of vision language models this toolkit can read, one small description each.

All of them are ``AutoModelForImageTextToText`` models with the same plan: ``model.model`` is the base (vision tower,
projector, decoder), ``model.lm_head`` the language head. What differs is the names of the rooms, the token that
stands for an image, and how the processor is built where torchvision is not installed. A family that is not listed
is refused by name: guessing where a model keeps its norm would give wrong losses, not an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlsi_cli.config import missing
from vlsi_cli.config.experts import experts_of
from vlsi_cli.engine.backbones.family import Family
from vlsi_cli.errors import ModelError, did_you_mean

_PIL = "transformers.models.{0}.image_processing_pil_{0}"
_QWEN_PIL = (_PIL.format("qwen2_vl"), "Qwen2VLImageProcessorPil")


def _qwen(name: str, title: str, processor: str, *extra: str) -> Family:
    projector = ("visual.merger", *extra)
    return Family(
        name,
        title,
        "language_model",
        ("visual",),
        projector,
        "image_token_id",
        "video_token_id",
        _QWEN_PIL,
        processor,
        True,
        keeps_features=not name.startswith("qwen3_vl"),
        gates=("in_proj_a", "in_proj_b") if name.startswith("qwen3_5") else (),
    )


def _idefics(name: str, title: str, stem: str) -> Family:
    # SmolVLM writes its images exactly as Idefics3 does; its own processor wants num2words and torchvision for videos,
    # so the image-only route joins SmolVLM's image processor with Idefics3's processor.
    return Family(
        name,
        title,
        "text_model",
        ("vision_model",),
        ("connector",),
        "image_token_id",
        None,
        (_PIL.format(name), f"{stem}ImageProcessorPil"),
        "Idefics3Processor",
        False,
    )


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _qwen("qwen2_vl", "Qwen2-VL", "Qwen2VLProcessor"),
        _qwen("qwen2_5_vl", "Qwen2.5-VL", "Qwen2_5_VLProcessor"),
        _qwen("qwen3_vl", "Qwen3-VL", "Qwen3VLProcessor", "visual.deepstack_merger_list"),
        _qwen("qwen3_vl_moe", "Qwen3-VL with experts", "Qwen3VLProcessor", "visual.deepstack_merger_list"),
        _qwen("qwen3_5", "Qwen3.5", "Qwen3VLProcessor"),
        _qwen("qwen3_5_moe", "Qwen3.5 with experts", "Qwen3VLProcessor"),
        Family(
            "llava_onevision",
            "LLaVA-OneVision",
            "language_model",
            ("vision_tower",),
            ("multi_modal_projector", "image_newline"),
            "image_token_index",
            "video_token_index",
            (_PIL.format("llava_onevision"), "LlavaOnevisionImageProcessorPil"),
            "LlavaOnevisionProcessor",
            False,
            keeps_features=True,
        ),
        Family(
            "internvl",
            "InternVL",
            "language_model",
            ("vision_tower",),
            ("multi_modal_projector",),
            "image_token_id",
            None,
            (_PIL.format("got_ocr2"), "GotOcr2ImageProcessorPil"),
            "InternVLProcessor",
            False,
            keeps_features=True,
            decoders=("qwen2", "qwen3", "qwen3_moe"),
        ),
        # Its text-only class caps logits, the one with pictures does not, whatever the config says.
        Family(
            "gemma3",
            "Gemma 3",
            "language_model",
            ("vision_tower",),
            ("multi_modal_projector",),
            "image_token_id",
            None,
            (_PIL.format("gemma3"), "Gemma3ImageProcessorPil"),
            "Gemma3Processor",
            False,
            keeps_features=True,
        ),
        # Unlike in Gemma 3, the class with pictures caps logits too.
        Family(
            "gemma4",
            "Gemma 4",
            "language_model",
            ("vision_tower",),
            ("embed_vision",),
            "image_token_id",
            "video_token_id",
            (_PIL.format("gemma4"), "Gemma4ImageProcessorPil"),
            "Gemma4Processor",
            False,
            resized_to=("a number of image tokens", "max_soft_tokens"),
            softcap="final_logit_softcapping",
            keeps_features=True,
            beside_embeddings=(
                "embed_tokens_per_layer",
                "per_layer_model_projection",
                "per_layer_projection_norm",
            ),
            placeholders=("image_token_id", "video_token_id", "audio_token_id"),
            unread=("audio_tower", "embed_audio"),
            flash=False,
            experts_as_stored=True,
        ),
        # Mistral Small 3.1 is of the same class, with a decoder `mistral`; Mistral Small 4, with experts, is not read.
        Family(
            "mistral3",
            "Ministral 3",
            "language_model",
            ("vision_tower",),
            ("multi_modal_projector",),
            "image_token_index",
            None,
            (_PIL.format("pixtral"), "PixtralImageProcessorPil"),
            "PixtralProcessor",
            False,
            keeps_features=True,
            decoders=("ministral3", "mistral"),
            resized_to=("a longest side", "size.longest_edge"),
            tekken=True,
        ),
        _idefics("smolvlm", "SmolVLM", "SmolVLM"),
        _idefics("idefics3", "Idefics3", "Idefics3"),
    )
}


def supported() -> str:
    """The supported families as a phrase for messages: "Qwen2-VL (qwen2_vl), ..."."""
    return ", ".join(f"{family.title} ({family.name})" for family in FAMILIES.values())


def read_config(folder: Path, shown: str | None = None) -> dict[str, Any]:
    """``config.json`` of a model folder as a dict.

    Args:
        folder: the local folder.
        shown: what to call it in a message; default the folder itself.

    Raises:
        ModelError: no such file, one that may not be read, or not a JSON object with a ``model_type``.
    """
    shown = shown or str(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            f"'{shown}' has no config.json, so it is not a model folder",
            hint=missing.no_model(folder) if missing.is_run(folder) else f"looked in {folder}",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"config.json of '{shown}' is not readable JSON: {error}") from error
    except OSError as error:
        raise ModelError(
            f"config.json of '{shown}' cannot be read: {error.strerror or error}", hint=f"looked in {folder}"
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"config.json of '{shown}' names no model_type, so its family is unknown")
    return config


def family_of(config: dict[str, Any], shown: str) -> Family:
    """The family of a parsed ``config.json``.

    Raises:
        ModelError: the model is text-only, of a family without an adapter, or has a decoder that its family is not read
            with; all say so by name.
    """
    name = config["model_type"]
    if name in FAMILIES:
        return _with_decoder(FAMILIES[name], config, shown)
    hint = f"supported families: {supported()}"
    if "vision_config" in config or "visual" in config:
        raise ModelError(
            f"'{shown}' is a vision language model of the family '{name}', which has no adapter here",
            hint=hint,
        )
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"'{shown}' is a text-only model ('{name}'): it cannot see images", hint=hint)
    near = did_you_mean(name, FAMILIES)
    guess = f" (did you mean '{near}'?)" if near else ""
    raise ModelError(f"'{shown}' is of the family '{name}', which has no adapter here{guess}", hint=hint)


def _with_decoder(family: Family, config: dict[str, Any], shown: str) -> Family:
    text = config.get("text_config")
    kind = text.get("model_type") if isinstance(text, dict) else None
    if family.decoders and kind not in family.decoders:
        raise ModelError(
            f"'{shown}' is of the family {family.title} with a decoder '{kind}', which has no adapter here",
            hint=f"{family.title} is read with these decoders: {', '.join(family.decoders)}",
        )
    try:
        experts_of(config)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"config.json of '{shown}' tells of experts that this program does not know: {error}",
            hint="every decoder layer must have them, with one number chosen for a token",
        ) from error
    return family
