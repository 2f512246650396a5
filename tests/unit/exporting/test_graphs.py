"""Real graphs of tiny models under onnxruntime: equal to torch, small where they should be, refused when damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import needs

needs.onnx()

import onnx_ir as ir  # noqa: E402

from tests.tiny import tiny_folder  # noqa: E402
from vlsi_cli.engine.backbones.backbone import Backbone  # noqa: E402
from vlsi_cli.engine.backbones.load import load_backbone  # noqa: E402
from vlsi_cli.engine.exporting import runtime  # noqa: E402
from vlsi_cli.engine.exporting.check import Check, check  # noqa: E402
from vlsi_cli.engine.exporting.layouts import layout_for  # noqa: E402
from vlsi_cli.engine.exporting.runtime import OnnxModel  # noqa: E402
from vlsi_cli.engine.exporting.writing import half_precision, trace_all, write_export  # noqa: E402
from vlsi_cli.errors import CheckpointError  # noqa: E402

STEPS = 12
LAYOUT = layout_for("transformers.js", "qwen2_vl")
NESTED = layout_for("transformers.js", "smolvlm")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    path = tmp_path_factory.mktemp("models") / "qwen"
    return load_backbone(str(tiny_folder("qwen2_vl", path, layers=2, hidden=64)))


@pytest.fixture(scope="module")
def traced(qwen: Backbone) -> dict[str, Any]:
    return trace_all(qwen, LAYOUT)


@pytest.fixture
def write(qwen: Backbone, traced: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Write the traced graphs to a new folder; writing changes where they keep their weights, so copies are written."""

    def make(precision: str = "fp32", **options: Any) -> Path:
        folder = tmp_path / f"{precision}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        copies = {name: model.clone() for name, model in traced.items()}
        write_export(copies, qwen, folder, LAYOUT, precision, **options)
        return folder

    return make


def compare(folder: Path, backbone: Backbone, precision: str = "fp32", **options: Any) -> Check:
    return check(OnnxModel(folder, threads=1), backbone, precision, steps=STEPS, **options)


def test_graphs_say_what_the_model_says(write: Callable[..., Path], qwen: Backbone) -> None:
    found = compare(write(), qwen)
    assert found.faults == ()
    assert found.equal_tokens == 1.0
    assert found.logit_difference < 1e-4
    assert [case.name for case in found.cases] == [
        "picture 96x64",
        "picture 140x252",
        "text alone",
        "batch of four",
    ]
    lengths = {case.tokens for case in found.cases[:2]}
    assert len(lengths) == 2, "the two pictures take different numbers of tokens"
    assert {case.rows for case in found.cases} == {1, 4}


def test_another_models_weights_are_found_out(write: Callable[..., Path], qwen: Backbone) -> None:
    folder = write()
    norm: Any = qwen.final_norm
    before = norm.weight.data
    norm.weight.data = before.clone()
    norm.weight.data[0] *= 1.05
    try:
        found = compare(folder, qwen)
    finally:
        norm.weight.data = before
    assert any("logits differ by up to" in fault for fault in found.faults)


def test_a_tied_head_is_written_once(write: Callable[..., Path], qwen: Backbone) -> None:
    shared, apart = write() / "onnx", write(separate_head=True) / "onnx"
    matrix = qwen.embeddings.weight.nbytes
    assert (shared / "embed_tokens.onnx_data").stat().st_size == matrix
    name = "decoder_model_merged.onnx"
    assert (apart / name).stat().st_size - (shared / name).stat().st_size > 0.95 * matrix
    assert not list(apart.glob("*_data"))
    assert compare(apart.parent, qwen).faults == ()
    settings = json.loads((shared.parent / "config.json").read_text("utf-8"))
    assert settings["transformers.js_config"]["use_external_data_format"] == {"embed_tokens": 1}


