"""Decoder layers that lie on the disk: the same states, read from the checkpoint, and nothing left in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import pairs
from tests.tiny import EXPERTS, FAMILIES, tiny_folder
from vlsi_cli.engine import gauges
from vlsi_cli.engine.backbones.families import family_of, read_config
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.backbones.placement import device_map
from vlsi_cli.engine.teachers import LiveTeacher
from vlsi_cli.errors import ConfigError


@pytest.mark.parametrize("family", [*FAMILIES, *EXPERTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layers_on_the_disk_say_the_same(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = str(tiny_folder(family, tmp_path, layers=3, tied=False))
    here, away = load_backbone(folder, dtype=dtype), load_backbone(folder, dtype=dtype, placement="disk")
    assert all(parameter.is_meta for parameter in away.layers.parameters())
    resident = [p for part, _, p in away.named_parts() if part != "layers"]
    assert resident
    assert not any(parameter.is_meta for parameter in resident)
    assert away.device.type == "cpu"
    batch = pairs.batches(here, pairs.encoded(here, 3), 3)[0]
    targets = (1, 2)
    for _ in range(2):  # a layer is let go of after its turn, and comes back
        ours, theirs = (
            LiveTeacher(each, pairs.verbalizers(each, targets), targets, dtype).states(batch, targets)
            for each in (away, here)
        )
        for a, b in zip(
            [*ours.layers.values(), ours.last], [*theirs.layers.values(), theirs.last], strict=True
        ):
            assert torch.equal(a, b)
    assert all(parameter.is_meta for parameter in away.layers.parameters())
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in Path(folder).iterdir()}


def test_host_memory_for_a_gpu_only(tmp_path: Path) -> None:
    folder = str(tiny_folder("qwen2_vl", tmp_path))
    with pytest.raises(ConfigError, match="were to be kept in host memory, but it runs on the CPU"):
        load_backbone(folder, placement="cpu")


def test_a_map_for_a_gpu_keeps_all_but_the_layers_on_it(tmp_path: Path) -> None:
    from transformers import AutoConfig

    folder = tiny_folder("llava_onevision", tmp_path, layers=3)
    family = family_of(read_config(folder), "m")
    config = AutoConfig.from_pretrained(folder)
    places = device_map(config, family, torch.device("cuda", 1), "cpu", torch.bfloat16, "m")
    layers = {name: place for name, place in places.items() if ".layers." in name and "language" in name}
    assert layers == {f"model.language_model.layers.{n}": "cpu" for n in range(3)}
    assert {place for name, place in places.items() if name not in layers} == {"cuda:1"}
    assert "model.image_newline" in places


def test_layers_that_host_memory_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system would end the process without a word; the disk needs no host memory."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    folder = tiny_folder("qwen2_vl", tmp_path, layers=3)
    family = family_of(read_config(folder), "m")
    config = AutoConfig.from_pretrained(folder)
    layers = AutoModelForImageTextToText.from_config(config).model.language_model.layers
    size = 2 * sum(parameter.numel() for parameter in layers.parameters())
    where = config, family, torch.device("cuda")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(gauges, "host_memory", lambda: 2 * size)
    device_map(*where, "cpu", torch.bfloat16, "m")
    device_map(*where, "disk", torch.float32, "m")
    with pytest.raises(ConfigError, match=r"in each of 2 processes, and there are .* on this machine"):
        device_map(*where, "cpu", torch.float32, "m")


@pytest.mark.gpu
@pytest.mark.parametrize("placement", ["cpu", "disk"])
def test_on_a_gpu(placement: str, tmp_path: Path) -> None:
    folder = str(tiny_folder("qwen2_vl", tmp_path, layers=3, tied=False))
    here = load_backbone(folder, device="cuda")
    away = load_backbone(folder, device="cuda", placement=placement)  # type: ignore[arg-type]
    batch = pairs.batches(here, pairs.encoded(here, 3), 3)[0].to("cuda")
    ours, theirs = (LiveTeacher(each, None, (1, 2)).states(batch, (1, 2)) for each in (away, here))
    assert torch.equal(ours.last, theirs.last)
