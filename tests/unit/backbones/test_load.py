from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import EXPERTS, FAMILIES, tiny_folder
from vlsi_cli.config.loading import resolve
from vlsi_cli.engine.backbones import folders as folders_module
from vlsi_cli.engine.backbones.families import read_config
from vlsi_cli.engine.backbones.folders import resolve_folder
from vlsi_cli.engine.backbones.load import describe, load_backbone
from vlsi_cli.engine.backbones.saving import save_student, verify_student
from vlsi_cli.engine.runs import models
from vlsi_cli.errors import ConfigError, ModelError

_MODEL_TYPES = {"internvl_moe": "internvl", "gemma4_moe": "gemma4"}


@pytest.mark.parametrize("family", [*FAMILIES, *EXPERTS])
def test_every_family_loads_frozen_with_its_facts(family, folders):
    backbone = load_backbone(str(folders(family)))
    assert backbone.family.name == _MODEL_TYPES.get(family, family.split()[0])
    assert (backbone.experts is not None) == (family in EXPERTS)
    assert (backbone.num_layers, backbone.hidden_size) == (4, 64)
    assert backbone.head_tied
    assert backbone.tokenizer_length <= backbone.vocabulary_rows == backbone.embeddings.weight.shape[0]
    assert backbone.tokenizer_length == len(backbone.tokenizer)
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert not backbone.model.training
    assert sum(backbone.parameter_counts().values()) == sum(p.numel() for p in backbone.model.parameters())
    parts = {"layers", "final_norm", "embeddings", "vision", "projector"}
    assert set(backbone.parameter_counts()) == parts | ({"audio"} if family == "gemma4" else set())
    assert len(list(backbone.vision.parameters())) > 0


def test_a_head_that_only_the_weights_tell_from_the_embeddings(tmp_path):
    """InternVL3's own configs leave the tie unsaid, and its class then says that there is one."""
    path = tiny_folder("internvl", tmp_path / "model", tied=False)
    config = json.loads((path / "config.json").read_text())
    for part in (config, config["text_config"]):
        part.pop("tie_word_embeddings", None)
    (path / "config.json").write_text(json.dumps(config))
    stored = load_file(path / "model.safetensors")
    backbone = load_backbone(str(path))
    assert not backbone.head_tied
    assert torch.equal(backbone.head.weight, stored["language_model.lm_head.weight"])
    assert verify_student(save_student(backbone, tmp_path / "student"), backbone) == 0.0


def test_an_untied_head_is_a_part_of_its_own(load):
    backbone = load("qwen2_vl", tied=False)
    assert not backbone.head_tied
    assert backbone.parameter_counts()["head"] == backbone.parameter_counts()["embeddings"]


@pytest.mark.parametrize(("family", "title"), [("gemma3", "Gemma 3"), ("gemma4", "Gemma 4")])
def test_a_family_whose_states_pass_the_range_of_fp16(family, title, folders):
    """Stored in fp16, or in fp32 and computed in fp16, as a small model that trains."""
    path = str(folders(family))
    config = resolve("demo", [f"student.id={path}"]).config
    for load in (
        lambda: load_backbone(path, dtype=torch.float16),
        lambda: models.load_model(config.student, config, torch.float16, torch.device("cpu"), trained=True),
    ):
        with pytest.raises(ConfigError, match=f"'{path}' cannot be used in fp16: the states of {title} pass"):
            load()
    assert load_backbone(path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_kernel_that_does_not_take_its_heads(folders):
    with pytest.raises(ConfigError, match="flash_attention_2, which takes heads of at most 256 numbers"):
        load_backbone(str(folders("gemma4 dense")), attn_implementation="flash_attention_2")
    loaded = load_backbone(str(folders("gemma4")), attn_implementation="eager")
    assert loaded.config.get_text_config()._attn_implementation == "eager"


def test_kin_that_is_not_read_is_refused_by_name(folders, tmp_path):
    config = json.loads((folders("gemma4 dense") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "gemma4_unified"}))
    with pytest.raises(ModelError, match=r"of the family 'gemma4_unified', which has no adapter here"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("family", [*FAMILIES, *EXPERTS])
def test_a_description_agrees_with_the_loaded_model(family, folders):
    path = str(folders(family))
    described, loaded = describe(path), load_backbone(path)
    for fact in ("num_layers", "hidden_size", "vocabulary_rows", "tokenizer_length", "family", "folder"):
        assert getattr(described, fact) == getattr(loaded, fact), fact


def test_random_init_depends_on_the_seed_alone_and_leaves_the_generator(folders):
    path = str(folders("qwen2_vl"))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = load_backbone(path, init="random", seed=1)
    assert torch.equal(torch.rand(3), expected)
    same, other = load_backbone(path, init="random", seed=1), load_backbone(path, init="random", seed=2)
    stored = load_backbone(path)
    weights = [b.layers[0].mlp.gate_proj.weight for b in (one, same, other, stored)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])
    assert one.model.generation_config.eos_token_id == stored.model.generation_config.eos_token_id


