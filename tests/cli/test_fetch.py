"""`vlsi data fetch`: images fetched before a run, by the rules of the run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.image_server import HOST, ImageServer, image, says
from vlsi_cli.app import app
from vlsi_cli.engine.data import fetching


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ImageServer]:
    with ImageServer() as running:
        monkeypatch.setattr(fetching, "WORLD", running.network())
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        running.pages |= {f"/{number}.png": image(size=(16 + number, 24)) for number in range(8)}
        yield running


def vlsi(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="vlsi")


def data_file(folder: Path, addresses: list[str]) -> Path:
    rows = [
        {
            "image": address,
            "conversations": [
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": "It is red."},
            ],
        }
        for address in addresses
    ]
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no JSON\n")
    return file


def fetched(*words: object) -> dict[str, Any]:
    done = vlsi("data", "fetch", *words, "--json")
    report = json.loads(done.stdout)
    assert done.exit_code == (3 if report["failed"] else 0), done.output
    return report


def test_a_run_finds_what_was_fetched(server: ImageServer, tmp_path: Path) -> None:
    (tmp_path / "local.png").write_bytes(image())
    names = [f"http://{HOST}/{number}.png" for number in range(8)]
    others = ["local.png", names[0], f"http://{HOST}/gone", "http://127.0.0.1/x", "ftp://x/y"]
    file = data_file(tmp_path, names + others)
    server.pages["/5.png"] = says(status=503)
    limits = ("--set", "data.image_urls.tries=1")
    report = fetched(file, *limits)
    assert (report["records"], report["unusable"], report["addresses"]) == (14, 1, 11)
    assert (report["fetched"], report["kept"]) == (7, 0)
    assert report["failed"] == {"image-not-fetched": 2, "image-address": 2}
    assert sorted(report["examples"]["image-not-fetched"]) == [
        f"http://{HOST}/5.png: its host answers 503",
        f"http://{HOST}/gone: its host answers 404",
    ]
    assert report["folders"] == [str(tmp_path / "cache" / "vlsi" / "images")]

    server.pages["/5.png"] = image()
    asked = len(server.asked)
    assert fetched(file, *limits)["kept"] == 7
    assert len(server.asked) == asked  # nothing is asked twice
    report = fetched(file, *limits, "--again")
    assert (report["fetched"], report["kept"], report["failed"]["image-not-fetched"]) == (1, 7, 1)

    server.pages.clear()
    words = ("--data", file, *limits, "--set", "data.image_urls.fetch=true", "--json")
    for index in range(8):
        assert vlsi("data", "preview", *words, "--index", index).exit_code == 0
    done = vlsi("data", "fetch", file, *limits)
    assert done.exit_code == 3
    assert "there before" in done.stdout
    assert "14 records read, 1 of them unusable; images are kept in" in done.stdout
    assert done.stderr.endswith("warning: 3 of 11 images are not there; the report says why\n")


def test_a_network_that_is_gone_ends_it(server: ImageServer, tmp_path: Path) -> None:
    server.names.clear()
    file = data_file(tmp_path, [f"http://{HOST}/{number}.png" for number in range(60)])
    done = vlsi("data", "fetch", file, "--threads", 4)
    assert done.exit_code == 3
    assert "images in a row could not be fetched" in done.stderr
    left = [path for path in (tmp_path / "cache").rglob("failed/*/*") if path.is_file()]
    assert len(left) < 20, "they are not held to have failed"


def test_held_out_data_of_a_recipe_come_along(server: ImageServer, tmp_path: Path) -> None:
    file = data_file(tmp_path, [f"http://{HOST}/1.png"])
    (tmp_path / "more").mkdir()
    more = data_file(tmp_path / "more", [f"http://{HOST}/2.png"])
    recipe = tmp_path / "mine.yaml"
    urls = {"fetch": True, "folder": str(tmp_path / "kept")}
    sources = [[{"kind": "llava", "path": str(path)}, {"kind": "patterns"}] for path in (file, more)]
    recipe.write_text(
        json.dumps(
            {
                "teacher": {"id": "demo/large"},
                "student": {"id": "demo/small"},
                "data": {"sources": sources[0], "image_urls": urls},
                "evaluation": {"data": {"sources": sources[1]}, "samples": 1},
                **{stage: {"steps": 1} for stage in ("verbalization", "interaction", "reinforcement")},
            }
        )
    )
    report = fetched("--recipe", recipe)
    assert (report["fetched"], report["records"]) == (2, 4)
    assert report["folders"] == [str(tmp_path / "kept"), str(tmp_path / "cache" / "vlsi" / "images")]


def test_nothing_to_fetch(tmp_path: Path) -> None:
    done = vlsi("data", "fetch")
    assert done.exit_code == 2
    assert "no data are given" in done.stderr
    done = vlsi("data", "fetch", tmp_path / "none.jsonl")
    assert done.exit_code == 3
