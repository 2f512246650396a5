"""What tells one family of vision language models from another: the names of its rooms, and a few habits."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vlsi_cli.engine.losses import LogitRule
from vlsi_cli.errors import ConfigError, ModelError


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
        experts_as_stored: whether checkpoints hold experts as the model does, so that they are read from the disk like
            all other weights.
        gates: linear maps of a decoder layer that give one number a head (gates, decays), which is next to nothing of
            it: they are not quantized.
        decoders: ``model_type`` of the decoders that the family is read with; empty: it has one kind only, or its kinds
            have one plan.
        tekken: whether its tokenizer is Mistral's.
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
    experts_as_stored: bool = False
    gates: tuple[str, ...] = ()
    decoders: tuple[str, ...] = ()
    resized_to: tuple[str, str] | tuple[()] = ()
    tekken: bool = False

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
