"""The families of vision language models this toolkit can read, one small description each.

All of them are ``AutoModelForImageTextToText`` models with the same plan: ``model.model`` is the base (vision tower,
projector, decoder), ``model.lm_head`` the language head. What differs is the names of the rooms, the token that
stands for an image, and how the processor is built where torchvision is not installed. A family that is not listed
is refused by name: guessing where a model keeps its norm would give wrong losses, not an error.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vlsi_cli.config import missing
from vlsi_cli.config.experts import experts_of
from vlsi_cli.engine.losses import LogitRule
from vlsi_cli.errors import ConfigError, ModelError, did_you_mean


@dataclass(frozen=True)
class Family:
    """Where one family keeps things.

    Attributes:
        name: ``model_type`` in ``config.json``.
        title: the name people use.
        decoder: the decoder's attribute inside the base model.
        vision: attributes of the base model that hold the vision tower.
        projector: attributes (dotted) that carry picture features to the decoder's width. A projector that lives
            inside the tower (Qwen) is listed here and does not count as vision.
        image_token: attribute of the config with the id of the token that stands for one image feature.
        image_processor: module and class of the image processor that works on PIL and numpy alone.
        processor: class of the processor that joins image processor and tokenizer.
        pixel_budget: whether pictures are resized to a budget of pixels (``min_pixels``, ``max_pixels``).
        resized_to: what they are resized to instead, and what sets it in ``processor_config.json``; empty: they become
            tiles of one size.
        softcap, logit_scale, logit_divisor: attributes of the text config for what the model's own forward does to its
            logits (as in Gemma, Cohere and Granite); None where it does nothing, whatever the config holds.
        keeps_features: whether all that the decoder gets of a picture is one feature an image token, so that it can be
            kept (``backbones.vision``): not in Qwen3-VL, whose features enter later layers too, nor where tiles of all
            records are nested.
        beside_embeddings: attributes of the decoder that make inputs of all layers of the tokens; they belong to the
            embeddings.
        placeholders: attributes of the config with ids of tokens that the model embeds as padding wherever they stand,
            also where it has said them itself.
        unread: attributes of the base model for what is never fed to it here (audio): kept as they are.
        flash: whether FlashAttention 2 can compute its attention, whose heads have at most 256 numbers.
        gates: linear maps of a decoder layer that give one number a head (gates, decays), which is next to nothing of
            it: they are not quantized.
        decoders: ``model_type`` of the decoders that the family is read with; empty: it has one kind only, or its kinds
            have one plan.
        tekken: whether its tokenizer is Mistral's.
        refused: keys of a text config which, where they are true, say what its model is not read with -> what that is.
    """

    name: str
    title: str
    decoder: str
    vision: tuple[str, ...]
    projector: tuple[str, ...]
    image_token: str
    video_token: str | None
    image_processor: tuple[str, str]
    processor: str
    pixel_budget: bool
    softcap: str | None = None
    logit_scale: str | None = None
    logit_divisor: str | None = None
    keeps_features: bool = False
    beside_embeddings: tuple[str, ...] = ()
    placeholders: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    flash: bool = True
    gates: tuple[str, ...] = ()
    decoders: tuple[str, ...] = ()
    resized_to: tuple[str, str] | tuple[()] = ()
    tekken: bool = False
    refused: tuple[tuple[str, str], ...] = ()

    def base(self, model: nn.Module) -> nn.Module:
        """The model without its head: ids and pixels to final-normed hidden states."""
        return model.get_submodule("model")

    def decoder_of(self, model: nn.Module) -> nn.Module:
        """The text decoder: ``embed_tokens``, ``layers``, ``norm``."""
        return self.base(model).get_submodule(self.decoder)

    def part_of(self, name: str) -> str:
        """The part that a parameter belongs to, from its name in ``model.named_parameters()``.

        Returns:
            "embeddings", "layers", "final_norm", "head", "vision", "projector", or "audio", which is never trained.

        Raises:
            ModelError: a parameter in no known room (a model that only claims the family).
        """
        if name.startswith("lm_head."):
            return "head"
        inner = name.removeprefix("model.")
        text = inner.removeprefix(self.decoder + ".")
        if text != inner:
            for prefix, part in (
                ("embed_tokens.", "embeddings"),
                *((f"{name}.", "embeddings") for name in self.beside_embeddings),
                ("layers.", "layers"),
                ("norm.", "final_norm"),
            ):
                if text.startswith(prefix):
                    return part
        if any(inner == room or inner.startswith(room + ".") for room in self.projector):
            return "projector"
        if any(inner.startswith(room + ".") for room in self.vision):
            return "vision"
        if any(inner.startswith(room + ".") for room in self.unread):
            return "audio"
        raise ModelError(f"parameter '{name}' is in no part of a {self.title} model that this program knows")

    def image_token_id(self, config: Any) -> int:
        """Id of the token that each image feature replaces."""
        return int(getattr(config, self.image_token))

    def video_token_id(self, config: Any) -> int | None:
        """Id of the token that each video feature replaces, or None in families that write videos as images."""
        return int(getattr(config, self.video_token)) if self.video_token else None

    def logit_rule(self, config: Any) -> LogitRule:
        """What the model does to its logits behind its head."""
        text = config.get_text_config()
        scale = float(getattr(text, self.logit_scale)) if self.logit_scale else 1.0
        divisor = float(getattr(text, self.logit_divisor)) if self.logit_divisor else 1.0
        return LogitRule(scale / divisor, getattr(text, self.softcap) if self.softcap else None)

    def image_tokens(self, config: Any, inputs: dict[str, Tensor]) -> list[int]:
        """Image features per row of processed inputs: how many tokens of each row are image tokens. [B] integers."""
        counts: list[int] = (inputs["input_ids"] == self.image_token_id(config)).sum(dim=1).tolist()
        return counts

    def attention(self, name: str, shown: str) -> str | dict[str, str]:
        """What transformers is asked for where an attention kernel is: what is not read may not have it.

        Raises:
            ConfigError: FlashAttention 2, and heads that it does not take.
        """
        if name == "flash_attention_2" and not self.flash:
            raise ConfigError(
                f"'{shown}' cannot be computed with flash_attention_2, which takes heads of at most 256 numbers; "
                f"{self.title} has some of 512",
                hint="use attn_implementation: auto",
            )
        if not self.unread:
            return name
        return {"": name, "text_config": name, "vision_config": name, "audio_config": "eager"}

    def image_processor_class(self) -> Any:
        """The PIL image processor's class (imported on call; both transformers 5.17 and newer keep it there)."""
        module, name = self.image_processor
        return getattr(importlib.import_module(module), name)

    def processor_class(self) -> Any:
        """The stock processor's class."""
        import transformers

        return getattr(transformers, self.processor)


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
            refused=(("enable_moe_block", "experts (26B-A4B)"),),
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
    for key, what in family.refused:
        if isinstance(text, dict) and text.get(key):
            raise ModelError(
                f"'{shown}' is of the family {family.title} with {what}, which has no adapter here",
                hint=f"take another size of {family.title}; docs/models.md lists those that are read",
            )
    try:
        experts_of(config)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"config.json of '{shown}' tells of experts that this program does not know: {error}",
            hint="every decoder layer must have them, with one number chosen for a token",
        ) from error
    return family
