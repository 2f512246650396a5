"""What tests of teacher caches share: twelve records, a build, a run, and how two runs are compared."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from tests.runs.conftest import lines, short
from vlsi_cli import events
from vlsi_cli.engine.runs import cache as caches
from vlsi_cli.engine.runs.distill import run
from vlsi_cli.engine.runs.watch import VOLATILE

Pair = tuple[Path, Path]
#: Twelve records, one at a time, none measured: every test here trains on these.
ONE = (
    "data.sources.0.size=12",
    "interaction.batch_size=1",
    "evaluation.data=null",
    "reinforcement.steps=1",
    "verbalization.steps=1",
)
SHARD = 30_000  # bytes: a handful of shards


def verbalizers(live: Path) -> str:
    return f"teacher.verbalizers={live / 'verbalizers' / 'large'}"


def build(pair: Pair, live: Path, path: Path, *sets: str, **options: object) -> caches.CacheReport:
    options = {"shard_bytes": SHARD, "events": events.ignore, **options}
    return caches.build(short(pair, *ONE, verbalizers(live), *sets), path=path, **options)  # type: ignore[arg-type]


def cached(pair: Pair, path: Path, output: Path, *sets: str) -> Path:
    """A run from a cache."""
    run(short(pair, *ONE, f"teacher.cache={path}", *sets), output=output, events=events.ignore)
    return output


def beside(pair: Pair, live: Path, output: Path, *sets: str) -> Path:
    """The same run beside the live large model, with the verbalizers that the cache was built with."""
    run(short(pair, *ONE, verbalizers(live), *sets), output=output, events=events.ignore)
    return output


def same_weights(a: Path, b: Path) -> bool:
    ours, theirs = (load_file(folder / "student" / "model.safetensors") for folder in (a, b))
    return set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def steps(folder: Path, stage: str = "interaction") -> list[dict[str, object]]:
    """The lines of a stage's steps, but for their time."""
    found = [line for line in lines(folder / "metrics.jsonl") if line["stage"] == stage]
    return [{key: value for key, value in line.items() if key not in VOLATILE} for line in found]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a cache, but for the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def picture_data(folder: Path, colour: str) -> str:
    """One record with a picture of one colour, as an override of the data."""
    Image.new("RGB", (32, 32), colour).save(folder / "a.png")
    content = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Which?"}]
    row = {
        "id": "a",
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}],
    }
    (folder / "data.jsonl").write_text(json.dumps(row) + "\n")
    return f"data={{sources: [{{kind: messages, path: {folder / 'data.jsonl'}}}]}}"