def test_random_init_needs_no_weights(folders, tmp_path):
    path = _copy(folders("qwen2_vl"), tmp_path)
    (path / "model.safetensors").unlink()
    assert load_backbone(str(path), init="random").num_layers == 4
    with pytest.raises(ModelError, match="has no weights") as error:
        load_backbone(str(path))
    assert "init: random" in (error.value.hint or "")


def test_dtype_is_that_of_all_weights(folders):
    backbone = load_backbone(str(folders("llava_onevision")), dtype=torch.bfloat16)
    assert {p.dtype for p in backbone.model.parameters()} == {torch.bfloat16}


def test_attention_implementation_reaches_the_decoder(folders):
    backbone = load_backbone(str(folders("qwen2_vl")), attn_implementation="eager")
    assert backbone.config.get_text_config()._attn_implementation == "eager"


# ---------------------------------------------------------------- refusals


def _copy(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target / "copy"))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="there is no folder"):
        load_backbone(str(tmp_path / "absent"))


def test_a_folder_without_config(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": 3}'])
def test_a_damaged_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json of"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama"}, "text-only model"),
        ({"model_type": "qwen2"}, "text-only model"),
        ({"model_type": "llava", "vision_config": {}}, "vision language model of the family 'llava'"),
        ({"model_type": "qwen2_v1"}, "did you mean 'qwen2_vl'"),
    ],
)
def test_other_families_are_refused_by_name(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message) as error:
        load_backbone(str(tmp_path))
    assert "Qwen2-VL (qwen2_vl)" in (error.value.hint or "")


def test_a_decoder_that_its_family_is_not_read_with_is_refused_by_name(tmp_path):
    config = {"model_type": "internvl", "text_config": {"model_type": "gpt_oss"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelError, match="of the family InternVL with a decoder 'gpt_oss', which has no adapter"
    ) as error:
        load_backbone(str(tmp_path))
    assert error.value.hint == "InternVL is read with these decoders: qwen2, qwen3, qwen3_moe"


def test_a_config_with_impossible_values(folders, tmp_path):
    path = _copy(folders("qwen2_vl"), tmp_path)
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = "many"
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="does not describe a model"):
        load_backbone(str(path))


