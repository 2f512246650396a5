"""A run beside a quantized large model, and the cache of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import needs
from tests.runs.cachekit import Pair, beside, build, cached, same_weights, steps
from tests.runs.conftest import short
from vlsi_cli import events
from vlsi_cli.config.loading import resolve
from vlsi_cli.engine.backbones import quantization
from vlsi_cli.engine.runs.distill import run
from vlsi_cli.errors import ConfigError


def test_live_and_cached_are_one_run(pair: Pair, live: Path, tmp_path: Path) -> None:
    needs.bitsandbytes()
    sets = ("teacher.quantization=8bit", "verbalization.steps=1", "reinforcement=null", "interaction.steps=2")
    build(pair, live, tmp_path / "cache", *sets)
    ours = cached(pair, tmp_path / "cache", tmp_path / "run", *sets)
    theirs = beside(pair, live, tmp_path / "live", *sets)
    assert steps(ours) == steps(theirs)
    assert same_weights(ours, theirs)
    whole = [step["loss"] for step in steps(live)[:2]]
    rounded = [step["loss"] for step in steps(ours)]
    assert rounded != whole
    assert rounded[0] == pytest.approx(whole[0], rel=0.1)


def test_refused_before_anything_is_loaded(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="8bit weights need the package bitsandbytes"):
        run(short(pair, "teacher.quantization=8bit"), output=tmp_path / "run", events=events.ignore)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("sets", "reason"),
    [
        (["student.quantization=4bit"], "`student.quantization` must be none"),
        (["teacher.quantization=4bit", "teacher.placement=disk"], "needs `teacher.placement: device`"),
    ],
)
def test_combinations_without_sense(sets: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        resolve("demo", sets)
