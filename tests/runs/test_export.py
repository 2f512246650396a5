"""`vlsi export` through the real command: a folder that answers, a check that repeats, refusals that leave nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import needs

needs.onnx()

from typer.testing import CliRunner, Result  # noqa: E402

from tests.tiny import tiny_folder  # noqa: E402
from vlsi_cli.app import app  # noqa: E402
from vlsi_cli.engine.exporting import check as checking  # noqa: E402
from vlsi_cli.engine.runs import export as engine  # noqa: E402


def vlsi(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="vlsi")


def refused(done: Result, code: int, message: str) -> None:
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("qwen2_vl", tmp_path_factory.mktemp("models") / "tiny", layers=1, hidden=32)


@pytest.fixture(scope="module")
def exported(model: Path) -> Path:
    folder = model.parent / "exported"
    done = vlsi("export", model, "--output", folder, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["folder"] == str(folder)
    assert report["check"]["faults"] == []
    return folder


@pytest.fixture
def cheap(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs that are traced already, for refusals that come after the tracing."""
    import onnx_ir as ir

    def read(*_: Any, **__: Any) -> dict[str, Any]:
        stems = ("onnx/vision_encoder", "onnx/embed_tokens", "onnx/decoder_model_merged")
        return {stem: ir.external_data.load_to_model(ir.load(exported / f"{stem}.onnx")) for stem in stems}

    monkeypatch.setattr(engine, "trace_all", read)


def test_the_folder_and_its_report(exported: Path, model: Path) -> None:
    names = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "onnx/vision_encoder.onnx",
        "onnx/embed_tokens.onnx",
        "onnx/decoder_model_merged.onnx",
        "export_report.json",
    }
    text = (exported / "export_report.json").read_text("utf-8")
    report = json.loads(text)
    assert str(exported.parent) not in text, "a report travels: it holds no path of this machine"
    assert (report["model"], report["source"]) == ("tiny", "../tiny")
    assert (report["precision"], report["opset"], report["shared_head"]) == ("fp32", 18, True)
    assert (
        report["files"]["onnx/vision_encoder.onnx"] == (exported / "onnx/vision_encoder.onnx").stat().st_size
    )
    assert [case["equal_prefix"] for case in report["check"]["cases"]] == [checking.TOKENS] * 4
    config = json.loads((exported / "config.json").read_text("utf-8"))
    assert config["hidden_size"] == config["text_config"]["hidden_size"], "transformers.js looks at the top"
    settings = json.loads((exported / "tokenizer_config.json").read_text("utf-8"))
    assert "<|image_pad|>" in settings["chat_template"]
    assert not [p for p in exported.parent.iterdir() if p.name.startswith(".")]


def test_the_check_repeats(exported: Path) -> None:
    before = json.loads((exported / "export_report.json").read_text("utf-8"))
    done = vlsi("export", "--check", exported)
    assert done.exit_code == 0, done.output
    assert "picture 140x252" in done.stdout
    assert done.stdout.endswith(f"\nchecked: {exported}\n")
    after = json.loads((exported / "export_report.json").read_text("utf-8"))
    assert before.keys() == after.keys()
    assert before["check"] == after["check"]


def test_the_check_finds_another_model(exported: Path, tmp_path: Path) -> None:
    other = tiny_folder("qwen2_vl", tmp_path / "other", layers=1, hidden=32, seed=5)
    refused(vlsi("export", other, "--check", exported), 7, "do not say what")
    llava = tiny_folder("llava_onevision", tmp_path / "llava", layers=1, hidden=32)
    refused(vlsi("export", llava, "--check", exported), 7, "was made from a qwen2_vl model")


