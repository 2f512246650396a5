"""The modules that become graphs, before any tracing: same numbers as the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import tiny_folder
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.exporting.graphs import require_exportable
from vlsi_cli.engine.exporting.layouts import stacked_features
from vlsi_cli.engine.exporting.runtime import mrope_positions
from vlsi_cli.engine.exporting.text import Decoder, Embeddings, MergedEmbeddings, deepstack_beside
from vlsi_cli.engine.exporting.vision import (
    LlavaVision,
    NestedVision,
    QwenVision,
    TileVision,
    patch_index,
    resampled,
    segment_attention,
)
from vlsi_cli.errors import ModelError

GRIDS = torch.tensor([[1, 4, 6], [1, 2, 10], [2, 6, 4], [1, 2, 2]])

#: Two orders of summation in fp32, on values of some tens.
ROUNDING = 1e-5


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def qwen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    path = tmp_path_factory.mktemp("models") / request.param
    return load_backbone(str(tiny_folder(request.param, path, layers=2, hidden=32)))


def test_patches_know_their_places() -> None:
    from transformers import vision_utils

    index = patch_index(GRIDS, int(GRIDS.prod(dim=1).sum()), 2)
    assert torch.equal(index.position, vision_utils.get_vision_position_ids(GRIDS, 2))
    ends = vision_utils.get_vision_cu_seqlens(GRIDS)
    segments = torch.bucketize(torch.arange(len(index.frame)), ends[1:], right=True)
    assert len(index.frame.unique()) == len(ends) - 1 == 5  # one of the pictures has two frames
    assert torch.equal(index.frame.unique(return_inverse=True)[1], segments)


def test_windows_are_those_of_the_model() -> None:
    """Patches share a window number exactly where the model's own reordering puts them into one window."""
    from transformers import vision_utils

    grids = torch.tensor([[1, 12, 10], [1, 4, 4]])
    order, ends = vision_utils.get_vision_window_index(grids, 2, 16, 4)
    window_of_block = torch.bucketize(
        torch.arange(len(order)) * 4, torch.unique(torch.as_tensor(ends))[1:], right=True
    )
    expected = torch.empty_like(window_of_block)
    expected[order] = window_of_block
    ours = patch_index(grids, int(grids.prod(dim=1).sum()), 2, 16 // 2 // 4).window.view(-1, 4)
    assert bool((ours == ours[:, :1]).all()), "the patches of a block lie in one window"
    same = ours[:, :1] == ours[:, 0]
    assert torch.equal(same, expected[:, None] == expected[None, :])


def test_learned_positions_are_resampled_as_the_model_does() -> None:
    from transformers import vision_utils

    grids = torch.tensor([[1, 4, 6], [2, 6, 4], [1, 2, 2], [1, 20, 30]])
    patches = int(grids.prod(dim=1).sum())
    rows, weights = resampled(patch_index(grids, patches, 2), 7)
    table = torch.randn(49, 3, generator=torch.manual_seed(0))
    theirs = vision_utils.get_vision_interpolation_indices_and_weights(
        grids, 7, align_corners=True, spatial_merge_size=2
    )
    mixed = [(table[r] * w[..., None]).sum(dim=1) for r, w in ((rows, weights), theirs)]
    torch.testing.assert_close(*mixed, atol=ROUNDING, rtol=0)


def test_vision_equals_the_tower(qwen: Backbone) -> None:
    tower: Any = qwen.base.get_submodule("visual")
    values = torch.randn(int(GRIDS.prod(dim=1).sum()), 3 * 2 * 4 * 4, generator=torch.manual_seed(0))
    before = tower.config._attn_implementation
    with torch.no_grad():
        seen = tower(values, grid_thw=GRIDS)
        expected = torch.cat([seen.pooler_output, *getattr(seen, "deepstack_features", ())], dim=-1)
        with segment_attention(tower):
            ours = QwenVision(tower)(values, GRIDS)
    torch.testing.assert_close(ours, expected, atol=ROUNDING, rtol=0)
    assert ours.shape[1] == 32 * (1 + stacked_features(qwen.config))
    assert tower.config._attn_implementation == before, "the tower is as it was"


def test_vision_of_llava_equals_the_models_own(tmp_path: Path) -> None:
    backbone = load_backbone(str(tiny_folder("llava_onevision", tmp_path / "m", layers=1, hidden=32)))
    base: Any = backbone.base
    tiles = torch.randn(3, 3, 16, 16, generator=torch.manual_seed(0))
    with torch.no_grad():
        ours = LlavaVision(base, backbone.config)(tiles)
        packed = base.get_image_features(
            tiles[None], torch.tensor([[16, 32]]), vision_aspect_ratio="anyres_max_9"
        )
    (expected,) = packed.pooler_output
    torch.testing.assert_close(
        ours[0, :-1], expected[:16], atol=ROUNDING, rtol=0
    )  # the whole picture comes first
    assert torch.equal(ours[1, -1], base.image_newline.detach())


@pytest.mark.parametrize("layer", [-1, -2])
def test_vision_of_internvl_equals_the_models_own(layer: int, tmp_path: Path) -> None:
    backbone = load_backbone(str(tiny_folder("internvl", tmp_path / "m", layers=1, hidden=32)))
    base: Any = backbone.base
    backbone.config.vision_feature_layer = layer
    tiles = torch.randn(3, 3, 16, 16, generator=torch.manual_seed(0))
    with torch.no_grad():
        ours = TileVision(base, backbone.config)(tiles)
        expected = base.get_image_features(
            tiles, vision_feature_layer=layer, vision_feature_select_strategy="default"
        ).pooler_output
    torch.testing.assert_close(ours, expected, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("family", ["smolvlm", "idefics3"])
@pytest.mark.parametrize("side", [16, 18])  # the second is no multiple of a patch, as in SmolVLM-Instruct
def test_vision_of_nested_tiles_equals_the_models_own(family: str, side: int, tmp_path: Path) -> None:
    base: Any = load_backbone(str(tiny_folder(family, tmp_path / "m", layers=1, hidden=32))).base
    tiles = torch.randn(3, 2, 3, side, side, generator=torch.manual_seed(0))
    mask = torch.ones(3, 2, side, side, dtype=torch.bool)
    tiles[0, 1], mask[0, 1] = 0.0, False  # rows of one tile, of none, and of two: one whole, one half padding
    tiles[1], mask[1] = 0.0, False
    mask[2, 1, 5:] = False
    with torch.no_grad():
        ours = NestedVision(base)(tiles, mask)
        # a list of tensors; in older versions one of three dimensions
        expected = torch.cat(list(base.get_image_features(tiles, mask).pooler_output))
        whole = NestedVision(base)(tiles, torch.ones_like(mask))
    assert len(ours) == 3, "tiles that are real"
    torch.testing.assert_close(ours.flatten(0, 1), expected, atol=ROUNDING, rtol=0)
    assert torch.equal(ours[:2], whole[:2])
    assert (ours[2] - whole[2]).abs().max() > 100 * ROUNDING, "padding inside a tile is not seen"


def test_decoder_reads_padding_and_cache_like_the_model(qwen: Backbone) -> None:
    ids = torch.randint(10, 300, (2, 7), generator=torch.manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    positions, _ = mrope_positions(ids.numpy(), mask.numpy(), None, qwen.image_token_id, 2)
    places = torch.from_numpy(positions)
    stacked = stacked_features(qwen.config)
    graph = Decoder(qwen.decoder, qwen.head, keep=True, stacked=stacked)
    heads = qwen.config.get_text_config().num_key_value_heads
    empty = [(torch.zeros(2, heads, 0, 16), torch.zeros(2, heads, 0, 16)) for _ in range(qwen.num_layers)]
    with torch.no_grad(), deepstack_beside(qwen.decoder):
        embeds = Embeddings(qwen.embeddings, stacked)(ids)
        expected = qwen.head(qwen.forward_base({"input_ids": ids, "attention_mask": mask}))
        whole, _ = graph(embeds, mask, places, torch.tensor(0), empty)
        first, cache = graph(embeds[:, :5], mask[:, :5], places[..., :5], torch.tensor(1), empty)
        pairs = list(zip(cache[::2], cache[1::2], strict=True))
        rest, _ = graph(embeds[:, 5:], mask, places[..., 5:], torch.tensor(2), pairs)
    kept = mask.bool()
    torch.testing.assert_close(whole[kept], expected[kept], atol=ROUNDING, rtol=0)
    torch.testing.assert_close(first[:, -1], expected[:, 4], atol=ROUNDING, rtol=0)
    torch.testing.assert_close(rest, expected[:, 5:], atol=ROUNDING, rtol=0)


def test_positions_are_those_of_the_model(qwen: Backbone) -> None:
    """Two pictures of unlike shape in one row, one in the other, padding on the left."""
    image = qwen.image_token_id
    rows = [[5, *[image] * 6, 7, 8, *[image] * 5, 9], [3, 4, *[image] * 12, 6]]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    grids = torch.tensor([[1, 4, 6], [1, 2, 10], [1, 6, 8]])
    base: Any = qwen.base
    kinds = (ids == image).int()
    expected, offset = base.get_rope_index(ids, kinds, image_grid_thw=grids, attention_mask=mask)
    ours, following = mrope_positions(ids.numpy(), mask.numpy(), grids.numpy(), image, 2)
    assert np.array_equal(ours[:, mask.numpy() == 1], expected.numpy()[:, mask.numpy() == 1])
    assert np.array_equal(following, (offset[:, 0] + mask.sum(dim=1)).numpy())


def test_features_go_where_their_tokens_are() -> None:
    embeddings = torch.nn.Embedding(20, 4)
    ids = torch.tensor([[1, 9, 9, 2], [9, 3, 4, 9]])
    features = torch.arange(16.0).view(4, 4) + 100
    merged = MergedEmbeddings(embeddings, 9)
    with torch.no_grad():
        ours = merged(ids, features)
        plain = merged(ids, torch.zeros(0, 4))
    assert torch.equal(ours[ids == 9], features)
    assert torch.equal(ours[ids != 9], embeddings(ids)[ids != 9])
    assert torch.equal(plain[ids != 9], embeddings(ids)[ids != 9])


@pytest.mark.parametrize(("family", "title"), [("gemma3", "Gemma 3"), ("qwen3_5", "Qwen3.5")])
def test_other_families_are_refused_by_name(family: str, title: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    folder = tiny_folder(family, tmp_path / "m", layers=1, hidden=32)
    with pytest.raises(ModelError, match=f"{title} cannot be exported to ONNX yet"):
        require_exportable(AutoConfig.from_pretrained(folder), title, "x/y")


def test_experts_are_refused(tmp_path: Path) -> None:
    from transformers import AutoConfig

    folder = tiny_folder("internvl_moe", tmp_path / "m", layers=1, hidden=32)
    with pytest.raises(ModelError, match="'x/y' has layers with experts"):
        require_exportable(AutoConfig.from_pretrained(folder), "InternVL", "x/y")
