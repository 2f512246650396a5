"""Vision towers as graphs: pictures of any size and number in one call, by tensor arithmetic alone.

transformers' Qwen towers read the grid of each picture into Python numbers and loop over the pictures, which an export
would freeze to the pictures of its example. Here every patch finds its own picture, row and column from the grids, and
attention is one masked product in place of a loop. Same numbers, and a graph in which everything is dynamic.

Shapes: I pictures, N patches of all pictures, P values of a patch, F features (N / merge size squared), H the
decoder's width, T tiles, S the side of a tile in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

#: transformers hands packed lengths to an attention whose name contains "flash", and loops for any other.
_ATTENTION = "vlsi_flash_segments"


class PatchIndex(NamedTuple):
    """Where each patch stands.

    Attributes:
        position: [N, 2] row and column in its picture, in patches.
        frame: [N] a number that patches of one frame of one picture share and no others have.
        window: [N] the same for the windows of Qwen2.5-VL; equal to ``frame`` without windows.
    """

    position: Tensor
    frame: Tensor
    window: Tensor


def patch_index(grid: Tensor, patches: int, merge: int, window: int | None = None) -> PatchIndex:
    """The place of every patch in the order in which Qwen's processors write them.

    Patches of a frame come in blocks of ``merge`` x ``merge``, blocks row by row, patches of a block row by row.

    Args:
        grid: [I, 3] frames, rows and columns of each picture, in patches.
        patches: N, the sum of the products of the grids.
        merge: side of the block that becomes one feature.
        window: side of an attention window in blocks; None for no windows.
    """
    ends = grid.prod(dim=1).cumsum(dim=0)
    number = torch.arange(patches, device=grid.device)
    picture = (number[:, None] >= ends[None, :]).sum(dim=1)
    start = (ends - grid.prod(dim=1))[picture]
    rows, columns = grid[picture, 1], grid[picture, 2]
    place = (number - start) % (rows * columns)
    block, inside = place // merge**2, place % merge**2
    across = columns // merge
    block_row, block_column = block // across, block % across
    position = torch.stack(
        [block_row * merge + inside // merge, block_column * merge + inside % merge], dim=-1
    )
    frame = number - place
    if window is None:
        return PatchIndex(position, frame, frame)
    # fewer windows than patches in a frame: the sums never reach the next frame's number
    windows_across = (across + window - 1) // window
    return PatchIndex(
        position, frame, frame + (block_row // window) * windows_across + block_column // window
    )


def _segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention among the patches of one segment; ``cu_seq_lens_q`` [N] carries segment numbers, not lengths."""
    same = (cu_seq_lens_q[:, None] == cu_seq_lens_q[None, :])[None, None]
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=same, scale=scaling)
    return mixed.transpose(1, 2), None


@contextmanager
def segment_attention(tower: nn.Module) -> Iterator[None]:
    """Let a Qwen vision tower attend by segments inside the block."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config: Any = tower.config
    before = config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _segment_attention)
    config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(_ATTENTION, None)


class QwenVision(nn.Module):
    """Patches to features: ``pixel_values`` [N, P], grids [I, 3] -> [F, H]; Qwen2-VL and Qwen2.5-VL.

    Args:
        tower: the model's ``visual``; call it inside :func:`segment_attention`.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        config: Any = tower.config
        self.merge = int(config.spatial_merge_size)
        size = getattr(config, "window_size", None)
        self.window = None if size is None else int(size) // self.merge // int(config.patch_size)

    def forward(self, pixel_values: Tensor, grid: Tensor) -> Tensor:
        """Features of all pictures, one after the other."""
        patches = pixel_values.shape[0]
        index = patch_index(grid, patches, self.merge, self.window)
        known: dict[str, Any] = {
            "position_ids": index.position,
            "cu_seqlens": index.frame,
            "max_seqlen": patches,
        }
        if self.window is not None:
            # The blocks stay where they are: attention does not mind the order, so no sorting is needed.
            blocks = torch.arange(patches // self.merge**2, device=grid.device)
            known |= {"window_index": blocks, "cu_window_seqlens": index.window, "max_window_seqlen": patches}
        dtype = next(self.tower.parameters()).dtype
        features = self.tower(pixel_values.to(dtype), grid_thw=grid, **known).pooler_output
        return features.float()


class LlavaVision(nn.Module):
    """Tiles to features: ``pixel_values`` [T, 3, S, S] -> [T, tokens + 1, H]; LLaVA-OneVision.

    The last feature of a tile is the model's line break. A picture of one tile is its row as it is; a caller with a
    picture of several tiles leaves the break out (``[:, :-1]``) and lays the tiles out.

    Args:
        base: the model without its head.
        config: the whole model's config.
    """

    def __init__(self, base: nn.Module, config: Any) -> None:
        super().__init__()
        self.tower = base.get_submodule("vision_tower")
        self.projector = base.get_submodule("multi_modal_projector")
        self.newline = base.get_parameter("image_newline")
        layer = config.vision_feature_layer
        self.layers = [layer] if isinstance(layer, int) else list(layer)
        self.drop_first = config.vision_feature_select_strategy == "default"

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features of all tiles."""
        seen = self.tower(pixel_values.to(self.newline.dtype), output_hidden_states=True).hidden_states
        chosen = torch.cat([seen[layer] for layer in self.layers], dim=-1)
        features = self.projector(chosen[:, 1:] if self.drop_first else chosen)
        line_break = self.newline[None, None].expand(features.shape[0], 1, -1)
        return torch.cat([features, line_break], dim=1).float()
