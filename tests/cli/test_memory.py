"""Memory that runs out, on the host as torch's allocator says it: in every command one sentence, and an exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from tests import needs
from vlsi_cli.app import app
from vlsi_cli.engine.runs import export

LAST = (
    "--set",
    "interaction.intermediate=none",
    "--set",
    "data.sources.0.size=4",
)  # no verbalizers to be trained
COMMANDS = {
    "distill": ("distill", "-o", "run", "--set", "evaluation.samples=2"),
    "verbalize": ("verbalize", "picture.png", "--model", "demo/small", "-p", "What?"),
    "match-layers": ("match-layers", "--samples", "2"),
    "cache": ("cache", "build", "cache", "--recipe", "demo", *LAST),
    "export": ("export", "demo/small", "-o", "graphs"),
}
#: Exit codes where the model does not fit, and where what it computes does not.
CODES = {"distill": (4, 8), "verbalize": (4, 4), "match-layers": (4, 8), "cache": (4, 8), "export": (4, 8)}


def full(*_: Any, **__: Any) -> None:
    torch.empty(2**50)  # more than any machine can address


@pytest.mark.parametrize("where", ["loading", "computing"])
@pytest.mark.parametrize("name", COMMANDS)
def test_memory_that_runs_out_is_one_sentence(
    name: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "export":
        needs.onnx()
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (28, 28)).save("picture.png")
    if where == "loading":
        monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", full)
    elif name == "export":  # torch would take apart what a layer does there
        monkeypatch.setattr(f"{export.__name__}.trace_all", full)
    else:
        monkeypatch.setattr(torch.nn.Linear, "forward", full)
    done = CliRunner().invoke(app, COMMANDS[name], prog_name="vlsi")
    assert done.exit_code == CODES[name][where == "computing"], done.output
    assert done.stderr.count("error: ") == 1
    assert "memory" in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(Path(left).exists() for left in ("run", "graphs"))
