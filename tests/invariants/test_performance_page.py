"""The page of measurements is what its program writes from the stored results, and the benchmark still runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.invariants.tree import ROOT


def test_the_page_is_what_the_program_writes_from_the_results() -> None:
    program = [sys.executable, str(ROOT / "docs/build_performance.py"), "--check"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize(("what", "name"), [("pair", "ours"), ("matrix", "matrix+recompute")])
def test_the_benchmark_runs(what: str, name: str, tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "benchmarks/losses.py"), what, "--tiny", "--repeats", "1"]
    program += ["--only", name, "--output", str(tmp_path)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / f"losses-{what}-cpu.json").read_text())["rows"]
    assert row["ratio"] > 0
    assert row.get("error", 0.0) < 1e-5  # fp32 against fp64
    assert name in done.stdout
