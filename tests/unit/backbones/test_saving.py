from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import FAMILIES, GEMMA4
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.backbones.lora import add_lora
from vlsi_cli.engine.backbones.saving import save_student, verify_student
from vlsi_cli.errors import CheckpointError, OutputError


def change(backbone):
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter.mul_(1.01)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_saved_is_the_trained_model_bit_for_bit(family, tied, folders, tmp_path):
    source = folders(family, tied=tied)
    backbone = load_backbone(str(source))
    change(backbone)
    target = save_student(backbone, tmp_path / "out" / "student")
    assert verify_student(target, backbone) == 0.0
    weights = load_file(target / "model.safetensors")
    assert any(k.endswith("lm_head.weight") for k in weights) is (not tied)
    assert {p.name for p in target.iterdir()} == {p.name for p in source.iterdir()}
    assert [p.name for p in target.parent.iterdir()] == ["student"]
    settings = "processor_config.json" if family in ("mistral3", *GEMMA4) else "preprocessor_config.json"
    for name in ("tokenizer.json", "chat_template.jinja", settings):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    again = load_backbone(str(target))
    assert torch.equal(again.head.weight, backbone.head.weight)
    assert again.model.generation_config.eos_token_id == backbone.model.generation_config.eos_token_id


def test_saved_in_fewer_bits(load, tmp_path):
    backbone = load("qwen2_vl")
    change(backbone)
    target = save_student(backbone, tmp_path / "student", dtype=torch.bfloat16)
    assert {t.dtype for t in load_file(target / "model.safetensors").values()} == {torch.bfloat16}
    config = json.loads((target / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "lm_head.weight" not in load_file(target / "model.safetensors")
    assert backbone.dtype == torch.float32
    with pytest.raises(CheckpointError, match="away from the trained one"):
        verify_student(target, backbone)
    share = verify_student(target, backbone, tolerance=0.5)
    assert 0 < share < 0.1
    with torch.no_grad():  # logits 64 times as large differ by 64 times as much, and by the same share
        backbone.final_norm.weight.mul_(64)
    save_student(backbone, target, dtype=torch.bfloat16)
    assert verify_student(target, backbone, tolerance=0.5) == pytest.approx(share, rel=1e-3)


def as_published(folder):
    """Rewrite a tiny Qwen2-VL's files as the family's are published: by an older transformers, with a flat config."""
    config = json.loads((folder / "config.json").read_text())
    text, eyes = config.pop("text_config"), config["vision_config"]
    ropes = text.pop("rope_parameters")
    for key in ("dtype", "layer_types", "model_type"):
        text.pop(key, None)
    for key in ("dtype", "model_type", "rope_parameters", "in_channels", "hidden_act", "initializer_range"):
        eyes.pop(key, None)
    config.pop("dtype")
    config |= text | {"torch_dtype": "float32", "transformers_version": "4.41.2"}
    config |= {"rope_theta": ropes["rope_theta"], "vision_config": eyes | {"in_chans": 3}}
    config["rope_scaling"] = {"type": "mrope", "mrope_section": ropes["mrope_section"]}
    (folder / "config.json").write_text(json.dumps(config))
    generation = {"do_sample": True, "temperature": 0.01, "top_k": 1, "transformers_version": "4.37.0"}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))


def test_what_loads_the_base_loads_the_student(folders, tmp_path):
    """An older program that reads the base's config does not read the one that transformers would write today."""
    source = shutil.copytree(folders("qwen2_vl"), tmp_path / "base")
    as_published(source)
    backbone = load_backbone(str(source))
    change(backbone)
    target = save_student(backbone, tmp_path / "student", dtype=torch.bfloat16)
    assert verify_student(target, backbone, tolerance=0.1) > 0
    published = json.loads((source / "config.json").read_text())
    assert json.loads((target / "config.json").read_text()) == published | {"torch_dtype": "bfloat16"}
    for name in ("generation_config.json", "chat_template.json"):
        assert (target / name).read_bytes() == (source / name).read_bytes()


def test_another_configuration_in_memory_is_the_one_that_is_saved(folders, tmp_path):
    source = shutil.copytree(folders("qwen2_vl"), tmp_path / "base")
    as_published(source)
    backbone = load_backbone(str(source))
    backbone.config.text_config.rms_norm_eps = 1e-3
    target = save_student(backbone, tmp_path / "student")
    assert json.loads((target / "config.json").read_text())["text_config"]["rms_norm_eps"] == 1e-3


def test_an_existing_folder_is_replaced_whole(load, tmp_path):
    target = tmp_path / "student"
    target.mkdir()
    (target / "stale.txt").write_text("old")
    backbone = load("qwen2_vl")
    save_student(backbone, target)
    assert not (target / "stale.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["student"]
    assert target.stat().st_mode & 0o055 == 0o055


def test_a_failure_leaves_what_was_there(load, tmp_path, monkeypatch):
    backbone = load("qwen2_vl")
    target = save_student(backbone, tmp_path / "student")
    before = (target / "model.safetensors").read_bytes()
    change(backbone)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backbone.model, "save_pretrained", full)
    with pytest.raises(OutputError, match="no space is left"):
        save_student(backbone, target)
    assert (target / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


def test_adapters_must_be_merged_first(load, tmp_path):
    pytest.importorskip("peft")
    backbone = load("qwen2_vl")
    add_lora(backbone, rank=2)
    with pytest.raises(CheckpointError, match="merge them"):
        save_student(backbone, tmp_path / "student")


def test_verification_finds_a_changed_weight_and_a_changed_tokenizer(load, tmp_path):
    backbone = load("qwen2_vl")
    target = save_student(backbone, tmp_path / "student")
    weights = load_file(target / "model.safetensors")
    name = next(k for k in weights if "layers.2.mlp.up_proj" in k)
    weights[name][0, 0] += 1e-6
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"differs from the trained one in .*layers\.2\.mlp\.up_proj"):
        verify_student(target, backbone)
    save_student(backbone, target)
    tokenizer = json.loads((target / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:5]
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="other ids"):
        verify_student(target, backbone)


def test_verification_refuses_what_is_not_a_number(load, tmp_path):
    backbone = load("qwen2_vl")
    with torch.no_grad():
        backbone.final_norm.weight.fill_(torch.inf)
    target = save_student(backbone, tmp_path / "student")
    with pytest.raises(CheckpointError, match="up to nan of the largest"):
        verify_student(target, backbone, tolerance=0.5)


def test_verification_leaves_the_modes_of_training(load, tmp_path):
    backbone = load("qwen2_vl")
    backbone.set_trainable({"layers"})
    verify_student(save_student(backbone, tmp_path / "student"), backbone)
    assert backbone.layers[0].training
    assert not backbone.vision[0].training
    assert backbone.layers[0].mlp.up_proj.weight.requires_grad
