"""A tiny pair on disk and a short configuration: real runs in seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_client import use_hub
from tests.hub_server import HubServer
from tests.pairs import tiny_pair
from vlsi_cli.config.loading import Resolved, resolve
from vlsi_cli.engine.runs.distill import run
from vlsi_cli.events import ignore

SHORT = (
    "teacher.targets.stride=1",
    "student.targets.stride=1",
    "verbalization.steps=4",
    "verbalization.batch_size=4",
    "interaction.steps=5",
    "interaction.batch_size=2",
    "interaction.gradient_accumulation=2",
    "reinforcement.steps=5",
    "reinforcement.batch_size=4",
    "data.sources.0.turns=3",
    "evaluation.samples=6",
    "evaluation.max_new_tokens=16",
    "evaluation.batch_size=4",
    "checkpoint_every=2",
)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_pair(tmp_path_factory.mktemp("pair"))


def short(pair: tuple[Path, Path], *sets: str) -> Resolved:
    """The demo recipe on the tiny pair, some steps a stage."""
    large, small = pair
    return resolve("demo", [f"teacher.id={large}", f"student.id={small}", *SHORT, *sets])


@pytest.fixture(scope="session")
def whole(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run."""
    output = tmp_path_factory.mktemp("whole") / "run"
    run(short(pair), output=output, events=ignore)
    return output


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub on this machine, which this process talks to; the working folder is a scratch folder."""
    with HubServer(lfs_from=10_000) as server:
        use_hub(server, monkeypatch, tmp_path / "cache")
        monkeypatch.chdir(tmp_path)
        yield server


@pytest.fixture
def model(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be spoiled."""
    return Path(shutil.copytree(pair[1], tmp_path / "model"))


@pytest.fixture(scope="session")
def live(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run beside the live large model, on twelve records and one at a time."""
    from tests.runs.cachekit import ONE

    output = tmp_path_factory.mktemp("live") / "run"
    run(short(pair, *ONE), output=output, events=ignore)
    return output


@pytest.fixture(scope="session")
def cache(pair: tuple[Path, Path], live: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that the run ``live`` would have read."""
    from tests.runs.cachekit import build

    path = tmp_path_factory.mktemp("cache") / "cache"
    report = build(pair, live, path)
    assert report.complete
    assert report.records == 12
    assert report.shards > 3
    return path


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    """The cache, to be damaged."""
    return Path(shutil.copytree(cache, tmp_path / "copy"))
