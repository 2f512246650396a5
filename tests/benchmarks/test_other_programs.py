"""Benchmarks that no other test starts: their parts fit what they measure, and the folder's page names all."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import data, plan
from tests.invariants.tree import ROOT, parse
from vlsi_cli.config.loading import resolve
from vlsi_cli.config.models import ModelConfig
from vlsi_cli.engine.runs import models


def test_what_a_plan_is_compared_with() -> None:
    found = plan.typical(resolve("demo"))
    assert 20 < (found.length or 0) < 512
    assert 0 < found.response_share < found.image_share + found.response_share < 1


def test_padding_with_and_without_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(data, "WINDOWS", (0, 1))
    path = data.write_talks(tmp_path, 40, 32)
    config = resolve("demo", ["device=cpu", "precision=fp32"]).config
    backbone = models.load_model(
        ModelConfig(id="demo/small"), config, torch.float32, torch.device("cpu"), trained=True
    )
    table = data.grouping(backbone, data.data({"kind": "messages", "path": path}, max_length=2048), 1)
    none, one = (float(str(cell).removesuffix("%")) for cell in table.columns[1].cells)
    assert none >= one


def test_the_page_names_every_program() -> None:
    page = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    for path in (ROOT / "benchmarks").glob("*.py"):
        functions = {node.name for node in parse(path).body if isinstance(node, ast.FunctionDef)}
        assert (f"| `{path.name}` |" in page) == ("main" in functions), path.name


PROGRAMS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "benchmarks").rglob("*.py")
    if 'if __name__ == "__main__":' in path.read_text("utf-8")
)


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_every_program_explains_itself(
    program: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: a process of its own would import torch for each."""
    if program.name == "export.py":
        pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    module = importlib.import_module(".".join(program.with_suffix("").parts))
    monkeypatch.setattr(sys, "argv", [str(program), "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")
