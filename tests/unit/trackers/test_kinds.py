"""Each tracker's own files read back. TensorBoard runs everywhere; the others where they are installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.pairs import accelerator
from vlsi_cli.engine.trackers import KINDS
from vlsi_cli.engine.trackers.kinds import markdown_table


@pytest.fixture(autouse=True)
def _state() -> None:
    accelerator()  # accelerate's trackers log through its state


def tell(tracker: Any, first: int, last: int) -> None:
    for step in range(first, last + 1):
        tracker.numbers({"interaction/loss": float(step)}, step)
    tracker.histograms({"interaction/matched_layers/2": [4, 4, 6]}, last)
    tracker.table("interaction/samples", ["question", "layer 2"], [["a|b\nc", "yes"]], last)


def test_tensorboard_files_and_a_resume(tmp_path: Path) -> None:
    """Steps 1 to 5, of which 4 and 5 come again after a resume: each step is there once."""
    facts = {"project": "p", "run": "r"}
    tracker = KINDS["tensorboard"](tmp_path, resumed=False, **facts)
    tracker.configure({"seed": 1, "device": None})
    tell(tracker, 1, 5)
    tracker.finish()
    tracker = KINDS["tensorboard"](tmp_path, resumed=True, **facts)
    tracker.rewind(3)
    tell(tracker, 4, 8)
    tracker.finish()
    read = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    scalars = read.Scalars("interaction/loss")
    assert [(one.step, one.value) for one in scalars] == [(n, float(n)) for n in range(1, 9)]
    (histogram,) = read.Histograms("interaction/matched_layers/2")
    counts = dict(zip(histogram.histogram_value.bucket_limit, histogram.histogram_value.bucket, strict=True))
    assert {edge: n for edge, n in counts.items() if n} == {4.5: 2.0, 6.5: 1.0}
    texts = {tag: read.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in read.Tags()["tensors"]}
    assert "| a\\|b c | yes |" in texts["interaction/samples/text_summary"]
    assert "| `seed` | `1` |" in texts["configuration/text_summary"]


def test_trackio_keeps_a_run_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio")
    facts = {"project": "vlsi-test", "run": "demo-1"}
    tracker = KINDS["trackio"](tmp_path, resumed=False, **facts)
    tracker.configure({"seed": 1, "device": None})
    tell(tracker, 1, 3)
    tracker.finish()
    tracker = KINDS["trackio"](tmp_path, resumed=True, **facts)
    tracker.configure({"seed": 1, "device": None})
    tell(tracker, 4, 5)
    tracker.finish()
    (run,) = trackio.Api().runs("vlsi-test")
    assert (run.name, run.config["seed"]) == ("demo-1", 1)
    rows = importlib.import_module("trackio.sqlite_storage").SQLiteStorage.get_logs("vlsi-test", "demo-1")
    losses = {row["step"]: row["interaction/loss"] for row in rows if "interaction/loss" in row}
    assert losses == {n: float(n) for n in range(1, 6)}
    assert any("interaction/samples" in row for row in rows)


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = KINDS["wandb"](tmp_path, resumed=False, project="p", run="demo-1")
    tracker.configure({"seed": 1, "device": None})
    tell(tracker, 1, 3)
    tracker.finish()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*-demo-1")
    (file,) = folder.glob("*.wandb")
    assert b"interaction/loss" in file.read_bytes()


def test_a_table_stays_on_its_lines() -> None:
    assert markdown_table(["x"], [["one\ntwo"], ["a|b"]]) == "| x |\n|---|\n| one two |\n| a\\|b |"
