"""Processors: chat template, tokenizer and image processor of a model folder, with or without torchvision.

transformers builds the joint processor of most families only where torchvision is installed, because the same class
also reads videos. This toolkit reads images, so without torchvision it joins the family's PIL image processor and
the tokenizer in a subclass of the stock processor that leaves the video part out. Text and image tokens are the
stock ones; pixel values differ from torchvision's resize by rounding only.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from vlsi_cli.engine.backbones.families import FAMILIES, family_of, read_config
from vlsi_cli.engine.backbones.family import Family
from vlsi_cli.engine.backbones.quiet import quiet_transformers
from vlsi_cli.errors import ConfigError, ModelError

#: Files that make up a processor. Copied byte for byte into a student's folder, where they exist.
PROCESSOR_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
)

_TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"


def load_processor(
    folder: Path,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    chat_template: str | None = None,
    shown: str | None = None,
) -> Any:
    """The processor of a model folder: ``processor(text=[...], images=[...])`` gives the model's inputs.

    Args:
        folder: a local model folder.
        min_pixels, max_pixels: budget that pictures are resized to, in pixels; only in families that resize to a
            budget (the Qwen ones). None keeps what the folder says.
        chat_template: what to take where the folder has no chat template of its own. A large base model can be
            taught from with the small model's template.
        shown: what to call the model in a message; default the folder.

    Raises:
        ModelError: no tokenizer, no image processor settings or no chat template in the folder.
        ConfigError: a pixel budget that is not one, or for a family without.
    """
    shown = shown or str(folder)
    family = family_of(read_config(folder, shown), shown)
    budget = _pixel_budget(family, shown, min_pixels, max_pixels)
    try:
        with quiet_transformers():
            processor = _stock_processor(family, folder) if torchvision_works() else None
            if processor is None:
                processor = _image_only_processor(family, folder, budget)
            elif budget:
                image_processor = type(processor.image_processor)
                processor.image_processor = image_processor.from_pretrained(folder, **budget)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the processor of '{shown}' cannot be loaded: {_first_line(error)}",
            hint="the folder needs tokenizer and preprocessor files beside its weights",
        ) from error
    if not processor.chat_template:
        processor.chat_template = getattr(processor.tokenizer, "chat_template", None) or chat_template
    if not processor.chat_template:
        raise ModelError(
            f"'{shown}' has no chat template, so its prompts cannot be written (a base model, perhaps)",
            hint="take the instruction-tuned model of the family, or put a chat_template.jinja into the folder",
        )
    # How long a record may be is `data.max_length`, not what the tokenizer warns of at its first longer text.
    processor.tokenizer.deprecation_warnings[_TOO_LONG] = True
    return processor


def torchvision_works() -> bool:
    """Whether torchvision is installed and can be imported (a wheel built for another torch cannot)."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def _stock_processor(family: Family, folder: Path) -> Any:
    """What plain transformers would load, or None when a package for videos is missing."""
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ImportError, ValueError):  # transformers reports a missing package as either
        return None
    if family.tekken:
        processor.tokenizer = _tokenizer(family, folder)
    return processor


def _tokenizer(family: Family, folder: Path) -> Any:
    from transformers import AutoTokenizer

    # So that tokenizer.json is read in any environment (where mistral-common is installed transformers would read
    # tekken.json, by a class that knows no chat template), and words are cut as Mistral's own code cuts them: the
    # tokenizer.json of Mistral Small 3.1 does not.
    options = {"fix_mistral_regex": True} if family.tekken else {}
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)


def _image_only_processor(family: Family, folder: Path, budget: dict[str, int]) -> Any:
    """The family's processor without its video part."""
    image_only = _image_only_class(family)
    image_processor = family.image_processor_class().from_pretrained(folder, local_files_only=True, **budget)
    settings, _ = image_only.get_processor_dict(folder, local_files_only=True)
    parts = {"image_processor": image_processor, "tokenizer": _tokenizer(family, folder)}
    wanted = image_only.__base__.get_attributes()
    if wanted[0] not in parts:  # one that has to be given every part
        parts = {name: parts.get(name) for name in wanted}
        settings = {name: value for name, value in settings.items() if name not in wanted}
    return image_only.from_args_and_dict(list(parts.values()), settings)


@cache
def _without_parts() -> Any:
    """A base between a stock processor and transformers' own that hides parts which are not there from the latter."""
    from transformers import ProcessorMixin

    def init(self: Any, *args: Any, **parts: Any) -> None:
        given = {name: part for name, part in parts.items() if part is not None}
        ProcessorMixin.__init__(self, *args, **given)

    return type("ProcessorMixin", (ProcessorMixin,), {"__init__": init})


@cache
def _image_only_class(family: Family) -> Any:
    stock = family.processor_class()
    if getattr(stock, "is_dummy", False):
        stock = _imported_without_torchvision(family)
    members = {
        "get_attributes": classmethod(lambda _cls: ["image_processor", "tokenizer"]),
        # Processes that read data get a copy; this class has no name that they could find.
        "__reduce__": lambda self: (_image_only_copy, (family.name, self.__dict__)),
    }
    return type(stock.__name__, (stock, _without_parts()), members)


_IMPORTING = Lock()


def _imported_without_torchvision(family: Family) -> Any:
    """The stock processor of a family whose module asks for the image processor that needs torchvision.

    Pixtral's takes one function from there, which finds the size of a resized picture from integers; the module of the
    PIL image processor has its twin. While the processor is imported, it stands in.
    """
    module = family.image_processor[0]
    wanted = module.replace("_pil_", "_")
    with _IMPORTING:
        sys.modules[wanted] = importlib.import_module(module)
        try:
            own = importlib.import_module(module.replace("image_processing_pil_", "processing_"))
        finally:
            del sys.modules[wanted]
    return getattr(own, family.processor)


def _image_only_copy(family: str, state: dict[str, Any]) -> Any:
    processor = object.__new__(_image_only_class(FAMILIES[family]))
    processor.__dict__.update(state)
    return processor


def _pixel_budget(family: Family, shown: str, low: int | None, high: int | None) -> dict[str, int]:
    budget = {key: value for key, value in (("min_pixels", low), ("max_pixels", high)) if value is not None}
    if not budget:
        return {}
    if not family.pixel_budget:
        does, instead = "cuts pictures into tiles of one size", ""
        if family.resized_to:
            what, key = family.resized_to
            does, instead = f"resizes pictures to {what}", f" and set {key} in its processor_config.json"
        raise ConfigError(
            f"min_pixels and max_pixels do not apply to '{shown}': {family.title} {does}",
            hint=f"leave data.min_pixels and data.max_pixels out{instead}",
        )
    if any(value <= 0 for value in budget.values()) or (low is not None and high is not None and low > high):
        raise ConfigError(f"min_pixels {low} and max_pixels {high} are not a range of pixel counts")
    return budget


def copy_processor_files(source: Path, target: Path) -> list[str]:
    """Copy the processor's files of one model folder to another, byte for byte.

    Returns:
        The names that were there to copy.
    """
    present = [name for name in PROCESSOR_FILES if (source / name).is_file()]
    for name in present:
        shutil.copyfile(source / name, target / name)
    return present


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
