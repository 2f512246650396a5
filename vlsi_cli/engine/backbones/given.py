"""A model that somebody has in memory, as a backbone: checked as one from a folder is, and left as it was found."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from vlsi_cli.config.presence import cached_snapshot
from vlsi_cli.config.ranges import require_range
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.checks import require_rows, require_same_image_token, require_same_patches
from vlsi_cli.engine.backbones.families import family_of
from vlsi_cli.engine.backbones.family import Family
from vlsi_cli.engine.backbones.folders import resolve_folder
from vlsi_cli.engine.backbones.processors import load_processor
from vlsi_cli.engine.devices import precision_name
from vlsi_cli.errors import ConfigError, ModelError

#: Where wrappers of models keep what they wrap: torch's compiler, its parallel containers, TransformerLens, nnsight.
_INSIDE = ("_orig_mod", "module", "original_model", "_model")


def given_backbone(model: Any, processor: Any) -> Backbone:
    """A backbone of a model in memory: the very module, neither copied, moved, frozen nor switched to eval mode.

    Args:
        model: a ``PreTrainedModel`` of a supported family, its language head included, on one device.
        processor: what ``AutoProcessor`` gives for it; or the folder or hub id whose processor is to be loaded.

    Raises:
        ConfigError: no processor; or a precision that cannot hold the family's states.
        ModelError: no transformers model, one of another family, without a head or on several devices; or a processor
            that is none or is not this model's.
    """
    shown, family = _require_model(model)
    if processor is None:
        raise ConfigError(
            "a model in memory is read with its processor, and there is none",
            hint="give processor=AutoProcessor.from_pretrained(...), or the name of the folder or hub id that has it",
        )
    if isinstance(processor, str | Path):
        folder = resolve_folder(str(processor), weights=False)
        processor = load_processor(folder, shown=str(processor))
    else:
        processor = _with_template(processor, shown)
    require_same_patches(processor, model.config, shown)
    require_same_image_token(processor, family, model.config, shown)
    name = str(model.name_or_path or "")
    backbone = Backbone(
        model=model,
        family=family,
        processor=processor,
        id=shown,
        revision=None,
        folder=cached_snapshot(name) or Path(name).expanduser(),
    )
    precision = precision_name(backbone.dtype)
    require_range(family.name, shown, precision, precision)
    require_rows(backbone)
    return backbone


@contextmanager
def left_as_found(backbone: Backbone) -> Iterator[None]:
    """Within, a model is in eval mode; afterwards each module's mode is what it was, and so is what a forward pass
    leaves in the model (:attr:`Backbone.text_offset`)."""
    base: Any = backbone.base
    before = [(module, module.training) for module in backbone.model.modules()]
    offsets = {"rope_deltas": base.rope_deltas} if hasattr(base, "rope_deltas") else {}
    for module, _ in before:
        module.training = False
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode
        for name, value in offsets.items():
            setattr(base, name, value)


def _require_model(model: Any) -> tuple[str, Family]:
    """What to call a model, and its family."""
    from transformers import PreTrainedModel

    kind = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"a {kind} is neither a name nor a model of transformers",
            hint=_inside(model, PreTrainedModel),
        )
    shown = str(model.name_or_path or kind)
    family = family_of(model.config.to_dict(), shown)
    head = model.get_output_embeddings()
    try:
        whole = isinstance(head, nn.Linear)
        for part in ("layers", "norm"):
            family.decoder_of(model).get_submodule(part)
    except AttributeError:
        whole = False
    if not whole:
        raise ModelError(
            f"'{shown}' is a {kind}, without the language head and decoder of a {family.title} model",
            hint="load it with AutoModelForImageTextToText",
        )
    if not head.weight.is_floating_point():
        raise ModelError(
            f"the language head of '{shown}' is quantized, and is read in its own precision only"
        )
    places = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(places) > 1 or places == ["meta"]:
        raise ModelError(
            f"'{shown}' lies on {' and '.join(places)}: a model in memory is read where all of it is on one device",
            hint="give its name instead, to have it loaded onto one",
        )
    return shown, family


def _inside(model: Any, wanted: type) -> str:
    """What to give instead of something that is no model itself."""
    if hasattr(model, "get_base_model"):  # of peft
        return "give model.get_base_model(): its adapters stay at work"
    for name in _INSIDE:
        if isinstance(getattr(model, name, None), wanted):
            return f"give what it wraps: model.{name}"
    return "give a hub id, a folder, or what AutoModelForImageTextToText.from_pretrained returns"


def _with_template(processor: Any, shown: str) -> Any:
    """A processor with a chat template: the very one, or a shallow copy with the template of its tokenizer."""
    lacks = [name for name in ("tokenizer", "image_processor") if getattr(processor, name, None) is None]
    if lacks:
        raise ModelError(
            f"a {type(processor).__name__} is no processor of a vision language model: it has no {lacks[0]}",
            hint="give what AutoProcessor.from_pretrained returns, or the name of the folder or hub id that has it",
        )
    if getattr(processor, "chat_template", None):
        return processor
    template = getattr(processor.tokenizer, "chat_template", None)
    if not template:
        raise ModelError(
            f"the processor for '{shown}' has no chat template, so its prompts cannot be written",
            hint="take that of the instruction-tuned model of the family",
        )
    processor = copy.copy(processor)
    processor.chat_template = template
    return processor
