"""Decoder layers with experts that stay in the checkpoint: read when they run, in whatever layout it holds them.

transformers reads decoder layers from the disk only where their tensors lie there as the model has them; those of
experts it converts while it loads, and would write a second copy of them to the disk first. Here the model is loaded
without its layers, which are then put back as shells that read, join and turn their tensors themselves.

Checkpoints hold the two tensors of a layer's experts in three ways: as the model does, [E, out, in] (Qwen3.5); turned,
[E, in, out] (Qwen3-VL); or one matrix an expert and projection (InternVL3.5, and what transformers saves of Qwen3.5).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import attach_align_device_hook
from safetensors import safe_open
from torch import Tensor, nn

from vlsi_cli.config.presence import weight_files
from vlsi_cli.engine.backbones.family import Family
from vlsi_cli.engine.backbones.placement import hollow, rooms_of
from vlsi_cli.errors import ModelError

#: A tensor of a decoder layer in a checkpoint: the layer's number from 0, and the name inside the layer.
_IN_LAYER = re.compile(r"^(?:.+\.)?language_model\.(?:model\.)?layers\.(\d+)\.(.+)$")
#: The matrices that the one tensor of all experts is made of, where they lie apart.
_PROJECTIONS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


class LayerTensors(Mapping[str, Tensor]):
    """The tensors of all decoder layers by their names in the model, each read when it is asked for.

    Args:
        folder: the checkpoint's.
        layers: the decoder layers without memory, which say what there must be.
        room: the name of the list that they stand in.
        dtype: of what is read.
        shown: what to call the model in a message.

    Raises:
        ModelError: a tensor is missing, has another shape, or has no place in the layers.
    """

    def __init__(
        self, folder: Path, layers: nn.ModuleList, room: str, dtype: torch.dtype, shown: str
    ) -> None:
        self._dtype = dtype
        places: dict[tuple[int, str], tuple[Any, str]] = {}
        for opened in [safe_open(file, framework="pt") for file in weight_files(folder)]:
            for key in opened.keys():  # noqa: SIM118 - not a mapping
                if found := _IN_LAYER.match(key):
                    places[int(found[1]), found[2]] = opened, key
        self._sources: dict[str, list[list[tuple[Any, str]]]] = {}
        self._shapes: dict[str, torch.Size] = {}
        for number, layer in enumerate(layers):
            for name, expected in layer.state_dict().items():
                taken = _sources(number, name, expected, places)
                if taken is None:
                    raise _unfit(shown, f"lacks {room}.{number}.{name}")
                whole = f"{room}.{number}.{name}"
                self._sources[whole] = [[places.pop(key) for key in part] for part in taken]
                self._shapes[whole] = expected.shape
                self._require_shape(whole, shown)
        for number, name in places:
            raise _unfit(shown, f"has weights that the model does not know: layers.{number}.{name}")

    def __getitem__(self, name: str) -> Tensor:
        parts = [[opened.get_tensor(key) for opened, key in part] for part in self._sources[name]]
        shape = self._shapes[name]
        if len(parts) > 1 or len(parts[0]) > 1:
            return torch.stack([torch.cat(part) for part in parts]).to(self._dtype)
        tensor: Tensor = parts[0][0].to(self._dtype)
        # turned by its strides alone: grouped products take either order, and a copy of a layer takes seconds
        return tensor if tensor.shape == shape else tensor.transpose(1, 2)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def _require_shape(self, name: str, shown: str) -> None:
        expected = list(self._shapes[name])
        parts = [[opened.get_slice(key).get_shape() for opened, key in part] for part in self._sources[name]]
        if len(parts) == 1 and len(parts[0]) == 1:
            found = parts[0][0]
            turned = [found[0], found[2], found[1]] if len(found) == 3 and _is_of_experts(name) else found
            fits = expected in (found, turned)
        else:
            rows = expected[1] // len(parts[0])
            fits = all(one == [rows, expected[2]] for part in parts for one in part)
        if not fits:
            raise _unfit(shown, f"has another shape for {name}")


def load_over_layers(
    family: Family,
    device: torch.device,
    shown: str,
    folder: Path,
    config: Any,
    *,
    dtype: torch.dtype,
    **how: Any,
) -> tuple[Any, dict[str, Any]]:
    """A model whose decoder layers are read from its checkpoint each time they run.

    Args:
        family: where it keeps its parts.
        device: where everything but the layers lies, and where the layers compute.
        shown: what to call it in a message.
        folder, config: the checkpoint.
        dtype: of all weights.
        how: further arguments of ``from_pretrained``, ``output_loading_info=True`` among them.

    Returns:
        The model, and what transformers says of missing, unexpected and mismatched weights beside the layers.

    Raises:
        ModelError: the layers are not all there, or not as the config says.
    """
    from transformers import AutoModelForImageTextToText

    headless = copy.deepcopy(config)
    text = headless.get_text_config()
    text.num_hidden_layers = 0
    if getattr(text, "layer_types", None):
        text.layer_types = []
    rest, info = AutoModelForImageTextToText.from_pretrained(
        folder, config=headless, dtype=dtype, device_map={"": str(device)}, **how
    )
    info = {**info, "unexpected_keys": [k for k in info["unexpected_keys"] if not _IN_LAYER.match(k)]}
    model: Any = hollow(config, dtype=dtype, attn_implementation=how["attn_implementation"]).eval()
    names, others = rooms_of(model, family)
    for name in others:
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, getattr(rest.get_submodule(owner), own))
    model.generation_config = rest.generation_config
    room = names[0].rpartition(".")[0]
    layers: Any = model.get_submodule(room)
    tensors = LayerTensors(folder, layers, room, dtype, shown)
    for name, layer in zip(names, layers, strict=True):
        attach_align_device_hook(
            layer,
            execution_device=device,
            offload=True,
            weights_map=tensors,
            module_name=name,
            skip_keys=model._skip_keys_device_placement,
            # whole layers: some use the weights of a part without calling it
            preload_module_classes=[type(layer).__name__],
        )
    return model, info


def _sources(
    number: int, name: str, expected: Tensor, places: dict[tuple[int, str], Any]
) -> list[list[tuple[int, str]]] | None:
    """What a tensor of a layer is made of: matrices to be joined, for each of those that are stacked; None: missing."""
    if (number, name) in places:
        return [[(number, name)]]
    if not _is_of_experts(name):
        return None
    room, _, kind = name.rpartition(".")
    found = [
        [(number, f"{room}.{expert}.{one}.weight") for one in _PROJECTIONS[kind]]
        for expert in range(expected.shape[0])
    ]
    return found if all(key in places for part in found for key in part) else None


def _is_of_experts(name: str) -> bool:
    room, _, kind = name.rpartition(".")
    return room.endswith(".experts") and kind in _PROJECTIONS


def _unfit(shown: str, what: str) -> ModelError:
    return ModelError(
        f"the checkpoint of '{shown}' {what}", hint="config.json and weights do not belong together"
    )
