"""Two processes on DeepSpeed's ZeRO do what one does without it, over gloo on the CPU; tolerances as in
``test_processes.py``, and for the same reasons."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")

from tests.runs.conftest import lines
from tests.runs.test_processes import (
    HALVES,
    LITTLE,
    ROOT,
    TOLERANCE,
    begun_by_one,
    launched,
    sets_of,
)
from tests.runs.zero_ranks import trained
from vlsi_cli import events
from vlsi_cli.config.loading import load_saved, resolve
from vlsi_cli.engine.runs import reproduce
from vlsi_cli.engine.runs.distill import run

WHOLE = ("evaluation.data=null", "verbalization.steps=1", "reinforcement.steps=4")


@pytest.fixture(scope="module")
def alone(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone") / "run"
    sets = sets_of(pair, "reinforcement.gradient_accumulation=2", *WHOLE)
    run(resolve("demo", sets), output=output, events=events.ignore)
    return output


@pytest.fixture(scope="module")
def launch(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that two processes have to show, in one launch."""
    folder = tmp_path_factory.mktemp("launch")
    sets = sets_of(pair, *HALVES)
    kinds = {"whole": [*sets, *WHOLE], "short": [*sets, *LITTLE]}
    (folder / "sets.json").write_text(json.dumps(kinds), "utf-8")
    begun_by_one(folder / "one-to-two", *sets, *LITTLE, "sharding=zero3")
    launched("tests.runs.zero_ranks", str(folder), *map(str, pair))
    return folder


@pytest.mark.parametrize("way", ["zero2", "zero3"])
def test_two_processes_train_as_one(alone: Path, launch: Path, way: str) -> None:
    """Same losses, gradient norms, counts and matched layers at every step, and the same student."""
    ours, theirs = lines(launch / way / "metrics.jsonl"), lines(alone / "metrics.jsonl")
    assert [(a["stage"], a["step"]) for a in ours] == [(b["stage"], b["step"]) for b in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert (a["response_tokens"], a["input_tokens"]) == (b["response_tokens"], b["input_tokens"])
        assert a["terms"] == pytest.approx(b["terms"], abs=TOLERANCE)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    assert (launch / way / "matches.jsonl").read_text() == (alone / "matches.jsonl").read_text()
    same_student(launch / way, alone)
    assert json.loads((launch / way / "environment.json").read_text())["run"]["sharding"] == way


def same_student(ours: Path, theirs: Path) -> None:
    student, other = (load_file(at / "student/model.safetensors") for at in (ours, theirs))
    assert max(float((student[name] - other[name]).abs().max()) for name in other) < TOLERANCE


@pytest.mark.parametrize("kind", ["vision", "matching"])
def test_a_process_without_pictures_or_responses(pair: tuple[Path, Path], launch: Path, kind: str) -> None:
    """Parameters, moments and the norm are those of one process with the batches of both, vision tower included."""
    expected = trained(pair, kind, None, alone=True)
    for way in ("zero2", "zero3"):
        found = torch.load(launch / f"{way}-{kind}.pt", weights_only=True)
        for (norm, held, ours), (wanted, (trains, _), theirs) in zip(found, expected, strict=True):
            assert norm == pytest.approx(wanted, rel=1e-5)
            assert held[1] == pytest.approx(trains / 2, rel=0.01)  # each parameter's share is padded
            assert held[0] == trains if way == "zero2" else held[0] < 0.1 * trains  # vectors stay whole
            for name, value in ours.items():
                if name in theirs and not name.startswith("random"):
                    assert torch.allclose(value, theirs[name], atol=1e-5, rtol=1e-4), (way, name)
                elif name.startswith(
                    "optimizer/exp"
                ):  # what no batch uses: a gradient of zeros instead of none
                    assert not value.any(), (way, name)


def test_begun_by_two_and_ended_by_one(alone: Path, launch: Path) -> None:
    """Both were stopped inside a step; its checkpoint holds whole tensors, with which one process goes on."""
    found: dict[str, Any] = json.loads((launch / "found.json").read_text("utf-8"))
    assert found["stopped"] == ["143: stopped after step 4 of 6 of interaction; a checkpoint is saved"] * 2
    output = launch / "two-to-one"
    run(load_saved(output), output=output, events=events.ignore, resume=True)
    # Matches are drawn for other micro-batches now: the same records, and losses that are near.
    for a, b in zip(lines(output / "metrics.jsonl")[:8], lines(alone / "metrics.jsonl"), strict=False):
        assert (a["stage"], a["step"], a["response_tokens"]) == (b["stage"], b["step"], b["response_tokens"])
        assert a["loss"] == pytest.approx(b["loss"], rel=0.05)


@pytest.fixture(scope="module")
def single(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("single") / "run"
    run(resolve("demo", sets_of(pair, *HALVES, *LITTLE)), output=output, events=events.ignore)
    return output


def test_begun_by_one_and_ended_by_two(launch: Path, single: Path) -> None:
    """Where nothing is matched, steps do not know how their records were cut: as if one had gone on."""
    output = launch / "one-to-two"
    for a, b in zip(lines(output / "metrics.jsonl"), lines(single / "metrics.jsonl"), strict=True):
        assert a["response_tokens"] == b["response_tokens"]
        assert a["terms"] == pytest.approx(b["terms"], abs=TOLERANCE)
    same_student(output, single)


def test_a_step_that_is_not_finite_runs_again_without_deepspeed(launch: Path) -> None:
    found: dict[str, Any] = json.loads((launch / "found.json").read_text("utf-8"))
    for each in found["not finite"]:
        assert (each["kind"], each["shared"]) == ("TrainingError", True)
        assert "step 1 of interaction: the loss of last is not finite" in each["message"]
    (bundle,) = (launch / "nan" / "failures").iterdir()
    again = reproduce.run(bundle, events=events.ignore)
    spoilt = again.terms.pop("last")
    assert (math.isfinite(spoilt), math.isfinite(again.terms_then["last"])) == (True, False)
    assert again.terms == {name: pytest.approx(again.terms_then[name], rel=TOLERANCE) for name in again.terms}


def test_accelerate_starts_it(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The shipped configuration, through accelerate's own launcher."""
    output = tmp_path / "run"
    more = (*HALVES, *WHOLE, "interaction=null", "reinforcement=null", "device=cpu")
    sets = [word for text in sets_of(pair, *more) for word in ("--set", text)]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    launcher += ["--main_process_port", "0", "--config_file", "recipes/accelerate/deepspeed-zero3.yaml"]
    done = subprocess.run(
        [*launcher, "-m", "vlsi_cli", "distill", *sets, "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("DeepSpeed divides what trains among them (ZeRO-3)") == 1
    assert "Warning" not in done.stderr
    assert json.loads((output / "progress.json").read_text())["processes"] == 2
