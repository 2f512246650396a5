from __future__ import annotations

import pytest
import torch

from tests.tiny import EXPERTS, FAMILIES
from vlsi_cli.engine.backbones.backbone import PARTS
from vlsi_cli.errors import ModelError


@pytest.mark.parametrize("family", [*FAMILIES, *EXPERTS])
def test_head_of_forward_base_is_the_models_logits(family, load, batch_of):
    backbone = load(family)
    inputs = batch_of(backbone)
    with torch.no_grad():
        logits = backbone.logits(backbone.forward_base(inputs))
        assert torch.equal(logits, backbone.model(**inputs).logits)


@pytest.mark.parametrize("family", [*FAMILIES, *EXPERTS])
def test_tapped_layers_are_transformers_hidden_states(family, load, batch_of):
    backbone = load(family)
    inputs = batch_of(backbone)
    with torch.no_grad():
        with backbone.tap([1, 3, 4]) as tapped:
            last = backbone.forward_base(inputs)
        hidden = backbone.model(**inputs, output_hidden_states=True).hidden_states
        assert list(tapped) == [1, 3, 4]
        assert torch.equal(tapped[1], hidden[1])
        assert torch.equal(tapped[3], hidden[3])
        assert torch.equal(backbone.final_norm(tapped[4]), last)


@pytest.mark.parametrize("family", [*FAMILIES, *EXPERTS])
def test_padding_does_not_change_a_row(family, load, batch_of):
    backbone = load(family)
    inputs = batch_of(backbone)
    length = int(inputs["attention_mask"][0].sum())
    padded = dict(inputs)
    for key in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
        if key in padded:
            fill = backbone.tokenizer.pad_token_id if key == "input_ids" else 0
            padded[key] = torch.nn.functional.pad(padded[key], (0, 5), value=fill)
    with torch.no_grad():
        one, two = backbone.forward_base(inputs), backbone.forward_base(padded)
    torch.testing.assert_close(two[0, :length], one[0, :length], atol=1e-5, rtol=1e-5)


def test_text_after_pictures_is_not_read_with_the_pictures_positions(load, batch_of):
    backbone = load("qwen2_vl")
    text = dict(backbone.processor(text=["What is in the row?"], return_tensors="pt"))
    with torch.no_grad():
        fresh = backbone.forward_base(text)
        backbone.forward_base(batch_of(backbone))
        assert torch.equal(backbone.forward_base(text), fresh)


def test_only_the_named_parts_train(load):
    backbone = load("qwen2_vl", tied=False)
    for part in PARTS[:-1]:
        chosen = {name for name, _ in backbone.set_trainable({part})}
        trained = {name for name, p in backbone.model.named_parameters() if p.requires_grad}
        assert chosen == trained == {n for p, n, _ in backbone.named_parts() if p == part}
        assert trained
    assert backbone.set_trainable(()) == []
    with pytest.raises(ValueError, match="'tower' is not a part"):
        backbone.set_trainable({"tower"})


@pytest.mark.parametrize("word", ["head", "embeddings"])
def test_a_tied_head_trains_by_either_name(load, word):
    backbone = load("llava_onevision")
    assert [p is backbone.head.weight for _, p in backbone.set_trainable({word})] == [True]


def test_the_projector_of_llava_includes_its_newline(load):
    names = [n for n, _ in load("llava_onevision").set_trainable({"projector"})]
    assert "model.image_newline" in names
    assert any("multi_modal_projector" in n for n in names)


def test_frozen_modules_stay_in_eval_mode(load):
    backbone = load("qwen2_vl")
    backbone.set_trainable({"layers", "head"})
    assert all(m.training for layer in backbone.layers for m in layer.modules())
    assert not any(m.training for room in backbone.vision for m in room.modules())
    backbone.model.train()
    backbone.train()
    assert not any(m.training for room in backbone.vision for m in room.modules())
    backbone.train(False)
    assert not any(m.training for m in backbone.model.modules())
    backbone.set_trainable({"vision"})
    assert any(m.training for room in backbone.vision for m in room.modules())
    assert not any(m.training for layer in backbone.layers for m in layer.modules())


def test_freezing_drops_gradients(load, batch_of):
    backbone = load("qwen2_vl")
    backbone.set_trainable({"layers"})
    backbone.forward_base(batch_of(backbone)).sum().backward()
    assert backbone.layers[0].mlp.up_proj.weight.grad is not None
    backbone.freeze()
    assert all(p.grad is None for p in backbone.model.parameters())


def test_a_parameter_in_no_known_room_is_an_error(load):
    backbone = load("qwen2_vl")
    backbone.base.register_parameter("extra", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ModelError, match=r"'model\.extra'"):
        backbone.parameter_counts()
