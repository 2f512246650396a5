"""From a name to a loaded model: safetensors only, nothing missing, and errors that say what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch

from vlsi_cli.config.experts import Experts, experts_of
from vlsi_cli.config.facts import rounded
from vlsi_cli.config.presence import weight_files
from vlsi_cli.config.ranges import require_range, require_whole
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.checks import (
    require_rows,
    require_safetensors,
    require_same_image_token,
    require_same_patches,
    require_weights,
)
from vlsi_cli.engine.backbones.families import family_of, read_config
from vlsi_cli.engine.backbones.family import Family
from vlsi_cli.engine.backbones.folders import resolve_folder
from vlsi_cli.engine.backbones.offloaded import load_over_layers
from vlsi_cli.engine.backbones.placement import Placement, device_map
from vlsi_cli.engine.backbones.processors import load_processor
from vlsi_cli.engine.backbones.quantization import Quantization, check_quantization, quantizer
from vlsi_cli.engine.backbones.quiet import quiet_transformers
from vlsi_cli.engine.devices import precision_name, seeded
from vlsi_cli.errors import ModelError, fitting, is_out_of_memory

# ---------------------------------------------------------------- facts without weights


@dataclass
class Description:
    """What is known of a model before its weights are loaded: enough for a plan and for the pair's checks."""

    id: str
    revision: str | None
    folder: Path
    family: Family
    config: Any
    processor: Any

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return int(self.config.get_text_config().num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        """Width of the decoder."""
        return int(self.config.get_text_config().hidden_size)

    @property
    def experts(self) -> Experts | None:
        """What its feed-forward layers are mixed of, or None where they are dense."""
        return experts_of(self.config.get_text_config().to_dict())

    @property
    def vocabulary_rows(self) -> int:
        """Rows of the head."""
        return int(self.config.get_text_config().vocab_size)

    @cached_property
    def tokenizer_length(self) -> int:
        """The largest token id + 1."""
        return max(self.processor.tokenizer.get_vocab().values()) + 1


def describe(
    id: str,
    *,
    revision: str | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    chat_template: str | None = None,
) -> Description:
    """Family, config and processor of a model, without its weights.

    Raises:
        ModelError, ConfigError: as :func:`load_backbone`.
    """
    folder = resolve_folder(id, revision, weights=False)
    raw = read_config(folder, id)
    family = family_of(raw, id)
    require_whole(rounded(raw), id)
    config = _read_model_config(folder, id)
    processor = load_processor(
        folder, min_pixels=min_pixels, max_pixels=max_pixels, chat_template=chat_template, shown=id
    )
    require_same_patches(processor, config, id)
    require_same_image_token(processor, family, config, id)
    return Description(id, revision, folder, family, config, processor)


def _read_model_config(folder: Path, shown: str) -> Any:
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # its validators raise errors of many unrelated kinds
        raise ModelError(
            f"config.json of '{shown}' does not describe a model: {_last_line(error)}"
        ) from error


# ---------------------------------------------------------------- loading


def load_backbone(
    id: str,
    *,
    revision: str | None = None,
    init: Literal["pretrained", "random"] = "pretrained",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    attn_implementation: str = "sdpa",
    trust_remote_code: bool = False,
    seed: int = 0,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    chat_template: str | None = None,
    placement: Placement = "device",
    quantization: Quantization = "none",
    computed: torch.dtype | None = None,
) -> Backbone:
    """Load a vision language model, frozen and in eval mode.

    A model that is only read can be loaded in its compute dtype; one that is trained should be loaded in fp32 and
    computed with under autocast, so that small updates are not rounded away.

    Args:
        id, revision: see :func:`resolve_folder`.
        init: "random" takes the architecture of the folder's config and fresh weights from ``seed``, drawn on the
            CPU in fp32, so they are the same on every machine; torch's generators stay as they were.
        dtype: what all weights are stored in.
        device: where they go.
        attn_implementation: "sdpa", "eager" or "flash_attention_2".
        trust_remote_code: refused: every supported family is part of transformers.
        seed: for ``init="random"``.
        min_pixels, max_pixels, chat_template: see :func:`.processors.load_processor`.
        placement: where the decoder layers lie, see :mod:`.placement`; for a model that is only read.
        quantization: how their weights are rounded, see :mod:`.quantization`; for a model that is only read.
        computed: what it will compute in, under autocast; None: ``dtype``.

    Raises:
        ModelError: no such model, not fetched and offline, unsupported family, no safetensors, weights missing.
        ConfigError: a pixel budget for a family without; weights that cannot be placed or quantized as asked; a
            precision that cannot hold the family's states; an attention kernel that cannot compute it.
    """
    if trust_remote_code:
        raise ModelError(
            f"'{id}' was to run code from its own folder, which this program never does",
            hint="leave trust_remote_code out: supported families need none",
        )
    device = torch.device(device)
    folder = resolve_folder(id, revision, weights=init == "pretrained")
    raw = read_config(folder, id)
    family = family_of(raw, id)
    attention = family.attention(attn_implementation, id)
    require_whole(rounded(raw), id)
    require_range(family.name, id, precision_name(dtype), precision_name(computed or dtype))
    config = _read_model_config(folder, id)
    if quantization != "none":
        check_quantization(quantization, device, raw, id)
        if placement != "device" or init == "random":
            raise ValueError("only a pretrained model on the device is quantized")
    if init == "pretrained":
        require_safetensors(folder, id)
    processor = load_processor(
        folder, min_pixels=min_pixels, max_pixels=max_pixels, chat_template=chat_template, shown=id
    )
    require_same_patches(processor, config, id)
    require_same_image_token(processor, family, config, id)
    too_large = ModelError(
        f"'{id}' does not fit into the memory of {device}",
        hint="`vlsi plan` says what fits; a large model can be cached, quantized or placed elsewhere",
    )
    if init == "random":
        if (
            "tie_word_embeddings" not in raw
        ):  # Ministral's files say it of the decoder, and it is the whole's that counts
            config.tie_word_embeddings = config.get_text_config().tie_word_embeddings
        with fitting(too_large):
            model = _random_model(folder, config, attention, seed).to(device=device, dtype=dtype)
    else:
        over_layers = placement == "disk" and experts_of(raw) is not None and not family.experts_as_stored
        # Straight to the device: through host memory a 72B model would need its size in RAM first.
        places = {"": str(device)} if device.type == "cuda" else None
        if placement != "device" and not over_layers:
            places = device_map(config, family, device, placement, dtype, id)
        options: dict[str, Any] = {} if places is None else {"device_map": places}
        if quantization != "none":
            options["device_map"] = {"": str(device)}
            options["quantization_config"] = quantizer(config, family, quantization, dtype)
        with fitting(too_large):
            load = partial(load_over_layers, family, device, id) if over_layers else partial(_load, options)
            model, info = _read_weights(load, folder, config, dtype, attention, id)
        require_weights(model, info, id)
        model = model if options or over_layers else model.to(device)
    backbone = Backbone(
        model=model, family=family, processor=processor, id=id, revision=revision, folder=folder
    )
    backbone.freeze()
    require_rows(backbone)
    return backbone


def _random_model(folder: Path, config: Any, attention: str | dict[str, str], seed: int) -> Any:
    from transformers import AutoModelForImageTextToText

    with quiet_transformers(), seeded(seed):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=torch.float32, attn_implementation=attention
        )
    _adopt_generation_config(model, folder)
    return model