def test_pickled_weights_are_refused(folders, tmp_path):
    path = _copy(folders("qwen2_vl"), tmp_path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickles only \(pytorch_model\.bin\)"):
        load_backbone(str(path))


def test_remote_code_is_refused(folders):
    with pytest.raises(ModelError, match="run code from its own folder"):
        load_backbone(str(folders("qwen2_vl")), trust_remote_code=True)


def _edit_weights(path: Path, edit) -> None:
    weights = load_file(path / "model.safetensors")
    edit(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def test_missing_weights_are_an_error_and_not_a_random_start(folders, tmp_path):
    path = _copy(folders("qwen2_vl"), tmp_path)
    _edit_weights(path, lambda w: w.pop(next(k for k in w if "layers.1.mlp.up_proj" in k)))
    with pytest.raises(ModelError, match=r"lacks .*layers\.1\.mlp\.up_proj"):
        load_backbone(str(path))


def test_unexpected_weights_are_an_error(folders, tmp_path):
    path = _copy(folders("qwen2_vl"), tmp_path)
    _edit_weights(path, lambda w: w.update({"model.surprise.weight": torch.zeros(2)}))
    with pytest.raises(ModelError, match=r"does not know: .*surprise"):
        load_backbone(str(path))


def test_weights_of_another_shape_are_an_error(folders, tmp_path):
    path = _copy(folders("qwen2_vl"), tmp_path)

    def cut(weights):
        name = next(k for k in weights if "layers.0.mlp.up_proj" in k)
        weights[name] = weights[name][:3].clone()

    _edit_weights(path, cut)
    with pytest.raises(ModelError, match=r"copy'"):
        load_backbone(str(path))


def test_truncated_weights_are_an_error(folders, tmp_path):
    path = _copy(folders("qwen2_vl"), tmp_path)
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_backbone(str(path))


def test_a_head_smaller_than_the_tokenizer(tmp_path):
    path = tiny_folder("qwen2_vl", tmp_path / "m", vocabulary_rows=330)
    config = json.loads((path / "tokenizer.json").read_text())
    last = max(t["id"] for t in config["added_tokens"])
    extra = {**config["added_tokens"][-1], "id": last + 10, "content": "<|far|>"}
    extra = [{**extra, "id": last + 1 + i, "content": f"<|far{i}|>"} for i in range(10)]
    config["added_tokens"] += extra
    (path / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="rows in its head"):
        load_backbone(str(path))


# ---------------------------------------------------------------- names


def test_demo_names_that_do_not_exist():
    with pytest.raises(ModelError, match="not a model of the demo pair"):
        resolve_folder("demo/medium")


def test_offline_the_message_names_the_model_and_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(folders_module, "_cached", lambda *_: None)

    class Offline:
        def model_info(self, *_args, **_kwargs):
            raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi", Offline)
    with pytest.raises(ModelError, match="Qwen/Qwen2-VL-72B") as error:
        resolve_folder("Qwen/Qwen2-VL-72B", "v1")
    assert error.value.hint == "with a network: hf download Qwen/Qwen2-VL-72B --revision v1"
    assert error.value.exit_code == 4


def test_a_network_error_of_the_http_client_is_the_same_sentence(monkeypatch):
    class ConnectError(type("TransportError", (Exception,), {})):
        pass

    class Offline:
        def model_info(self, *_args, **_kwargs):
            raise ConnectError("unreachable")

    monkeypatch.setattr(folders_module, "_cached", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.HfApi", Offline)
    with pytest.raises(ModelError, match="cannot be reached"):
        resolve_folder("some/model")


def test_a_cached_snapshot_is_used_without_asking_the_hub(monkeypatch, folders):
    monkeypatch.setattr(folders_module, "_cached", lambda *_: folders("qwen2_vl"))
    monkeypatch.setattr(folders_module, "_fetch", lambda *_: pytest.fail("asked the hub"))
    assert resolve_folder("some/model") == folders("qwen2_vl")


def test_an_interrupted_download_is_not_taken_for_a_model(monkeypatch, folders, tmp_path):
    path = _copy(folders("qwen2_vl"), tmp_path)
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    fetched = []
    monkeypatch.setattr(folders_module, "_cached", lambda *_: path)
    monkeypatch.setattr(folders_module, "_fetch", lambda *a: fetched.append(a) or path)
    resolve_folder("some/model", weights=False)
    assert not fetched
    resolve_folder("some/model")
    assert fetched


def test_files_that_may_not_be_read_are_named(tmp_path, monkeypatch):
    """Not by file modes, which do not bind a test that runs as root."""
    folder = tiny_folder("qwen2_vl", tmp_path / "m")

    def refuse(path, *more, **settings):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", refuse)
        with pytest.raises(ModelError, match=r"config\.json of .* cannot be read: Permission denied"):
            read_config(folder)
    (folder / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ModelError, match=r"cannot be loaded: model\.safetensors may not be read"):
        load_backbone(str(folder))
