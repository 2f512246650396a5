"""A run from a cache is the run beside the live large model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.pairs import tiny_pair
from tests.runs.cachekit import ONE, Pair, beside, build, cached, same_weights, steps
from tests.runs.conftest import lines, short
from tests.runs.killed import kill
from vlsi_cli import events
from vlsi_cli.config import asking
from vlsi_cli.config.loading import load_saved
from vlsi_cli.engine.runs import match_layers
from vlsi_cli.engine.runs.distill import run
from vlsi_cli.engine.teachers import LiveTeacher
from vlsi_cli.errors import CheckpointError


def test_bit_for_bit_the_live_run(
    pair: Pair, live: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp32 on a CPU and in the same batches: losses, gradient norms, matches and student, with no large model."""
    monkeypatch.setattr(LiveTeacher, "__init__", lambda *_, **__: pytest.fail("the large model was built"))
    away = tmp_path / "away"
    pair[0].rename(away)  # nothing of it may be needed
    try:
        output = cached(pair, cache, tmp_path / "run")
    finally:
        away.rename(pair[0])
    assert steps(output) == steps(live)
    assert (output / "matches.jsonl").read_text() == (live / "matches.jsonl").read_text()
    assert same_weights(output, live)
    assert not (output / "verbalizers" / "large").exists()
    stages = {line["stage"] for line in lines(output / "metrics.jsonl")}
    assert stages == {"verbalization-small", "interaction", "reinforcement"}


def test_its_layers_are_compared_by_the_sets_of_the_cache(
    pair: Pair, live: Path, cache: Path, tmp_path: Path
) -> None:
    """Named by the run that trained them, since the cache has what they say and not them."""
    output = cached(pair, cache, tmp_path / "run", "interaction.steps=1", "reinforcement=null")
    lens = {"samples": 4, "draws": 2, "events": events.ignore}
    with pytest.raises(CheckpointError, match="has no verbalizers of it"):
        match_layers.run(load_saved(output), run_folder=output, **lens)
    alone = {"student_verbalizers": None, "history_only": False, "at_start": True}
    named = asking.pair(None, (), asking.flags(teacher_verbalizers=live), run=output, **alone)
    found = match_layers.run(named, run_folder=output, at="start", **lens)
    other = match_layers.run(load_saved(live), run_folder=live, at="start", **lens)
    assert found.survey == other.survey


@pytest.mark.parametrize(
    ("family", "architecture"),
    [
        ("qwen3_vl_moe", "ffn"),
        ("qwen3_5", "verb-ffn"),
        ("qwen3_5", "decoder"),
        ("internvl", "verb-ffn"),
        ("gemma3", "decoder"),
        ("gemma4", "decoder"),
        ("mistral3", "decoder"),
    ],
)
def test_bit_for_bit_in_other_families(family: str, architecture: str, tmp_path: Path) -> None:
    """All stages, live and from a cache: where decoder layers are not all alike or have experts, and where pictures
    come in tiles."""
    pair = tiny_pair(tmp_path, family)
    few = (f"verbalizer.architecture={architecture}", "interaction.steps=2", "data.sources.0.size=6")
    few += ("verbalization.batch_size=1", "interaction.gradient_checkpointing=true")
    live, path = tmp_path / "live", tmp_path / "cache"
    run(short(pair, *ONE, *few), output=live, events=events.ignore)
    build(pair, live, path, *few)
    output = cached(pair, path, tmp_path / "run", *few)
    assert steps(output) == steps(live)
    assert same_weights(output, live)


def test_other_batches_differ_by_rounding_only(pair: Pair, live: Path, cache: Path, tmp_path: Path) -> None:
    """Padded otherwise, a matrix product sums in another order: 1e-6 of a state, seen as 1e-5 in losses of order 1."""
    sets = ("interaction.batch_size=3", "reinforcement=null")
    ours = cached(pair, cache, tmp_path / "cached", *sets)
    theirs = beside(pair, live, tmp_path / "live", *sets)
    for a, b in zip(steps(ours), steps(theirs), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["response_tokens"] == b["response_tokens"]
    assert (ours / "matches.jsonl").read_text() == (theirs / "matches.jsonl").read_text()
    held = [load_file(folder / "student" / "model.safetensors") for folder in (ours, theirs)]
    assert all(torch.allclose(held[0][name], held[1][name], atol=1e-4) for name in held[0])


def test_killed_and_resumed_from_a_cache(pair: Pair, cache: Path, live: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    sets = (*ONE, f"teacher.cache={cache}")
    kill(pair, {output: (("interaction", "small", 3), sets)})
    run(load_saved(output), output=output, events=events.ignore, resume=True)
    assert same_weights(output, live)


@pytest.mark.parametrize(
    "sets",
    [
        ("interaction.intermediate=none",),
        ("interaction.features=true", "interaction.intermediate=l2", "interaction.last=l2"),
    ],
    ids=["last layer", "features"],
)
def test_other_arms_from_a_cache(pair: Pair, live: Path, tmp_path: Path, sets: tuple[str, ...]) -> None:
    sets = (*sets, "verbalization=null", "reinforcement=null")
    build(pair, live, tmp_path / "cache", *sets)
    ours = cached(pair, tmp_path / "cache", tmp_path / "run", *sets)
    theirs = beside(pair, live, tmp_path / "live", *sets)
    assert steps(ours) == steps(theirs)
    assert same_weights(ours, theirs)


def test_top_k_is_smaller_and_a_lower_bound(pair: Pair, live: Path, tmp_path: Path) -> None:
    """No head is kept. Which layers are drawn depends on the divergences, so only the last layer's is compared."""
    few = build(pair, live, tmp_path / "few", top_k=4)
    assert few.size is not None
    assert few.size.token_bytes == 6 * (4 * 6 + 4)
    assert not (tmp_path / "few" / "head.safetensors").exists()
    output = cached(pair, tmp_path / "few", tmp_path / "run", "interaction.steps=1", "reinforcement=null")
    ours, whole = (steps(folder)[0]["terms"]["last"] for folder in (output, live))  # type: ignore[index]
    assert 0 < ours < whole


def test_fewer_records_in_another_order_are_served(pair: Pair, cache: Path, tmp_path: Path) -> None:
    sets = (
        "data.sources.0.size=5",
        "seed=3",
        "data.max_length=200",
        "reinforcement=null",
        "interaction.steps=4",
    )
    assert len(steps(cached(pair, cache, tmp_path / "run", *sets))) == 4
