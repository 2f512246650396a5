"""One evaluation beside itself, and what a killed one leaves."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner, Result

from tests.evaluation import needs_harness
from vlsi_cli.app import app

pytestmark = needs_harness


def vlsi(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_models_of_one_evaluation_are_compared_each_two_once(tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert vlsi("eval", "--limit", 3, "-o", output).exit_code == 0  # the demo pair
    report = json.loads(vlsi("eval", "compare", output, output / ".", "--json").stdout)
    assert [model for _, model in report["columns"]] == ["demo/large", "demo/small"]
    (pair,) = report["pairs"]
    assert (pair["first"].split(": ")[1], pair["second"].split(": ")[1]) == ("demo/large", "demo/small")


def test_a_single_model_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    words = ("eval", "--model", "demo/small", "--limit", 1, "-o", tmp_path)
    assert vlsi(*words).exit_code == 0
    left = next(tmp_path.glob("models/*/patterns")) / ".scratch-dead.partial"
    left.mkdir()
    assert vlsi(*words).exit_code == 0
    assert not list(tmp_path.rglob(".scratch-*")), "a killed evaluation leaves nothing behind for good"
    done = vlsi("eval", "compare", tmp_path, tmp_path)
    assert done.exit_code == 3
    assert "was given twice and holds one model" in done.stderr
