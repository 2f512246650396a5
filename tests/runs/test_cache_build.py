"""Building a teacher cache: kills, lost shards, sizes told beforehand, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.runs.cachekit import ONE, SHARD, Pair, build, cached, contents, picture_data, verbalizers
from tests.runs.conftest import SHORT, short
from vlsi_cli import events
from vlsi_cli.engine.runs import cache as caches
from vlsi_cli.engine.teachers import LiveTeacher
from vlsi_cli.errors import CheckpointError, ConfigError, DataError, ModelError, OutputError, VlsiError

KILL = """
import os, signal, sys
from pathlib import Path
from vlsi_cli.config.loading import resolve
from vlsi_cli.engine.runs.cache import build
from vlsi_cli.events import Advanced
path, done, number, shard = sys.argv[1], *map(int, sys.argv[2:5])
def watch(event):
    if isinstance(event, Advanced) and event.done >= done:
        os.kill(os.getpid(), number)
build(resolve("demo", sys.argv[5:]), path=Path(path), shard_bytes=shard, events=watch)
"""


def test_killed_build_goes_on_to_the_same_bytes(pair: Pair, live: Path, cache: Path, tmp_path: Path) -> None:
    path, large, small = tmp_path / "cache", *pair
    said = verbalizers(live)
    sets = [f"teacher.id={large}", f"student.id={small}", *SHORT, *ONE, said]
    done = subprocess.run(
        [sys.executable, "-c", KILL, str(path), "7", str(int(signal.SIGKILL)), str(SHARD), *sets],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not caches.info(path).complete
    assert caches.info(path).shards > 0
    with pytest.raises(CheckpointError, match="is not complete"):
        cached(pair, path, tmp_path / "run")
    (path / "shards" / ".00003-half.safetensors").write_bytes(b"half")
    seen: list[int] = []

    def watch(event: object) -> None:
        if isinstance(event, events.Advanced):
            seen.append(event.done)

    build(pair, live, path, events=watch)
    assert min(seen) > 1  # whole shards were not made again
    assert contents(path) == contents(cache)


def test_a_wish_to_stop_keeps_finished_shards(pair: Pair, live: Path, cache: Path, tmp_path: Path) -> None:
    def watch(event: object) -> None:
        if isinstance(event, events.Advanced) and event.done == 8:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(VlsiError, match="stopped after 8 of 12 records") as stopped:
        build(pair, live, tmp_path / "cache", events=watch)
    assert stopped.value.exit_code == 130
    build(pair, live, tmp_path / "cache")
    assert contents(tmp_path / "cache") == contents(cache)


def test_a_kill_between_the_last_shard_and_the_end_is_gone_on_with(
    pair: Pair, live: Path, cache: Path, copy: Path
) -> None:
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    (copy / "manifest.json").write_text(json.dumps(manifest | {"complete": False}), "utf-8")
    assert not caches.info(copy).complete
    build(pair, live, copy)
    assert contents(copy) == contents(cache)


def test_a_lost_shard_is_made_again_alone(pair: Pair, live: Path, cache: Path, copy: Path) -> None:
    (copy / "shards" / "00001.safetensors").unlink()
    (copy / "head.safetensors").unlink()
    assert len(caches.verify(copy).problems) == 2
    seen: list[int] = []

    def watch(event: object) -> None:
        if isinstance(event, events.Advanced):
            seen.append(event.done)

    build(pair, live, copy, events=watch)
    assert contents(copy) == contents(cache)
    entry = json.loads((cache / "manifest.json").read_text())["shards"][1]
    assert seen == list(range(entry["start"] + 1, entry["stop"] + 1))
    assert caches.verify(copy).problems == ()


def test_a_finished_cache_is_left_alone(
    pair: Pair, live: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LiveTeacher, "__init__", lambda *_, **__: pytest.fail("the large model was built"))
    before = contents(copy)
    assert build(pair, live, copy).complete
    assert contents(copy) == before


def test_unusable_records_are_counted(pair: Pair, live: Path, tmp_path: Path) -> None:
    data = picture_data(tmp_path, "red")
    text = (tmp_path / "data.jsonl").read_text()
    (tmp_path / "data.jsonl").write_text("oops\n" + text + text.replace("a.png", "none.png"))
    report = build(pair, live, tmp_path / "cache", data)
    assert (report.records, report.draws) == (1, 3)
    assert report.skipped == {"broken-json": 1, "image-missing": 1}
    (tmp_path / "data.jsonl").write_text("oops\n")
    with pytest.raises(DataError, match="not one of 1 records could be used"):
        build(pair, live, tmp_path / "none", data)
    (tmp_path / "data.jsonl").write_text(text)  # mended: what was begun has no shard, and is in nobody's way
    assert build(pair, live, tmp_path / "none", data).records == 1


def test_builds_that_are_refused(pair: Pair, live: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds another teacher cache, which differs in the data"):
        build(pair, live, cache, "data.sources.0.seed=9")
    with pytest.raises(ConfigError, match="they are not trained yet"):
        caches.build(short(pair, *ONE), path=tmp_path / "a", events=events.ignore)
    with pytest.raises(ConfigError, match="without end"):
        build(pair, live, tmp_path / "b", "data.sources.0.size=null")
    with pytest.raises(ConfigError, match="--top-k 9999"):
        build(pair, live, tmp_path / "c", top_k=9999)
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(OutputError, match="no teacher cache"):
        build(pair, live, tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_cache_is_only_replaced_for_a_model_that_can_be_loaded(
    pair: Pair, live: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = shutil.copytree(cache, tmp_path / "cache")

    def fails(*_: object) -> None:
        raise ModelError("damaged weights")

    monkeypatch.setattr(caches, "_load_teacher", fails)
    with pytest.raises(ModelError, match="damaged weights"):
        build(pair, live, old, "data.sources.0.seed=9", overwrite=True)
    assert caches.verify(old).problems == ()


def test_the_size_is_told_before_anything_is_written(
    pair: Pair, live: Path, cache: Path, tmp_path: Path
) -> None:
    report = build(pair, live, tmp_path / "cache", dry_run=True)
    assert not (tmp_path / "cache").exists()
    built = caches.info(cache)
    assert report.size is not None
    assert asdict(report.size) == {
        "draws": 12,
        "sampled": 12,
        "tokens": built.tokens,
        "token_bytes": 6 * 64 * 4,
        "head_bytes": 400 * 64 * 4,
        "bytes": built.tokens * 6 * 64 * 4 + 400 * 64 * 4,
    }
    assert built.bytes == pytest.approx(report.size.bytes, rel=0.05)  # index and headers on top


def test_layers_on_the_disk_build_the_same_cache(pair: Pair, live: Path, cache: Path, tmp_path: Path) -> None:
    """Where the large model lies is not part of what a cache is of."""
    build(pair, live, tmp_path / "cache", "teacher.placement=disk")
    assert contents(tmp_path / "cache") == contents(cache)