def test_large_graphs_keep_their_weights_beside_them(write: Callable[..., Path], qwen: Backbone) -> None:
    folder = write(largest_file=50_000)
    sizes = {path.name: path.stat().st_size for path in (folder / "onnx").iterdir()}
    for stem in ("vision_encoder", "decoder_model_merged"):
        assert sizes[f"{stem}.onnx_data"] > 50_000
        whole = write() / "onnx" / f"{stem}.onnx"
        assert sizes[f"{stem}.onnx"] < whole.stat().st_size - 50_000
    assert compare(folder, qwen).faults == ()
    settings = json.loads((folder / "config.json").read_text("utf-8"))["transformers.js_config"]
    data = {"embed_tokens": 1, "vision_encoder": 1, "decoder_model_merged": 1}
    assert settings["use_external_data_format"] == data


def test_graphs_hold_no_paths_of_the_machine(write: Callable[..., Path]) -> None:
    for path in (write() / "onnx").glob("*.onnx"):
        data = path.read_bytes()
        assert b".py" not in data
        assert b"/site-packages" not in data


def test_every_size_is_dynamic(write: Callable[..., Path]) -> None:
    folder = write() / "onnx"
    decoder = ir.load(folder / "decoder_model_merged.onnx").graph
    shapes = {value.name: [str(size) for size in value.shape] for value in decoder.inputs}
    assert shapes["inputs_embeds"] == ["batch_size", "sequence_length", "64"]
    assert shapes["position_ids"] == ["3", "batch_size", "sequence_length"]
    assert shapes["past_key_values.1.value"] == ["batch_size", "2", "past_sequence_length", "16"]
    assert shapes["num_logits_to_keep"] == []
    assert [value.name for value in decoder.outputs][:3] == ["logits", "present.0.key", "present.0.value"]
    vision = ir.load(folder / "vision_encoder.onnx")
    assert [value.name for value in vision.graph.inputs] == ["pixel_values", "grid_thw"]
    assert vision.opset_imports[""] == 18


@pytest.mark.parametrize(("bits", "smaller"), [("int8", 2.0), ("int4", 2.5)])
def test_quantized_graphs(bits: str, smaller: float, write: Callable[..., Path], qwen: Backbone) -> None:
    """Random weights are the hardest to round, so few tokens need be equal; of so small a model much is graph."""
    folder = write(bits)
    whole = sum(path.stat().st_size for path in (write() / "onnx").iterdir())
    packed = sum(path.stat().st_size for path in (folder / "onnx").iterdir())
    assert whole / packed > smaller
    kinds = {node.op_type for path in (folder / "onnx").iterdir() for node in ir.load(path).graph}
    assert ("MatMulInteger" if bits == "int8" else "MatMulNBits") in kinds
    vision = ir.load(next((folder / "onnx").glob("vision*"))).graph
    products = [node for node in vision if node.op_type in ("MatMul", "Gemm")]
    assert not [node.name for node in products if node.inputs[1].const_value is not None]
    found = compare(folder, qwen, bits, agreement=0.0, questions=4)
    assert found.faults == ()
    assert found.equal_tokens > 0.3
    assert found.accuracy is not None
    assert found.accuracy.questions == 4
    refused = compare(folder, qwen, bits, agreement=1.01)
    assert "of the greedy tokens are equal, where 101.0% are needed" in refused.faults[0]


