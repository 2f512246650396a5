from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from tests.tiny import FAMILIES
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.backbones.lora import adapter_state, add_lora, has_lora, merge_lora
from vlsi_cli.errors import CheckpointError, ConfigError

pytest.importorskip("peft")


def scramble(backbone, seed=3):
    """Give the adapters an effect, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in adapter_state(backbone).values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_sit_on_the_decoders_linear_layers_only(family, load):
    backbone = load(family)
    before = {n: type(m) for n, m in backbone.model.named_modules()}
    trained = dict(add_lora(backbone, rank=4, alpha=8))
    adapted = {name.split(".lora_")[0] for name in trained}
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    count = 7 * backbone.num_layers
    if family == "qwen3_5":  # every other layer is one of linear attention
        linear |= {"in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"}
        count += backbone.num_layers // 2
    if (
        family == "gemma4"
    ):  # the last two of four layers read others' keys and values; all have inputs of their own
        linear |= {"per_layer_input_gate", "per_layer_projection"}
        count += 2 * backbone.num_layers - 2 * 2
    if family == "gemma4 dense":  # in every other layer keys are values
        count -= backbone.num_layers // 2
    assert len(adapted) == count
    assert {name.rsplit(".", 1)[1] for name in adapted} == linear
    assert all(".layers." in name and before[name] is nn.Linear for name in adapted)
    assert {n for n, p in backbone.model.named_parameters() if p.requires_grad} == set(trained)
    assert all(p.shape[0] == 4 or p.shape[1] == 4 for p in trained.values())


def test_the_start_changes_nothing_and_depends_on_the_seed(load, batch_of, folders):
    plain = load("qwen2_vl")
    inputs = batch_of(plain)
    one, two, other = load("qwen2_vl"), load("qwen2_vl"), load("qwen2_vl")
    torch.manual_seed(1)
    add_lora(one, rank=4, seed=5)
    drawn = torch.rand(1)
    torch.manual_seed(2)
    add_lora(two, rank=4, seed=5)
    add_lora(other, rank=4, seed=6)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    with torch.no_grad():
        assert torch.equal(one.forward_base(inputs), plain.forward_base(inputs))
    a, b, c = adapter_state(one), adapter_state(two), adapter_state(other)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_adapters_are_fp32_on_a_bf16_model(folders):
    backbone = load_backbone(str(folders("qwen2_vl")), dtype=torch.bfloat16)
    add_lora(backbone, rank=4)
    assert {t.dtype for t in adapter_state(backbone).values()} == {torch.float32}
    assert backbone.layers[0].self_attn.q_proj.get_base_layer().weight.dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_onevision", "smolvlm"])
def test_merged_is_stock_and_computes_the_same(family, load, batch_of):
    backbone = load(family)
    names = {n: type(m) for n, m in backbone.model.named_modules()}
    add_lora(backbone, rank=4, alpha=8)
    scramble(backbone)
    backbone.train(False)
    inputs = batch_of(backbone)
    with torch.no_grad():
        adapted = backbone.forward_base(inputs)
        merge_lora(backbone)
        merged = backbone.forward_base(inputs)
    assert not has_lora(backbone)
    assert {n: type(m) for n, m in backbone.model.named_modules()} == names
    assert not hasattr(backbone.model, "peft_config")
    assert not any(p.requires_grad for p in backbone.model.parameters())
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(merged, load(family).forward_base(inputs), atol=1e-2)


def test_the_merged_weight_is_the_formula(load):
    backbone = load("qwen2_vl")
    add_lora(backbone, rank=4, alpha=12)
    scramble(backbone)
    layer = backbone.layers[1].mlp.down_proj
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    expected = layer.get_base_layer().weight.detach() + 12 / 4 * b @ a
    merge_lora(backbone)
    torch.testing.assert_close(backbone.layers[1].mlp.down_proj.weight.detach(), expected)


def test_checkpointed_gradients_of_adapters(load, batch_of):
    gradients = []
    for checkpointing in (False, True):
        backbone = load("qwen2_vl")
        add_lora(backbone, rank=4)
        scramble(backbone)
        backbone.set_gradient_checkpointing(checkpointing)
        assert backbone.layers[0].training
        with backbone.tap([2], rows=torch.tensor([0]), cols=torch.tensor([2])) as tapped:
            last = backbone.forward_base(batch_of(backbone))
        (last.sum() + tapped[2].square().sum()).backward()
        gradients.append({n: p.grad for n, p in backbone.model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        # fp32 sums in another order: 1.0e-5 apart with torch 2.14; a gradient that is lost is all of it apart
        assert (gradients[1][name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_refusals(load, monkeypatch):
    backbone = load("qwen2_vl")
    with pytest.raises(ConfigError, match="rank of 0"):
        add_lora(backbone, rank=0)
    add_lora(backbone, rank=2)
    with pytest.raises(ConfigError, match="already has adapters"):
        add_lora(backbone, rank=2)
    with torch.no_grad():
        next(iter(adapter_state(backbone).values())).fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        merge_lora(backbone)


def test_without_peft_the_message_names_the_extra(load, monkeypatch):
    real = importlib.import_module

    def missing(name, *args):
        if name == "peft":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match="peft package") as error:
        add_lora(load("qwen2_vl"))
    assert error.value.hint == "pip install 'vlsi-cli[peft]'"
