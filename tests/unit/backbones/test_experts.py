"""Models with experts: every layout of their checkpoints, from memory and from the disk, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import EXPERTS
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.errors import ModelError

Folders = Callable[..., Path]


def together(tensors: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    tensors[name] = tensor


def turned(tensors: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    tensors[name] = tensor.transpose(1, 2).contiguous()


def apart(tensors: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    room, _, kind = name.rpartition(".")
    for number, one in enumerate(tensor):
        names = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
        for part, matrix in zip(names, one.chunk(len(names)), strict=True):
            tensors[f"{room}.{number}.{part}.weight"] = matrix.contiguous()


def rewritten(source: Path, folder: Path, write: Callable[..., None], drop: str = "") -> Path:
    """A copy of a checkpoint with its experts in another layout, in two files; without the tensors named."""
    shutil.copytree(source, folder)
    (folder / "model.safetensors").unlink()
    state = load_backbone(str(source)).model.state_dict()
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name != "lm_head.weight":  # tied
            (write if ".mlp.experts." in name else together)(tensors, name, tensor)
    kept = sorted(name for name in tensors if not drop or drop not in name)
    for number, part in enumerate((kept[::2], kept[1::2])):
        save_file({name: tensors[name] for name in part}, folder / f"model-{number}.safetensors")
    index = {name: f"model-{kept.index(name) % 2}.safetensors" for name in kept}
    text = '{"metadata": {}, "weight_map": ' + str(index).replace("'", '"') + "}"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("placement", ["device", "disk"])
@pytest.mark.parametrize(
    ("family", "write"),
    [
        ("qwen3_vl_moe", turned),  # as published
        ("qwen3_vl_moe", together),
        ("qwen3_5_moe", together),  # as published
        ("qwen3_5_moe", apart),
        ("internvl_moe", apart),  # as published
    ],
)
def test_every_layout_of_a_checkpoint(
    family: str,
    write: Callable[..., None],
    placement: Any,
    folders: Folders,
    tmp_path: Path,
    batch_of: Callable[[Backbone], dict[str, Any]],
) -> None:
    source = folders(family)
    plain = load_backbone(str(source))
    other = load_backbone(str(rewritten(source, tmp_path / "model", write)), placement=placement)
    inputs = batch_of(plain)
    with torch.no_grad():
        ours, theirs = other.forward_base(inputs), plain.forward_base(inputs)
    if write is turned and placement == "disk":  # turned by strides, products of fp32 round otherwise
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(ours, theirs)


def test_layers_on_the_disk_must_be_whole(folders: Folders, tmp_path: Path) -> None:
    source = folders("internvl_moe")
    lacking = rewritten(source, tmp_path / "lacking", apart, drop="layers.2.mlp.experts.3.up_proj")
    with pytest.raises(ModelError, match=r"lacks model.language_model.layers.2.mlp.experts.gate_up_proj"):
        load_backbone(str(lacking), placement="disk")
    short = rewritten(source, tmp_path / "short", lambda t, name, x: together(t, name, x[:, :3].contiguous()))
    with pytest.raises(ModelError, match=r"has another shape for model.language_model.layers.0.mlp.experts"):
        load_backbone(str(short), placement="disk")
    more = rewritten(source, tmp_path / "more", together)
    file = more / "model-0.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"model.language_model.layers.9.mlp.gate.weight": torch.zeros(6, 64)}, file)
    with pytest.raises(ModelError, match=r"does not know: layers.9.mlp.gate.weight"):
        load_backbone(str(more), placement="disk")


def test_layers_of_two_kinds_are_refused(folders: Folders, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders("qwen3_vl_moe"), folder)
    file = folder / "config.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"mlp_only_layers": []', '"mlp_only_layers": [1]'), encoding="utf-8")
    with pytest.raises(ModelError, match="layers with experts and layers without"):
        load_backbone(str(folder))


@pytest.mark.parametrize("family", EXPERTS)
def test_a_token_meets_two_of_six(family: str, folders: Folders) -> None:
    backbone = load_backbone(str(folders(family)))
    assert backbone.experts is not None
    assert (backbone.experts.count, backbone.experts.chosen, backbone.experts.ffn) == (6, 2, 16)
    beside = {"qwen3_5_moe": 32, "gemma4_moe": 128}
    assert backbone.intermediate_size == 32 + beside.get(family, 0)
