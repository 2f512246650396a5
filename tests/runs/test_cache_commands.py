"""``vlsi cache build|info|verify`` and ``vlsi distill --teacher-cache`` through the real app."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.runs.cachekit import ONE, Pair, contents
from tests.runs.conftest import SHORT
from vlsi_cli.app import app


def vlsi(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="vlsi")


def sets(pair: Pair, *more: str) -> list[str]:
    values = [f"teacher.id={pair[0]}", f"student.id={pair[1]}", *SHORT, *ONE, *more]
    return [word for value in values for word in ("--set", value)]


def test_build_from_a_run_then_info_and_verify(live: Path, cache: Path, tmp_path: Path) -> None:
    """The run brings configuration and verbalizers; what is built is what the engine's tests compare with."""
    planned = vlsi("cache", "build", tmp_path / "new", "--run", live, "--dry-run", "--json")
    assert planned.exit_code == 0, planned.output
    shown = vlsi("cache", "build", tmp_path / "new", "--run", live, "--dry-run")
    assert not (tmp_path / "new").exists()
    size = json.loads(planned.stdout)["size"]
    assert f"({size['tokens']:,} response tokens x {size['token_bytes']:,} bytes)" in shown.stdout
    done = vlsi("cache", "build", tmp_path / "new", "--run", live, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["complete"], report["records"], report["shards"]) == (True, 12, 1)
    assert json.loads(planned.stdout)["size"] == report["size"]
    assert "12 records, " in done.stderr
    assert "cache 12/12 records" in done.stderr
    assert contents(tmp_path / "new")["head.safetensors"] == contents(cache)["head.safetensors"]
    described = json.loads(vlsi("cache", "info", tmp_path / "new", "--json").stdout)
    for key in ("about", "records", "tokens", "bytes", "shards", "complete", "skipped"):
        assert described[key] == report[key]
    shown = vlsi("cache", "info", tmp_path / "new")
    assert shown.exit_code == 0
    assert "states, fp32" in shown.stdout
    assert "1, 2, 3, 4, 5 and the last (words)" in shown.stdout
    verified = vlsi("cache", "verify", tmp_path / "new")
    assert verified.exit_code == 0
    assert "every byte as it was written" in verified.stdout
    assert json.loads(vlsi("cache", "verify", tmp_path / "new", "--json").stdout)["problems"] == []


def test_verify_of_a_damaged_cache_ends_in_code_7(copy: Path) -> None:
    shard = copy / "shards" / "00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    (copy / "head.safetensors").unlink()
    done = vlsi("cache", "verify", copy)
    assert done.exit_code == 7
    assert "00001.safetensors is truncated" in done.stderr
    assert "head.safetensors is missing" in done.stderr
    assert done.stdout == ""
    error = json.loads(vlsi("cache", "verify", copy, "--json").stdout)["error"]
    assert (error["type"], error["exit_code"]) == ("CheckpointError", 7)


def test_a_dry_run_shows_the_cache(pair: Pair, cache: Path, copy: Path) -> None:
    done = vlsi("distill", *sets(pair), "--teacher-cache", cache, "--dry-run")
    assert done.exit_code == 0, done.output
    flat = " ".join(done.stdout.split())
    assert f"the large model is not loaded: states in fp32 of {pair[0]} for 12 records" in flat
    plan = json.loads(vlsi("distill", *sets(pair), "--teacher-cache", cache, "--dry-run", "--json").stdout)
    assert plan["settings"]["teacher.cache"] == {"value": str(cache), "origin": "--teacher-cache"}
    assert [need["what"] for need in plan["needs"]] == ["teacher.cache", "student"]
    assert (plan["stages"][0]["stage"], plan["stages"][0]["side"]) == ("verbalization", "small")
    live = json.loads(vlsi("distill", *sets(pair), "--dry-run", "--json").stdout)
    weights = {name: {s["stage"] + s["side"]: s for s in p["stages"]}["interactionsmall"]["memory"]["weights"]
               for name, p in (("cached", plan), ("live", live))}  # fmt: skip
    assert weights["cached"] < weights["live"]
    (copy / "manifest.json").write_text("{")
    broken = vlsi("distill", *sets(pair), "--teacher-cache", copy, "--dry-run")
    assert "the run would be refused" in " ".join(broken.stdout.split())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("distill --teacher-cache nowhere", 4, "give the folder that `vlsi cache build` wrote"),
        ("cache info nowhere", 7, "no teacher cache in nowhere"),
        ("cache verify nowhere", 7, "no teacher cache in nowhere"),
        ("cache build c", 2, "they are not trained yet"),
        ("cache build c --verbalizers nowhere", 4, "teacher.verbalizers: "),
        ("cache build c --run nowhere", 7, "nowhere is not a run folder"),
        ("cache build c --run nowhere --recipe demo", 2, "--run has its own configuration"),
        ("cache build c --set teacher=null --set interaction=null", 2, "there is no teacher to cache"),
        ("distill --resume nowhere --teacher-cache c", 2, "--teacher-cache was given too"),
        ("distill --set student.cache=c", 2, "only a teacher is cached"),
        ("cache build c --top-k 0", 2, "--top-k"),
    ],
)
def test_wrong_use_ends_in_one_sentence(
    words: str, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = vlsi(*words.split())
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())
