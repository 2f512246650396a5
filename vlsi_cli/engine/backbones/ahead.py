"""What a forward pass would ask its device about the sizes of pictures, answered from the host before it begins.

A number that is read from a device makes the host wait until the device has done all that it was given. The models of
transformers read many: the Qwen families where each picture lies among the tokens, and three times in every block of
the vision tower where one picture ends; LLaVA-OneVision and Ministral 3 the size of each. All of it follows from a few
integers that were in host memory when the batch was collated, and that :class:`~vlsi_cli.engine.batch.Batch` keeps
there.

So those integers stay on the host, and what is made of them is made there by the models' own functions
(``get_rope_index`` of the model, ``transformers.vision_utils``, which say that they are for that) and given to the
forward pass. It computes the same numbers as without: the functions are the same, and so are their inputs. What is
left is told in docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from vlsi_cli.engine.backbones.arguments import parameters
from vlsi_cli.engine.batch import Batch, sent

#: Sizes and numbers of pictures, which only the host reads.
_SIZES = ("image_grid_thw", "image_sizes", "batch_num_images")


def host_known(base: Any, batch: Batch) -> dict[str, Any]:
    """The inputs of ``base.forward``, with what the host knows about them.

    Args:
        base: the model without its head.
        batch: on the model's device. One that was put together there, so that nothing of it is in host memory, is
            given as it is.

    Returns:
        The batch's inputs with sizes in host memory, and in the Qwen families, if there are pictures, with
        ``position_ids`` ``[3, B, S]`` and without the mask of a batch in which nothing is padded.
    """
    host = batch.on_host
    inputs: dict[str, Any] = batch.inputs | {name: host[name] for name in _SIZES if name in host}
    if "image_grid_thw" not in host or not hasattr(base, "get_rope_index"):
        return inputs
    known = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    positions, _ = base.get_rope_index(**{name: host[name] for name in known})
    inputs["position_ids"] = sent(positions, batch.inputs["input_ids"].device)
    if bool(host["attention_mask"].all()):
        del inputs["attention_mask"]  # each attention kernel would look at it to find that out
    return inputs


@contextmanager
def answered(base: Any, said: Any) -> Iterator[None]:
    """Within, the model that asks its tower for the features of pictures is given these.

    Newer versions of transformers take them as an argument too; in all of them the model asks.

    Args:
        said: outputs of ``base.get_image_features``.
    """
    own = vars(base).get("get_image_features")  # somebody else may have hidden it too
    base.get_image_features = lambda *_, **__: said  # hides the method of the class
    try:
        yield
    finally:
        del base.get_image_features
        if own is not None:
            base.get_image_features = own


def picture_features(base: Any, inputs: dict[str, Any]) -> Any:
    """What the tower and its projector say about the pictures: the outputs of ``base.get_image_features``."""
    known = parameters(type(base).get_image_features)
    given = {name: value for name, value in inputs.items() if name in known}
    extras = _tower_arguments(base, inputs) if sizes_are_here(inputs) else {}
    return base.get_image_features(**given, **extras, return_dict=True)


def sizes_are_here(inputs: dict[str, Any]) -> bool:
    """Whether there are pictures of a Qwen family whose sizes are in host memory."""
    grid = inputs.get("image_grid_thw")
    return grid is not None and grid.device.type == "cpu" and "pixel_values" in inputs


class _Settings(NamedTuple):
    """What of a Qwen vision tower decides what it makes of the sizes of pictures."""

    merge: int
    window: tuple[int, int] | None
    grid: tuple[int, str, bool] | None
    flash: bool

    @classmethod
    def of(cls, tower: Any) -> Self:
        from transformers.utils.generic import is_flash_attention_requested

        window = grid = None
        if hasattr(tower, "window_size"):  # Qwen2.5-VL
            window = tower.window_size, tower.patch_size
        if hasattr(tower, "num_grid_per_side"):  # Qwen3-VL
            grid = tower.num_grid_per_side, tower.interpolation_mode, tower.interpolation_align_corners
        return cls(tower.spatial_merge_size, window, grid, is_flash_attention_requested(tower.config))


def _tower_arguments(base: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """What a Qwen vision tower makes of the sizes of pictures, by the names under which it takes them from outside."""
    return dict(
        _made_of_sizes(inputs["image_grid_thw"], inputs["pixel_values"].device, _Settings.of(base.visual))
    )


# By the sizes' identity: the large and the small model are asked about one batch after the other.
@lru_cache(maxsize=1)
def _made_of_sizes(grid: Tensor, device: torch.device, tower: _Settings) -> dict[str, Any]:
    from transformers import vision_utils

    found: dict[str, Tensor] = {"position_ids": vision_utils.get_vision_position_ids(grid, tower.merge)}
    ends: dict[str, Tensor] = {"cu_seqlens": vision_utils.get_vision_cu_seqlens(grid)}
    if tower.window is not None:
        found["window_index"], ends["cu_window_seqlens"] = vision_utils.get_vision_window_index(
            grid, tower.merge, *tower.window
        )
    if tower.grid is not None:
        side, mode, align_corners = tower.grid
        names = ("interp_indices", "interp_weights")
        made = vision_utils.get_vision_interpolation_indices_and_weights(
            grid, side, mode=mode, align_corners=align_corners, spatial_merge_size=tower.merge
        )
        found |= dict(zip(names, made, strict=True))
    longest: dict[str, int] = {}
    if tower.flash:  # its kernel reads the ends on the device
        for name, each in ends.items():  # cu_seqlens: max_seqlen
            longest[f"max_{name.removeprefix('cu_').removesuffix('s')}"] = int(each.diff().max())
        found, ends = found | ends, {}
    moved = {name: sent(value, device) for name, value in found.items()}
    return {f"image_{name}": value for name, value in {**moved, **ends, **longest}.items()}
