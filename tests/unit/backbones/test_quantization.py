"""Decoder layers in 8 and 4 bits, for real: on a CPU, by bitsandbytes itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests import needs, pairs
from tests.tiny import FAMILIES, tiny_folder
from vlsi_cli.engine.backbones import quantization
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.teachers import LiveTeacher
from vlsi_cli.errors import ConfigError

LINEAR = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}
#: Share of the state's norm that rounding moves at most: a weight's step is 1/127 and about 1/8 of its block's largest,
#: and the tiny models' weights are random, so that nothing averages out over many layers.
FAR = {"8bit": 0.1, "4bit": 0.5}
TARGETS = (1, 2)


def states(backbone: Backbone, dtype: torch.dtype) -> list[torch.Tensor]:
    batch = pairs.batches(backbone, pairs.encoded(backbone, 3), 3)[0]
    said = LiveTeacher(backbone, pairs.verbalizers(backbone, TARGETS), TARGETS, dtype).states(batch, TARGETS)
    return [*said.layers.values(), said.last]


@pytest.mark.parametrize("bits", LINEAR)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_matrices_and_nothing_else(family: str, bits: str, tmp_path: Path) -> None:
    needs.bitsandbytes()
    dtype = torch.bfloat16 if family == "qwen2_5_vl" else torch.float32
    folder = str(tiny_folder(family, tmp_path, layers=3, hidden=64, tied=family == "qwen2_vl"))
    whole = load_backbone(folder, dtype=dtype)
    rounded = load_backbone(folder, dtype=dtype, quantization=bits)  # type: ignore[arg-type]
    linears = {name for name, module in whole.model.named_modules() if type(module) is torch.nn.Linear}
    room = f"model.{whole.family.decoder}.layers."
    found = {name for name, module in rounded.model.named_modules() if type(module).__name__ == LINEAR[bits]}
    gates = whole.family.gates
    assert found == {n for n in linears if n.startswith(room) and n.rpartition(".")[2] not in gates}
    assert type(rounded.head) is torch.nn.Linear
    assert rounded.dtype == dtype
    held = dict(whole.model.named_parameters())
    for part, name, parameter in rounded.named_parts():
        assert not parameter.requires_grad
        if part != "layers":
            assert torch.equal(parameter, held[name])
    for ours, theirs in zip(states(rounded, dtype), states(whole, dtype), strict=True):
        assert ours.dtype == theirs.dtype
        gap = float((ours - theirs).float().norm() / theirs.float().norm())
        # linear attention divides what it gives by its norm, head by head, so that rounding weighs more in small ones;
        # Gemma 4 does not divide its scores by the root of a head's width, so that it turns attention further
        assert 0 < gap < FAR[bits] * (1.7 if gates or whole.family.name == "gemma4" else 1)


def test_a_quarter_and_an_eighth_of_the_bytes(tmp_path: Path) -> None:
    needs.bitsandbytes()
    folder = str(tiny_folder("qwen2_vl", tmp_path, layers=3, hidden=128, tied=False))
    sizes = {}
    for bits in ("none", *LINEAR):
        layers = load_backbone(folder, quantization=bits).layers  # type: ignore[arg-type]
        sizes[bits] = sum(p.nbytes for layer in layers for p in layer.parameters() if p.ndim > 1)
    assert sizes == {"none": sizes["none"], "8bit": sizes["none"] // 4, "4bit": sizes["none"] // 8}


def test_no_word_on_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """bitsandbytes warns at every product that its inputs are cast."""
    needs.bitsandbytes()
    folder = str(tiny_folder("qwen2_vl", tmp_path, layers=3))
    capfd.readouterr()
    states(load_backbone(folder, quantization="8bit"), torch.float32)
    assert capfd.readouterr().err == ""


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_folder("qwen2_vl", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    monkeypatch.setattr(quantization, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="bitsandbytes, which is not installed") as missing:
        load_backbone(str(folder), quantization="4bit")
    assert missing.value.hint == "pip install 'vlsi-cli[quant]'"
    monkeypatch.setattr(quantization, "find_spec", lambda _: object())
    with pytest.raises(ConfigError, match="a CUDA device or a CPU, and this run is on mps"):
        quantization.check_quantization("8bit", torch.device("mps"), config, "m")
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "awq"}})
    )
    with pytest.raises(ConfigError, match=r"is quantized already \(awq\)"):
        load_backbone(str(folder), quantization="8bit")


@pytest.mark.gpu
@pytest.mark.parametrize("bits", LINEAR)
def test_on_a_gpu(bits: str, tmp_path: Path) -> None:
    needs.bitsandbytes()
    folder = str(tiny_folder("qwen2_vl", tmp_path, layers=3, hidden=64, tied=False))
    kind = {"dtype": torch.bfloat16, "device": "cuda"}
    whole, rounded = load_backbone(folder, **kind), load_backbone(folder, **kind, quantization=bits)  # type: ignore[arg-type]
    batch = pairs.batches(whole, pairs.encoded(whole, 3), 3)[0].to("cuda")
    ours, theirs = (LiveTeacher(each, None, TARGETS).states(batch, TARGETS).last for each in (rounded, whole))
    assert 0 < float((ours - theirs).float().norm() / theirs.float().norm()) < FAR[bits]
