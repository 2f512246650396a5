"""The first command of the README: the whole method on the shipped pair, in a process of its own, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """`vlsi distill --json` without any other argument: run folder, report, and what was said on stderr."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "vlsi_cli", "distill", "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "demo-1", json.loads(done.stdout), done.stderr


def last_terms(run: Path, stage: str) -> dict[str, float]:
    """Mean loss per target layer over the last ten steps of a stage."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    tail = [row["terms"] for row in rows if row["stage"] == stage][-10:]
    return {layer: sum(terms[layer] for terms in tail) / len(tail) for layer in tail[0]}


def test_the_small_model_does_better_after_than_before(demo: tuple[Path, dict[str, Any], str]) -> None:
    _, report, _ = demo
    scores = {score["who"]: score for score in report["scores"]}
    assert scores["large"]["accuracy"] >= 0.9
    assert scores["small after"]["accuracy"] >= scores["small before"]["accuracy"] + 0.05
    assert scores["small after"]["loss"] < scores["small before"]["loss"]


@pytest.mark.parametrize("side", ["large", "small"])
def test_what_layers_can_say_grows_with_depth(demo: tuple[Path, dict[str, Any], str], side: str) -> None:
    """Arithmetic of the paper's figures: each layer's verbalizer learns alone, so deeper layers end lower."""
    terms = last_terms(demo[0], f"verbalization-{side}")
    losses = [terms[layer] for layer in sorted(terms, key=int)]
    assert len(losses) >= 3
    assert losses == sorted(losses, reverse=True)


def test_the_student_answers_through_plain_transformers(demo: tuple[Path, dict[str, Any], str]) -> None:
    """A puzzle asked without this package's loading code: the answer is the one that the run wrote down."""
    run, _, _ = demo
    answers = json.loads((run / "answers" / "small-after.json").read_text("utf-8"))
    code = (
        "import sys; from transformers import AutoModelForImageTextToText\n"
        "model, info = AutoModelForImageTextToText.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "assert not info['missing_keys'] and not info['unexpected_keys'], info\n"
        "assert not any(name.startswith('vlsi') for name in sys.modules)\n"
        "print(sum(p.numel() for p in model.parameters()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(run / "student")],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert int(done.stdout.split()[-1]) > 100_000
    assert len(answers) == demo[1]["scores"][0]["n"]


def test_progress_without_a_terminal_is_plain_lines(demo: tuple[Path, dict[str, Any], str]) -> None:
    said = demo[2]
    assert "\x1b[" not in said
    for stage in ("verbalization", "interaction", "reinforcement"):
        assert f"{stage} " in said
