"""Whether the files of one model belong together: config, image settings, tokenizer and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.family import Family
from vlsi_cli.engine.data.tokens import image_token_ids
from vlsi_cli.errors import ModelError


def require_same_patches(processor: Any, config: Any, id: str) -> None:
    """Refuse image settings that cut pictures into other patches than the vision tower was made for."""
    settings, vision = processor.image_processor, getattr(config, "vision_config", None)
    for where, ours, made_for, theirs in (
        (settings, "patch_size", vision, "patch_size"),
        (settings, "merge_size", vision, "spatial_merge_size"),
        (processor, "patch_size", vision, "patch_size"),
        (processor, "spatial_merge_size", config, "spatial_merge_size"),
    ):
        cut, made = _side(getattr(where, ours, None)), getattr(made_for, theirs, None)
        if made is not None and cut is not None and cut != made:
            raise ModelError(
                f"the image settings of '{id}' say {ours} {cut!r}, and its vision tower was made for {made!r}",
                hint="preprocessor_config.json or processor_config.json does not belong to config.json",
            )


def _side(size: Any) -> Any:
    """The side of a square that is given by height and width; anything else as it is."""
    if not hasattr(size, "items"):
        return size
    sides = [each for _, each in size.items() if each is not None]
    return sides[0] if sides and all(each == sides[0] for each in sides) else size


def require_same_image_token(processor: Any, family: Family, config: Any, id: str) -> None:
    """Refuse a tokenizer that writes pictures with another token than the model replaces by features."""
    written, replaced = image_token_ids(processor), family.image_token_id(config)
    if replaced not in written:
        raise ModelError(
            f"the tokenizer of '{id}' writes a picture with token {written[0]}, and its config.json says {replaced}",
            hint="tokenizer.json and config.json do not belong together",
        )


def require_rows(backbone: Backbone) -> None:
    """Refuse a head with fewer rows than its tokenizer has words."""
    if backbone.vocabulary_rows < backbone.tokenizer_length:
        raise ModelError(
            f"'{backbone.id}' has {backbone.vocabulary_rows} rows in its head, but its tokenizer has ids up to "
            f"{backbone.tokenizer_length - 1}: model and tokenizer do not belong together"
        )


def require_safetensors(folder: Path, id: str) -> None:
    """Refuse a folder without safetensors: pickles can run code when they are opened."""
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"'{id}' has its weights as pickles only ({pickles[0]}), which can run code when opened and are refused",
            hint="convert them to safetensors, or take a revision that has them",
        )
    raise ModelError(
        f"'{id}' has no weights: no *.safetensors in {folder}",
        hint="to start from fresh weights: init: random",
    )


def require_weights(model: Any, info: dict[str, Any], id: str) -> None:
    """Refuse a checkpoint that does not fill the model, or that holds weights the model has no place for."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    missing = sorted(k for k in info.get("missing_keys", ()) if k not in tied)
    unexpected = sorted(k for k in info.get("unexpected_keys", ()) if not k.endswith("rotary_emb.inv_freq"))
    wrong = sorted(str(k[0] if isinstance(k, tuple) else k) for k in info.get("mismatched_keys", ()))
    for kind, keys in (
        ("lacks", missing),
        ("has weights that the model does not know:", unexpected),
        ("has another shape for", wrong),
    ):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ModelError(
                f"the checkpoint of '{id}' {kind} {keys[0]}{more}",
                hint="config.json and weights do not belong together",
            )
