"""Vision towers as graphs: pictures of any size and number in one call, by tensor arithmetic alone.

transformers' Qwen towers read the grid of each picture into Python numbers and loop over the pictures, which an export
would freeze to the pictures of its example. Here every patch finds its own picture, row and column from the grids, and
attention is one masked product in place of a loop. Same numbers, and a graph in which everything is dynamic.

Shapes: B rows, I pictures, N patches of all pictures, P values of a patch, F features (N / merge size squared), H the
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
        sides: [N, 2] rows and columns of that picture.
        frame: [N] a number that patches of one frame of one picture share and no others have.
        window: [N] the same for the windows of Qwen2.5-VL; equal to ``frame`` without windows.
    """

    position: Tensor
    sides: Tensor
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
    sides = grid[picture, 1:]
    rows, columns = sides.unbind(dim=1)
    place = (number - start) % (rows * columns)
    block, inside = place // merge**2, place % merge**2
    across = columns // merge
    block_row, block_column = block // across, block % across
    position = torch.stack(
        [block_row * merge + inside // merge, block_column * merge + inside % merge], dim=-1
    )
    frame = number - place
    if window is None:
        return PatchIndex(position, sides, frame, frame)
    # fewer windows than patches in a frame: the sums never reach the next frame's number
    windows_across = (across + window - 1) // window
    return PatchIndex(
        position, sides, frame, frame + (block_row // window) * windows_across + block_column // window
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


def resampled(index: PatchIndex, side: int) -> tuple[Tensor, Tensor]:
    """Which rows of a square table of learned positions each patch takes, and by which weights (bilinear, corners on
    corners).

    Args:
        index: where each patch stands.
        side: rows and columns of the table.

    Returns:
        rows of the table and weights, [N, 4] each.
    """
    place = index.position.float() * ((side - 1) / (index.sides - 1).clamp(min=1).float())  # [N, 2]
    low = place.floor().long().clamp(max=side - 1)
    high, part = (low + 1).clamp(max=side - 1), place - low
    rows = torch.stack([low[:, 0], low[:, 0], high[:, 0], high[:, 0]], dim=1)
    columns = torch.stack([low[:, 1], high[:, 1], low[:, 1], high[:, 1]], dim=1)
    down, right = part[:, :1], part[:, 1:]
    weights = torch.cat(
        [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], dim=1
    )
    return rows * side + columns, weights


class QwenVision(nn.Module):
    """Patches to features: ``pixel_values`` [N, P], grids [I, 3] -> [F, W]; Qwen2-VL, Qwen2.5-VL and Qwen3-VL.

    W is H, and in Qwen3-VL H once more for each DeepStack feature, side by side (:mod:`.text`).

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
        if (side := getattr(self.tower, "num_grid_per_side", None)) is not None:
            rows, weights = resampled(index, int(side))
            known |= {"interp_indices": rows, "interp_weights": weights}
        dtype = next(self.tower.parameters()).dtype
        seen = self.tower(pixel_values.to(dtype), grid_thw=grid, **known)
        features = torch.cat([seen.pooler_output, *(getattr(seen, "deepstack_features", None) or ())], dim=-1)
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


class TileVision(nn.Module):
    """Tiles to features: ``pixel_values`` [T, 3, S, S] -> [T, tokens, H]; InternVL.

    Args:
        base: the model without its head.
        config: the whole model's config.
    """

    def __init__(self, base: nn.Module, config: Any) -> None:
        super().__init__()
        self.tower: Any = base.get_submodule("vision_tower")
        self.projector = base.get_submodule("multi_modal_projector")
        self.layer = int(config.vision_feature_layer)
        self.drop_first = config.vision_feature_select_strategy == "default"
        self.joined = round(1 / config.downsample_ratio)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features of all tiles."""
        pixels = pixel_values.to(next(self.tower.parameters()).dtype)
        if self.layer == -1:
            seen = self.tower(pixels).last_hidden_state
        else:
            seen = self.tower(pixels, output_hidden_states=True).hidden_states[self.layer]
        seen = seen[:, 1:] if self.drop_first else seen
        # joined x joined neighbours become one feature: their columns first, then their rows
        side, n = round(seen.shape[1] ** 0.5), self.joined
        blocks = seen.unflatten(1, (side // n, n, side // n, n)).permute(0, 1, 3, 2, 4, 5)
        features: Tensor = self.projector(blocks.flatten(3).flatten(1, 2))
        return features.float()


class NestedVision(nn.Module):
    """Tiles of a batch to features: ``pixel_values`` [B, T, 3, S, S] -> [real tiles, tokens, H]; SmolVLM and Idefics3.

    Rows with fewer tiles are filled up with tiles of zeros, which give no features: the others follow each other, row
    by row. A tile is attended to where ``pixel_attention_mask`` [B, T, S, S] is true, and placed by the size of that
    part.

    transformers leaves padding out before the tower, here it is left out behind it: so only the last step has a size
    that depends on values.

    Args:
        base: the model without its head.
    """

    bounds: Tensor

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        tower: Any = base.get_submodule("vision_model")
        self.tower, self.connector = tower, base.get_submodule("connector")
        self.patch = int(tower.config.patch_size)
        self.side = int(tower.embeddings.num_patches_per_side)
        self.register_buffer("bounds", torch.arange(1 / self.side, 1.0, 1 / self.side), persistent=False)

    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor) -> Tensor:
        """Features of the tiles that hold something."""
        tiles, mask = pixel_values.flatten(0, 1), pixel_attention_mask.flatten(0, 1)
        # transformers goes by the pixels alone; a tile that nothing may attend to has no features either
        real = (tiles != 0).flatten(1).any(dim=1) & mask.flatten(1).any(dim=1)
        whole = mask.shape[-1] // self.patch * self.patch  # what is left over is in no patch
        sides = (-1, self.patch)
        patches = mask[:, :whole, :whole].unflatten(2, sides).unflatten(1, sides).any(dim=4).any(dim=2)
        embeddings = self.tower.embeddings
        tiles = tiles.to(embeddings.patch_embedding.weight.dtype)
        states = embeddings.patch_embedding(tiles).flatten(2).transpose(1, 2)
        states = states + embeddings.position_embedding(self._places(patches))
        # a sum, not a choice: for that the exporter would guard each softmax against rows that see nothing
        hidden = torch.zeros_like(patches, dtype=states.dtype)
        hidden = hidden.masked_fill(~patches, torch.finfo(states.dtype).min).flatten(1)[:, None, None, :]
        seen = self.tower.encoder(inputs_embeds=states, attention_mask=hidden).last_hidden_state
        features: Tensor = self.connector(self.tower.post_layernorm(seen))
        return features[real].float()

    def _places(self, patches: Tensor) -> Tensor:
        """Rows of the table of positions for the patches of each tile, [tiles, patches].

        The part that is no padding is stretched over the grid that the table was learned for, rounding as
        transformers does.
        """
        places = []
        for axis in (1, 2):
            count = patches.any(dim=3 - axis).sum(dim=1).clamp(min=1)
            share = torch.arange(patches.shape[axis], dtype=torch.float32)[None, :] * (1.0 / count)[:, None]
            places.append((share.clamp(max=1.0 - 1e-6)[..., None] >= self.bounds).sum(dim=-1))
        rows, columns = places
        place = (rows[:, :, None] * self.side + columns[:, None, :]).flatten(1)
        return torch.where(patches.flatten(1), place, 0)