def test_half_precision(tmp_path: Path) -> None:
    """Qwen2.5-VL: windows in the tower, and every graph's weights beside it."""
    small = load_backbone(str(tiny_folder("qwen2_5_vl", tmp_path / "model", layers=1, hidden=32)))
    layout = layout_for("transformers.js", "qwen2_5_vl")
    before = small.head.weight.data.clone()
    folder = tmp_path / "out"
    with half_precision(small):
        write_export(trace_all(small, layout), small, folder, layout, "fp16", largest_file=10_000)
    assert np.array_equal(small.head.weight.data.numpy(), before.numpy()), "the model is back in fp32"
    found = compare(folder, small, "fp16", agreement=0.9)
    assert found.faults == ()
    assert found.logit_difference > 1e-5, "fp16 must show"
    data = {path.name: path.stat().st_size for path in (folder / "onnx").glob("*_data")}
    assert len(data) == 3
    matrix = small.embeddings.weight.nbytes // 2
    assert data["embed_tokens_fp16.onnx_data"] == matrix
    layers = sum(weight.nbytes for weight in small.decoder.layers.parameters()) // 2
    assert data["decoder_model_merged_fp16.onnx_data"] < layers + matrix / 2, "the tied head is not in it"
    cache = OnnxModel(folder, threads=1).decoder.get_inputs()[-1]
    assert cache.type == "tensor(float16)"


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl"])
def test_other_families(family: str, tmp_path: Path) -> None:
    backbone = load_backbone(str(tiny_folder(family, tmp_path / "model", layers=1, hidden=32)))
    layout = layout_for("transformers.js", family)
    write_export(trace_all(backbone, layout), backbone, tmp_path / "out", layout, "fp32", largest_file=20_000)
    found = compare(tmp_path / "out", backbone)
    assert found.faults == ()
    assert found.equal_tokens == 1.0
    data = {path.name: path.stat().st_size for path in (tmp_path / "out/onnx").glob("*_data")}
    assert len(data) == 3
    matrix = backbone.embeddings.weight.nbytes
    layers = sum(weight.nbytes for weight in backbone.decoder.layers.parameters())
    assert data["embed_tokens.onnx_data"] == matrix
    assert data["decoder_model_merged.onnx_data"] < layers + matrix / 2, "the tied head is not in it"


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backbone, dict[str, Any]]:
    """SmolVLM and its graphs; its pictures become two or three rows of tiles, and the whole."""
    folder = tiny_folder("smolvlm", tmp_path_factory.mktemp("models") / "smol", layers=1, hidden=32)
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text("utf-8")) | {"size": {"longest_edge": 48}}
    path.write_text(json.dumps(settings), encoding="utf-8")
    backbone = load_backbone(str(folder))
    return backbone, trace_all(backbone, NESTED)


@pytest.mark.parametrize(
    ("precision", "agreement", "product"),
    [("fp32", 1.0, None), ("int8", 0.5, "MatMulInteger"), ("int4", 0.2, "MatMulNBits")],
)
def test_pictures_in_tiles(
    precision: str,
    agreement: float,
    product: str | None,
    smol: tuple[Backbone, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SmolVLM: rows of the batch with as many tiles as their pictures are cut into, and padding."""
    backbone, graphs = smol
    write_export(
        {name: graph.clone() for name, graph in graphs.items()}, backbone, tmp_path, NESTED, precision
    )
    found = compare(tmp_path, backbone, precision, agreement=agreement)
    assert found.faults == ()
    assert len({case.tokens for case in found.cases}) == 4, (
        "pictures of unlike shape take unlike numbers of tokens"
    )
    vision = ir.load(next((tmp_path / "onnx").glob("vision_encoder*.onnx"))).graph
    shapes = {value.name: [str(size) for size in value.shape] for value in (*vision.inputs, *vision.outputs)}
    assert shapes == {
        "pixel_values": ["batch_size", "num_tiles", "3", "16", "16"],
        "pixel_attention_mask": ["batch_size", "num_tiles", "16", "16"],
        "image_features": ["num_real_tiles", "4", "32"],
    }
    if product is not None:
        assert product in {node.op_type for node in vision}
        return
    assert found.logit_difference < 1e-5
    monkeypatch.setattr(runtime, "_PIXELS", 5 * 16**2)
    assert compare(tmp_path, backbone).equal_tokens == 1.0, "five tiles a call"


def test_pictures_in_tiles_in_half_precision(smol: tuple[Backbone, dict[str, Any]], tmp_path: Path) -> None:
    backbone, _ = smol
    with half_precision(backbone):
        write_export(trace_all(backbone, NESTED), backbone, tmp_path, NESTED, "fp16")
    found = compare(tmp_path, backbone, "fp16")
    assert found.faults == ()
    assert found.logit_difference > 1e-5, "fp16 must show"


def test_a_damaged_graph_is_named(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = write()
    path = folder / "onnx/vision_encoder.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"vision_encoder\.onnx cannot be loaded"):
        OnnxModel(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match="lacks one of the three graphs"):
        OnnxModel(folder)
    with pytest.raises(CheckpointError, match="is not an exported model"):
        OnnxModel(tmp_path / "nowhere")
