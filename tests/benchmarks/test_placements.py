"""Hollow checkpoints are read as any other and take no disk, and the plan's largest model is its largest."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import hollow, shapes
from benchmarks.placements import Bench
from benchmarks.plan import typical
from vlsi_cli.config import loading
from vlsi_cli.config.stage_plans import Records
from vlsi_cli.engine import gauges
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.verbalizing import head_fingerprint
from vlsi_cli.engine.verbalizing.files import load_verbalizers


def test_a_hollow_model_and_its_verbalizers(tmp_path: Path) -> None:
    model, words = tmp_path / "model", tmp_path / "words"
    hollow.write_model(model, "large:4", image_tokens=64)
    hollow.write_weights(model, "large:4")
    hollow.write_verbalizers(words, model, "large:4")
    weights = (model / "model.safetensors").stat()
    assert weights.st_size > 20_000_000
    assert weights.st_blocks * 512 < 200_000
    backbone = load_backbone(str(model))
    assert backbone.tokenizer_length == 18_900
    assert backbone.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>") == backbone.image_token_id
    assert not backbone.head.weight.any()
    targets = shapes.shape_of("large:4").targets
    read, _ = load_verbalizers(
        words,
        base_id=str(model),
        head_sha256=head_fingerprint(backbone.head.weight),
        hidden_size=512,
        layers=targets,
        norm=backbone.final_norm,
    )
    assert read.targets == targets == (2, 3)


@pytest.mark.parametrize("placement", ["device", "8bit"])
def test_the_largest_model_that_the_plan_lets_through(placement: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, "small", "large", "cpu", 256)
    hollow.write_model(tmp_path / "small", "small", image_tokens=64)
    bench.describe(14)
    records = typical(loading.resolve("demo", bench.sets(14, "device"), {}))
    assert 128 < (records.length or 0) <= 256
    memory, host = bench.planned(9, placement, records)
    assert host == 0
    assert bench.most_layers(placement, memory, records) == 9
    assert bench.planned(10, placement, records)[0] > memory
    assert bench.most_layers(placement, 1, Records(256)) == 0


def test_layers_in_host_memory_are_no_more_than_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, "small", "large", "cuda", 256)
    hollow.write_model(tmp_path / "small", "small", image_tokens=64)
    bench.describe(14)
    records = typical(loading.resolve("demo", bench.sets(14, "device"), {}))
    device_bytes, host_bytes = bench.planned(9, "cpu", records)
    monkeypatch.setattr(gauges, "host_memory", lambda: int(host_bytes / 0.8) + 1)
    assert bench.most_layers("cpu", 2 * device_bytes, records) == 9
