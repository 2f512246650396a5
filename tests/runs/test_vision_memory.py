"""A run that keeps what the frozen towers say is the run that computes it in every step."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs.cachekit import ONE, Pair, same_weights, steps
from tests.runs.conftest import short
from vlsi_cli import events
from vlsi_cli.engine.backbones.vision import VisionMemory
from vlsi_cli.engine.runs.distill import run

SETS = (*ONE, "data.sources.0.size=3", "verbalization.batch_size=1", "reinforcement.batch_size=1")


def test_bit_for_bit_and_three_pictures_only(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memories: list[VisionMemory] = []
    start = VisionMemory.__init__
    monkeypatch.setattr(
        VisionMemory, "__init__", lambda self, limit: (memories.append(self), start(self, limit))[1]
    )
    sets = ("student.vision_memory=0.001", "teacher.vision_memory=0.001")
    run(short(pair, *SETS, *sets), output=tmp_path / "kept", events=events.ignore)
    ran = len(memories)
    run(short(pair, *SETS), output=tmp_path / "plain", events=events.ignore)
    for stage in ("verbalization-small", "interaction", "reinforcement"):
        assert steps(tmp_path / "plain", stage)
        assert steps(tmp_path / "kept", stage) == steps(tmp_path / "plain", stage)
    assert same_weights(tmp_path / "kept", tmp_path / "plain")
    assert ran == len(memories) == 2
    assert all(memory.misses <= 3 < memory.hits for memory in memories)
