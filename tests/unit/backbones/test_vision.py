"""Features of a frozen tower, computed once: what the model says stays the same, and the tower stays out of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import pairs
from tests.tiny import GEMMA4, tiny_folder
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.data.collate import collate
from vlsi_cli.engine.data.template import ChatEncoder
from vlsi_cli.errors import ConfigError

KEPT = ("qwen2_vl", "qwen2_5_vl", "qwen3_5", "llava_onevision", "internvl", "gemma3", *GEMMA4, "mistral3")
OTHERS = ("qwen3_vl", "smolvlm", "idefics3")


def batch(backbone: Backbone, *places: int) -> Batch:
    records = pairs.encoded(backbone, 4)
    return collate([records[i] for i in places], ChatEncoder(backbone.processor).pad_id, digests=True)


def without_tower(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        type(backbone.base), "get_image_features", lambda *_, **__: pytest.fail("the tower ran again")
    )


@pytest.mark.parametrize("family", KEPT)
def test_the_same_states_without_the_tower(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(str(tiny_folder(family, tmp_path, layers=2)))
    one, two = batch(backbone, 0, 1), batch(backbone, 1, 0)
    with torch.no_grad():
        expected = [backbone.forward_base(each.inputs) for each in (one, two)]
        backbone.remember_vision(2**20)
        first = backbone.forward_batch(one)
        without_tower(backbone, monkeypatch)
        again, turned = backbone.forward_batch(one), backbone.forward_batch(two)
    assert torch.equal(first, expected[0])
    assert torch.equal(again, expected[0])
    assert torch.allclose(turned, expected[1], atol=1e-5)  # the same features, computed in another order
    memory = backbone.vision_memory
    assert memory is not None
    assert (memory.hits, memory.misses) == (2, 1)
    tokens = sum(backbone.family.image_tokens(backbone.config, one.inputs))
    assert memory.bytes == tokens * backbone.hidden_size * 4


def test_a_limit_a_batch_of_text_and_a_tower_that_trains(tmp_path: Path) -> None:
    backbone = load_backbone(str(tiny_folder("qwen2_vl", tmp_path, layers=2)))
    one = batch(backbone, 0)
    size = sum(backbone.family.image_tokens(backbone.config, one.inputs)) * backbone.hidden_size * 4
    backbone.remember_vision(size)
    memory = backbone.vision_memory
    assert memory is not None
    for index in (0, 1, 0, 1):
        backbone.forward_batch(batch(backbone, index))
    assert (memory.bytes, memory.hits, memory.misses) == (size, 1, 3)  # the second never fits
    plain = {name: one.inputs[name] for name in ("input_ids", "attention_mask")}
    plain["input_ids"] = plain["input_ids"].clamp_max(200)  # no image tokens
    text = Batch(plain, one.rows, one.cols, one.targets, one.records, one.digests)
    assert torch.equal(backbone.forward_batch(text), backbone.forward_base(plain))
    backbone.set_trainable(("vision", "projector"))
    assert memory.bytes == 0
    backbone.forward_batch(one).sum().backward()  # through the tower
    assert any(parameter.grad is not None for parameter in backbone.vision.parameters())
    assert memory.bytes == 0


@pytest.mark.parametrize("family", OTHERS)
def test_families_whose_features_are_more_than_that(family: str, tmp_path: Path) -> None:
    backbone = load_backbone(str(tiny_folder(family, tmp_path, layers=2)))
    with pytest.raises(ConfigError, match=r"the vision features of .* cannot be kept"):
        backbone.remember_vision(2**20)