def test_the_check_needs_the_model_and_a_report(exported: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(exported, tmp_path / "deep" / "moved")
    refused(vlsi("export", "--check", moved), 4, "is no longer at ../tiny beside it")
    (moved / "export_report.json").write_text("{}", encoding="utf-8")
    refused(vlsi("export", "--check", moved), 7, "has no readable export_report.json")
    refused(vlsi("export", "--check", tmp_path / "none"), 7, "has no readable export_report.json")
    refused(
        vlsi("export", "--check", exported, "--quantize", "int8"),
        2,
        "--check exports nothing, but --quantize",
    )


def test_a_failed_check_leaves_nothing(
    model: Path, cheap: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(checking.TOLERANCE, "fp32", 0.0)
    done = vlsi("export", model, "--output", tmp_path / "out", "--separate-head")
    refused(done, 7, "the exported graphs do not say what")
    assert "logits differ by up to" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_a_stop_in_the_middle_leaves_nothing(
    stop: type[BaseException], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halt(*_: Any, **__: Any) -> None:
        assert [path.suffix for path in tmp_path.iterdir()] == [".partial"], "not under the target's name"
        raise stop

    monkeypatch.setattr(engine, "trace_all", halt)
    done = vlsi("export", model, "--output", tmp_path / "out")
    assert done.exit_code == (130 if stop is KeyboardInterrupt else 8)
    assert list(tmp_path.iterdir()) == []


def test_targets_that_are_taken(model: Path, exported: Path, tmp_path: Path) -> None:
    refused(vlsi("export", model, "--output", exported), 6, "already holds an export")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    refused(vlsi("export", model, "--output", tmp_path / "file"), 6, "is a file, not a folder")
    refused(vlsi("export", model, "--output", tmp_path), 6, "is not empty and not an export")
    refused(vlsi("export", model, "--output", tmp_path, "--overwrite"), 6, "is not empty and not an export")
    refused(vlsi("export", model, "--output", tmp_path / "file" / "out"), 6, "cannot be written")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_models_that_cannot_be_exported(model: Path, exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    empty, adapters, run = tmp_path / "empty", tmp_path / "adapters", tmp_path / "run"
    for folder in (empty, adapters, run):
        folder.mkdir()
    (adapters / "adapter_config.json").write_text("{}", encoding="utf-8")
    (run / "config.yaml").write_text("name: demo\n", encoding="utf-8")
    gemma = tiny_folder("gemma3", tmp_path / "gemma", layers=1, hidden=32)
    refused(vlsi("export", empty, "-o", out), 4, "has no config.json")
    refused(vlsi("export", adapters, "-o", out), 4, "holds adapters without the model they belong to")
    refused(vlsi("export", run, "-o", out), 4, "has no student yet")
    refused(vlsi("export", exported, "-o", out), 4, "holds exported graphs already")
    refused(
        vlsi("export", gemma, "-o", out),
        4,
        "is of the family Gemma 3, and Gemma 3 cannot be exported to ONNX yet",
    )
    for family, title in (("llava_onevision", "LLaVA-OneVision"), ("smolvlm", "SmolVLM")):
        other = tiny_folder(family, tmp_path / family, layers=1, hidden=32)
        done = vlsi("export", other, "--layout", "ort-genai", "-o", out)
        refused(done, 4, f"is a {title} model, which onnxruntime-genai does not know")
    refused(vlsi("export", "no/such-model", "-o", out), 4, "no/such-model")
    refused(vlsi("export", model / "config.json", "-o", out), 4, "is a file, not the folder of a model")
    refused(vlsi("export"), 2, "no MODEL is given")
    refused(
        vlsi("export", model, "--dtype", "fp16", "--quantize", "int8", "-o", out), 2, "exclude each other"
    )
    assert not out.exists()


def test_the_extra_is_missing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    done = vlsi("export", model, "--output", tmp_path / "out")
    refused(done, 2, "exporting to ONNX needs the package onnx, which is not installed")
    assert "hint: pip install 'vlsi-cli[onnx]'" in done.stderr


def test_the_folder_has_a_name_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vlsi_cli.config import folders

    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "demo-1"
    (run / "student").mkdir(parents=True)
    (run / "config.yaml").write_text("name: demo\n", encoding="utf-8")
    (run / "student" / "config.json").write_text("{}", encoding="utf-8")
    assert folders.model_of_run(str(run)) == str(run / "student")
    assert folders.for_export(None, str(run), "onnx-int8") == run / "exports" / "onnx-int8"
    assert folders.for_export(None, "demo/small", "onnx-fp32") == Path("exports/demo-small-onnx-fp32")
