"""The programs that the documentation shows, on an exported folder: the same text as torch.

transformers.js runs where `VLSI_NODE_MODULES` names a `node_modules` folder that holds `@huggingface/transformers`
(its onnxruntime-node has the binary inside); onnxruntime-genai runs where it is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import needs

needs.onnx()

from tests.invariants.tree import ROOT  # noqa: E402
from tests.tiny import tiny_folder  # noqa: E402
from vlsi_cli.engine.backbones.backbone import Backbone  # noqa: E402
from vlsi_cli.engine.backbones.load import load_backbone  # noqa: E402
from vlsi_cli.engine.data.patterns import pattern_record  # noqa: E402
from vlsi_cli.engine.data.records import ImageRef, Message, Record  # noqa: E402
from vlsi_cli.engine.data.template import ChatEncoder  # noqa: E402
from vlsi_cli.engine.evaluation import answer_prompts  # noqa: E402
from vlsi_cli.engine.exporting.layouts import layout_for  # noqa: E402
from vlsi_cli.engine.exporting.writing import trace_all, write_export  # noqa: E402

QUESTION = "What is shown in the picture?"
NODE = Path(os.environ.get("VLSI_NODE_MODULES", "nowhere"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tiny_folder("qwen2_vl", tmp_path_factory.mktemp("model") / "tiny", layers=1, hidden=32)
    return load_backbone(str(folder))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a size that no runtime has to change: each has another way of resizing."""
    path = tmp_path_factory.mktemp("picture") / "puzzle.png"
    pattern_record("test", 0).image.save(path)
    return path


@pytest.fixture(scope="module")
def torchs_answer(backbone: Backbone, picture: Path) -> str:
    encoder = ChatEncoder(backbone.processor)
    talk = (Message("user", (0, QUESTION)), Message("assistant", ("-",)))
    prompt = encoder.encode_prompt(Record("r", talk, (ImageRef(data=picture.read_bytes()),)))
    end = backbone.tokenizer.eos_token_id
    (answer,) = answer_prompts(backbone, [prompt], pad_id=encoder.pad_id, end_id=end, max_new_tokens=64)
    assert len(answer.prediction) > 20, "an empty answer would compare nothing"
    return answer.prediction


@pytest.fixture(scope="module")
def folder(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exported") / "model"
    target.mkdir()
    layout = layout_for("transformers.js", "qwen2_vl")
    write_export(trace_all(backbone, layout), backbone, target, layout, "fp32")
    return target


def run(*command: str | Path, cwd: Path | None = None) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_python(folder: Path, picture: Path, torchs_answer: str) -> None:
    said = run(sys.executable, ROOT / "docs/examples/answer.py", folder, picture, QUESTION)
    assert said == torchs_answer


def test_transformers_js(folder: Path, picture: Path, torchs_answer: str, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None or not (NODE / "@huggingface/transformers").is_dir():
        pytest.skip("needs node, and VLSI_NODE_MODULES with @huggingface/transformers in it")
    (tmp_path / "node_modules").symlink_to(NODE.resolve())
    script = shutil.copy(ROOT / "docs/examples/answer.mjs", tmp_path)
    said = run(node, script, folder, picture, QUESTION, cwd=tmp_path)
    assert said.splitlines()[-1] == torchs_answer


def test_onnxruntime_genai(backbone: Backbone, picture: Path, torchs_answer: str, tmp_path: Path) -> None:
    if find_spec("onnxruntime_genai") is None:
        pytest.skip("onnxruntime-genai is not installed")
    layout = layout_for("ort-genai", "qwen2_vl")
    write_export(trace_all(backbone, layout), backbone, tmp_path, layout, "fp32")
    said = run(sys.executable, ROOT / "docs/examples/answer_genai.py", tmp_path, picture, QUESTION)
    assert said.startswith(torchs_answer[:40])
