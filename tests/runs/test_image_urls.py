"""Distillation on images behind addresses: caches of the large model, and runs gone on with when the hosts are gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image_server import HOST, ImageServer, image
from tests.runs.cachekit import Pair, build, cached, same_weights
from tests.runs.conftest import short
from vlsi_cli import events
from vlsi_cli.config.loading import load_saved
from vlsi_cli.engine.data import fetching
from vlsi_cli.engine.runs.distill import run
from vlsi_cli.errors import CheckpointError

COLOURS = ("red", "blue", "green", "yellow")


class Broken(Exception):
    """Ends a run in the middle."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageServer]:
    with ImageServer() as running:
        monkeypatch.setattr(fetching, "WORLD", running.network())
        running.pages |= {f"/{number}.png": image(colour) for number, colour in enumerate(COLOURS)}
        yield running


def data(folder: Path, kept: str) -> str:
    """Four records with pictures behind addresses, as an override of the data."""
    rows = [
        {
            "id": f"r{number}",
            "messages": [
                {"role": "user", "content": [
                    {"type": "image_url", "image_url": {"url": f"http://{HOST}/{number}.png"}},
                    {"type": "text", "text": "Which?"},
                ]},
                {"role": "assistant", "content": "red"},
            ],
        }
        for number in range(len(COLOURS))
    ]  # fmt: skip
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = f"sources: [{{kind: messages, path: {folder / 'data.jsonl'}}}]"
    return f"data={{{sources}, image_urls: {{fetch: true, folder: {folder / kept}}}}}"


def test_a_cache_of_the_large_model_knows_images_by_their_pixels(
    server: ImageServer, pair: Pair, live: Path, tmp_path: Path
) -> None:
    sets = ("reinforcement=null", "interaction.steps=2")
    build(pair, live, tmp_path / "cache", data(tmp_path, "kept"), *sets)
    assert len(server.asked) == len(COLOURS)
    server.pages |= {f"/{number}.png": image("black") for number in range(len(COLOURS))}
    cached(pair, tmp_path / "cache", tmp_path / "run", data(tmp_path, "kept"), *sets)
    assert len(server.asked) == len(COLOURS), "what is kept is not asked for again"
    with pytest.raises(CheckpointError, match=r"record 'r\d' is not in the teacher cache .+ other pixels"):
        cached(pair, tmp_path / "cache", tmp_path / "other", data(tmp_path, "empty"), *sets)


def test_a_run_goes_on_when_the_hosts_are_gone(server: ImageServer, pair: Pair, tmp_path: Path) -> None:
    words = (
        *("teacher=null", "verbalization=null", "interaction=null", "evaluation.data=null"),
        *("reinforcement.steps=6", "checkpoint_every=1", data(tmp_path, "kept")),
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(short(pair, *words), output=whole, events=events.ignore)

    def stop(event: events.Event) -> None:
        if isinstance(event, events.StepDone) and event.step == 4:
            raise Broken

    with pytest.raises(Broken):
        run(short(pair, *words), output=broken, events=stop)
    server.pages.clear()
    server.names.clear()
    run(load_saved(broken), output=broken, events=events.ignore, resume=True)
    assert same_weights(whole, broken)
    assert len(server.asked) == len(COLOURS)
