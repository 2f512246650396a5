"""The benchmarks of a step, of the cancellation, and the programme for a GPU still run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.invariants.tree import ROOT


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_the_benchmark_of_a_step_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import step

    names = ["sft", "last", "vlsi", "vlsi-cached", "vlsi-cached-vision"]
    program = [
        "step.py",
        "--shapes",
        "tiny,tiny",
        "--length",
        "64",
        "--steps",
        "1",
        "--only",
        ",".join(names),
    ]
    monkeypatch.setattr(sys, "argv", [*program, "--output", str(tmp_path)])
    step.main()
    rows = json.loads((tmp_path / "step-tiny-tiny-cpu.json").read_text())["rows"]
    assert [row["name"] for row in rows if row["seconds"] > 0 and row["planned"] > 0] == names
    shares = {row["name"]: row["shares"] for row in rows}
    assert "large model" not in shares["sft"]
    assert "vision" in shares["vlsi-cached"]
    assert "vision" not in shares["vlsi-cached-vision"]  # the tower ran in the steps before
    assert 0 < shares["vlsi"]["verbalizers"] < 1
    assert {"large model"} <= shares["vlsi"].keys() & shares["vlsi-cached"].keys()
    assert "vlsi-cached" in capsys.readouterr().out


def test_the_gradient_is_exact_however_near_the_models_are() -> None:
    """The error of S - Q grows as the models near each other; in fp32 it stays far below what training would see."""
    from benchmarks import cancellation

    rows = cancellation.measure("cpu", 4, 16, 600)
    assert len(rows) == 8
    for row in rows:
        assert row["recomputed"] < 1e-5 / row["noise"]
        assert row["online"] < 1e-4 / row["noise"]


def test_the_programme_for_a_gpu(tmp_path: Path) -> None:
    """Every part is a program of this folder; one of them runs, and a part without time is said to be left out."""
    from benchmarks import gpu

    whole = gpu.parts("cuda", tiny=False, memory=140.0)
    assert all((ROOT / "benchmarks" / part.program[0]).is_file() for part in whole)
    assert len({part.name for part in whole}) == len(whole)
    program = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--device", "cpu", "--tiny", "--only"]
    program += ["cancellation,blocks", "--output", str(tmp_path)]
    done = subprocess.run([*program, "--budget", "0"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "not begun: the budget is spent" in done.stdout
    assert json.loads((tmp_path / "gpu.json").read_text())["device"] == "cpu"


def test_a_part_out_of_time_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of the programme measures in a process of its own, which would go on beside the next part."""
    from benchmarks import gpu

    program = f"import os\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\nimport time\ntime.sleep(300)\n"
    (tmp_path / "slow.py").write_text(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {program!r}])\n", encoding="utf-8"
    )
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    for seconds in (2, 10, 60):  # on a busy machine it takes a while to begin
        found = gpu.run(gpu.Part("slow", ("slow.py",), seconds), tmp_path, 100)
        assert found["ended"] == "out of time"
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            break
    end = time.monotonic() + 120
    while (at := state_of(int((tmp_path / "pid").read_text()))) not in ("", "Z") and time.monotonic() < end:
        time.sleep(0.01)
    assert at in ("", "Z")


def state_of(pid: int) -> str:
    """ps's letter for the state of a process; empty: there is none."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip()[:1]


def test_the_meter_of_the_second_gpu_reads_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import meters

    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert isinstance(meters.meter_for("cuda:1"), meters.CudaMeter)
    assert current == [1]
    assert isinstance(meters.meter_for("cpu"), meters.HostMeter)
    assert current == [1]


def test_half_precision_is_compared_step_by_step() -> None:
    """Three steps by hand: losses 2 1 1 against 2 1.5 0.5, two of three draws equal, one step without a gradient."""
    from benchmarks.precision import compare
    from vlsi_cli.events import StepDone

    def step(loss: float, taken: int, norm: float = 1.0) -> StepDone:
        return StepDone("interaction", 1, 3, loss, {}, None, 1e-3, norm, 0.0, None, draws=({1: (taken,)},))

    exact = [step(2.0, 1), step(1.0, 2), step(1.0, 3)]
    half = [step(2.0, 1), step(1.5, 5, float("inf")), step(0.5, 3)]
    found = compare(exact, half)
    assert found["mean"] == pytest.approx(1 / 3)
    assert found["largest"] == pytest.approx(0.5)
    assert found["end"] == pytest.approx(-0.5)
    assert found["same"] == pytest.approx(2 / 3)
    assert (found["steps"], found["left_out"]) == (3, 1)


def test_every_program_is_named_in_the_readme() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    programs = [
        path for path in (ROOT / "benchmarks").glob("*.py") if "def main()" in path.read_text("utf-8")
    ]
    assert len(programs) > 8
    assert [path.name for path in programs if f"`{path.name}`" not in text] == []
