"""A teacher cache that is damaged, or not of the run's model, reader or data, is refused with the reason."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.runs.cachekit import Pair, build, cached, picture_data
from tests.tiny import tiny_folder
from vlsi_cli.engine import places
from vlsi_cli.engine.runs import cache as caches
from vlsi_cli.errors import CheckpointError, ConfigError, OutputError, VlsiError


def flip(path: Path) -> None:
    """One byte in the middle, the length as it was."""
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(bytes(held))


def edit(path: Path, change: Callable[[dict[str, dict[str, object]]], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def truncate(path: Path) -> None:
    file = path / "shards" / "00002.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "truncated": (truncate, "00002.safetensors is truncated", "00002.safetensors is truncated"),
    "edited": (lambda p: flip(p / "shards" / "00000.safetensors"), "00000.*damaged", "00000.*damaged"),
    "edited head": (lambda p: flip(p / "head.safetensors"), "head.*damaged", "head.*damaged"),
    "edited manifest": (
        lambda p: edit(p, lambda m: m["identity"].update(targets=[1, 2, 3, 4])),
        "not of this cache",
        "not of this cache",
    ),
    "manifest of no JSON": (
        lambda p: (p / "manifest.json").write_text("{"),
        "manifest.json is damaged",
        "manifest.json is damaged",
    ),
    "manifest of something else": (
        lambda p: (p / "manifest.json").write_text('{"name": "an app", "icons": []}'),
        "is not that of a teacher cache",
        "is not that of a teacher cache",
    ),
    "no manifest": (
        lambda p: (p / "manifest.json").unlink(),
        "manifest.json is missing",
        "manifest.json is missing",
    ),
    "of the future": (
        lambda p: edit(p, lambda m: m.update(format_version=99)),  # type: ignore[call-overload]
        "format version 99",
        "format version 99",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_and_found(pair: Pair, copy: Path, tmp_path: Path, name: str) -> None:
    damage, refusal, finding = DAMAGE[name]
    damage(copy)
    with pytest.raises(CheckpointError, match=refusal) as raised:
        cached(pair, copy, tmp_path / "run", "verbalization.steps=1", "interaction.steps=12")
    assert raised.value.exit_code == 7
    try:
        (problem,) = caches.verify(copy).problems
    except CheckpointError as error:
        problem = error.message
    assert re.search(finding, problem)


def test_a_shard_of_another_cache(pair: Pair, live: Path, copy: Path, tmp_path: Path) -> None:
    """Same size, whole in itself, from other puzzles."""
    build(pair, live, tmp_path / "other", "data.sources.0.seed=9")
    for number in range(3):
        name = f"{number:05d}.safetensors"
        shutil.copy(tmp_path / "other" / "shards" / name, copy / "shards" / name)
        size = (copy / "shards" / name).stat().st_size
        edit(copy, lambda m, n=number, size=size: m["shards"][n].update(bytes=size))  # type: ignore[misc]
    with pytest.raises(CheckpointError, match="is not of this cache"):
        cached(pair, copy, tmp_path / "run")


@pytest.mark.parametrize(
    ("sets", "kind", "reason"),
    [
        (("teacher.targets.layers=[1,2,3]",), CheckpointError, "holds target layers 1, 2, 3, 4, 5"),
        (
            ("teacher.quantization=8bit",),
            CheckpointError,
            "built with teacher.quantization none, and this run has 8bit",
        ),
        (("data.sources.0.seed=9",), CheckpointError, "data.sources.0 of this run .patterns. is not among"),
        (
            ("data.sources.0.size=13",),
            CheckpointError,
            "holds 12 records of data.sources.0, and this run has 13",
        ),
        (("data.sources.0.size=null",), ConfigError, "without end.*data.sources.0.size=20000"),
        (("data.max_length=1024",), CheckpointError, "records of up to 512 tokens, and this run takes 1024"),
        (
            ("data.max_pixels=2048",),
            CheckpointError,
            "built with data.max_pixels None, and this run has 2048",
        ),
        (
            ("interaction.features=true", "interaction.intermediate=l2"),
            CheckpointError,
            "holds verbalized layers, and this run compares layers without",
        ),
        (
            ("interaction.intermediate=ce", "interaction.last=ce"),
            ConfigError,
            "no loss of `interaction` looks at the large model",
        ),
        (("teacher.cache=nowhere",), CheckpointError, "no teacher cache in nowhere"),
    ],
)
def test_a_run_of_something_else_is_refused(
    pair: Pair, cache: Path, tmp_path: Path, sets: tuple[str, ...], kind: type[VlsiError], reason: str
) -> None:
    with pytest.raises(kind, match=reason):
        cached(pair, cache, tmp_path / "run", *sets)
    assert not (tmp_path / "run").exists()  # nothing that would block the next try


def test_other_weights_verbalizers_student(pair: Pair, live: Path, cache: Path, tmp_path: Path) -> None:
    large, small = pair
    other = tiny_folder("qwen2_vl", tmp_path / "large", layers=6, vocabulary_rows=400, tied=False, seed=5)
    with pytest.raises(CheckpointError, match=f"with other weights than {other} here has"):
        cached((other, small), cache, tmp_path / "a")
    with pytest.raises(
        CheckpointError, match=f"it is of {large}, and this run's teacher is Qwen/Qwen2-VL-72B"
    ):
        cached(pair, cache, tmp_path / "b", "teacher.id=Qwen/Qwen2-VL-72B")
    moved = Path(shutil.copytree(large, tmp_path / "moved"))  # another name for the same weights
    said = Path(shutil.copytree(live / "verbalizers" / "large", tmp_path / "said")) / "manifest.json"
    said.write_text(json.dumps(json.loads(said.read_text()) | {"tensors_sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="built with other verbalizers"):
        cached((moved, small), cache, tmp_path / "c", f"teacher.verbalizers={said.parent}")
    stranger = tiny_folder("qwen2_vl", tmp_path / "small", hidden=32, tokenizer_text="zebra quux " * 9)
    with pytest.raises(CheckpointError, match="another tokenizer"):
        cached((large, stranger), cache, tmp_path / "d")
    template = Path(shutil.copytree(small, tmp_path / "template")) / "chat_template.jinja"
    template.write_text(template.read_text() + "{# other #}")
    with pytest.raises(CheckpointError, match="another chat template"):
        cached((large, template.parent), cache, tmp_path / "e")


def test_a_top_k_cache_serves_kld_alone(pair: Pair, live: Path, tmp_path: Path) -> None:
    build(pair, live, tmp_path / "cache", top_k=4)
    for setting, named in (
        ("interaction.last=l2", "l2"),
        ("interaction.intermediate=jsd", "jsd"),
        ("interaction.temperature=2", "the temperature 2"),
    ):
        with pytest.raises(CheckpointError, match=f"serve kld at temperature 1, and this run has {named}"):
            cached(pair, tmp_path / "cache", tmp_path / "run", setting)


def test_a_record_with_other_pixels_is_named(pair: Pair, live: Path, tmp_path: Path) -> None:
    data = picture_data(tmp_path, "red")
    sets = (data, "reinforcement=null", "interaction.steps=1")
    build(pair, live, tmp_path / "cache", *sets)
    cached(pair, tmp_path / "cache", tmp_path / "run", *sets)
    picture_data(tmp_path, "blue")
    with pytest.raises(CheckpointError, match=r"record 'a' is not in the teacher cache .+ other pixels"):
        cached(pair, tmp_path / "cache", tmp_path / "again", *sets)
    (tmp_path / "data.jsonl").write_text((tmp_path / "data.jsonl").read_text().replace("red", "blue"))
    with pytest.raises(CheckpointError, match="is not among the data"):
        cached(pair, tmp_path / "cache", tmp_path / "third", *sets)


@pytest.mark.parametrize("fault", ["a file", "full", "something else"])
def test_a_place_that_cannot_hold_it_is_told_before_anything_is_read(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("the models were looked at")

    monkeypatch.setattr(caches, "describe_pair", read)
    place, wanted = tmp_path / "a" / "cache", "is not a folder"
    if fault == "a file":
        (tmp_path / "a").write_text("")
    elif fault == "full":
        wanted = "no space is left on the disk"
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(places.os, "fsync", Mock(side_effect=full))
    else:
        wanted = "is not empty and no teacher cache"
        place.mkdir(parents=True)
        (place / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=wanted):
        build(pair, tmp_path, place)
    assert sorted(tmp_path.rglob("*")) == before