def _adopt_generation_config(model: Any, folder: Path) -> None:
    """A model built from its config lacks the folder's generation settings (end tokens), which generate needs."""
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)


def _load(options: dict[str, Any], folder: Path, config: Any, **how: Any) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForImageTextToText

    loaded: tuple[Any, dict[str, Any]] = AutoModelForImageTextToText.from_pretrained(
        folder, config=config, trust_remote_code=False, ignore_mismatched_sizes=False, **how, **options
    )
    return loaded


def _read_weights(
    load: Callable[..., tuple[Any, dict[str, Any]]],
    folder: Path,
    config: Any,
    dtype: torch.dtype,
    attention: str | dict[str, str],
    id: str,
) -> tuple[Any, dict[str, Any]]:
    try:
        with quiet_transformers():
            return load(
                folder,
                config,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # damaged files raise errors of many unrelated kinds
        if is_out_of_memory(error) or isinstance(error, ModelError):
            raise
        # safetensors says of a file that may not be read that there is none
        closed = [file.name for file in weight_files(folder) if not os.access(file, os.R_OK)]
        cause = f"{closed[0]} may not be read" if closed else _last_line(error)
        raise ModelError(
            f"the weights of '{id}' cannot be loaded: {cause}", hint=f"folder: {folder}"
        ) from error


def _last_line(error: BaseException) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
    return line if len(line) <= _LONGEST_CAUSE else f"{line[:_LONGEST_CAUSE]}..."


_LONGEST_CAUSE = 300
