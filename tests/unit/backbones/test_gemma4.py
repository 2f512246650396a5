"""What only Gemma 4 has: keys that later layers read, inputs of every layer, tokens of pictures that stay padding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import EXPERTS, GEMMA4
from vlsi_cli.engine.backbones.arguments import cache_argument
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.compatibility import check_pair
from vlsi_cli.engine.backbones.load import describe, load_backbone
from vlsi_cli.engine.backbones.lookups import key_layers
from vlsi_cli.engine.backbones.saving import save_student
from vlsi_cli.engine.verbalizing.architectures import build_blocks, decoder_layers_like, initialize
from vlsi_cli.engine.verbalizing.following import SharedPrompt
from vlsi_cli.errors import CompatibilityError

Folders = Callable[..., Path]
Load = Callable[..., Backbone]
Inputs = Callable[[Backbone], dict[str, Any]]


@pytest.mark.parametrize("family", [*GEMMA4, EXPERTS[-1]])
def test_a_picture_that_is_said_is_what_the_model_takes_it_for(
    family: str, load: Load, batch_of: Inputs
) -> None:
    """Behind a cache of transformers' own make, with windows, the same states: its token is padding to the model."""
    from transformers import DynamicCache

    backbone = load(family)
    inputs = {name: tensor[:1] for name, tensor in batch_of(backbone).items()}
    prompt, said = inputs["input_ids"].shape[1], (backbone.image_token_id, 30)
    way = SharedPrompt(backbone, None, [4])
    cache = DynamicCache(config=backbone.config.get_text_config())
    with torch.no_grad():
        way.begin(inputs)
        ours = [way.advance({4: token})[0][4] for token in said][-1]
        how = {**cache_argument(backbone.base, cache), "use_cache": True}
        backbone.base(**inputs, **how)
        for number, token in enumerate(said):
            place = torch.tensor([[prompt + number]])
            output = backbone.base(input_ids=torch.tensor([[token]]), position_ids=place, **how)
            theirs = output.last_hidden_state[0, -1]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_whose_keys_a_layer_reads(load: Load) -> None:
    assert key_layers(load("gemma4", layers=6)) == (0, 1, 0, 1, 0, 1)
    assert key_layers(load("gemma4 dense")) == (0, 1, 2, 3)


def test_weights_that_no_class_reads_are_not_in_the_student(folders: Folders, tmp_path: Path) -> None:
    source = folders("gemma4")
    target = save_student(load_backbone(str(source)), tmp_path / "student")
    before, after = (load_file(folder / "model.safetensors") for folder in (source, target))
    dropped = {name for name in before if name not in after}
    assert dropped == {
        f"model.language_model.layers.{layer}.self_attn.{name}.weight"
        for layer in (2, 3)
        for name in ("k_proj", "v_proj", "k_norm")
    }
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert any("audio_tower" in name for name in after)


@torch.no_grad()
def test_a_decoder_verbalizer_leaves_no_keys_behind(load: Load, batch_of: Inputs) -> None:
    """Not even behind the layers whose keys later layers read: in backward those would be read again."""
    backbone = load("gemma4")
    with backbone.tap([2], calls=True) as tapped:
        backbone.forward_base(batch_of(backbone))
    lent = tapped.call[2]["shared_kv_states"]
    before = {kind: tuple(lent[kind]) for kind in lent}
    assert set(before) == {"sliding_attention", "full_attention"}
    factory = decoder_layers_like(list(backbone.layers))
    (block,) = build_blocks("decoder", 2, hidden=64, intermediate=128, decoder_factory=factory)
    initialize(block, "random", 0.1, torch.Generator().manual_seed(0))
    said = block(tapped[2], tapped.call[2])
    assert said.shape == tapped[2].shape
    assert all(one is other for kind in before for one, other in zip(lent[kind], before[kind], strict=True))


def test_settings_that_nothing_reads_are_not_compared(folders: Folders, tmp_path: Path) -> None:
    """A size in one folder is none to the image processor; a number of image tokens is one."""
    teacher, student = describe(str(folders("gemma4 dense"))), tmp_path / "student"
    shutil.copytree(folders("gemma4"), student)
    file = student / "processor_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    for change, fits in (({"size": {"height": 224, "width": 224}}, True), ({"max_soft_tokens": 140}, False)):
        settings["image_processor"] |= change
        file.write_text(json.dumps(settings), encoding="utf-8")
        if fits:
            assert check_pair(teacher, describe(str(student)), (1, 2, 3), (1, 2))
        else:
            with pytest.raises(CompatibilityError, match=r"max_soft_tokens is 70 for .* and 140 for"):
                check_pair(teacher, describe(str(student)), (1, 2, 3), (1, 2))
