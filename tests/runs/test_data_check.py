"""`vlsi data check`: every record counted as training would use it, with and without workers."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tests.cli.test_json import named
from tests.image_server import HOST, ImageServer, image
from vlsi_cli.app import app
from vlsi_cli.config.data import DataConfig
from vlsi_cli.engine.data import fetching
from vlsi_cli.engine.runs import data_check


def vlsi(*words: object) -> Result:
    return CliRunner().invoke(app, ["data", "check", *map(str, words)], prog_name="vlsi")


def talk(question: str, answer: str | None = "It is red.", **more: Any) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages if answer is not None else messages[:1], **more})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Ten records, of which five can be used."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "red.png").read_bytes()[:60])
    lines = [
        talk("What?"),
        talk("<image>What?", images=["red.png"]),
        talk("<image>What?", images=["none.png"], id="gone"),
        "{broken",
        talk("<image>What?", images=["half.png"]),
        talk("What?", "word " * 3000),
        talk("Is <img>red.png</img> red?"),
        talk("What?", None, id="\ud800"),
        *[talk("What?", "It is red. " * 9)] * 2,
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_counts_are_the_same_with_workers_and_bad_records_are_named(file: Path, tmp_path: Path) -> None:
    reports = []
    for workers in (0, 2):
        bad = tmp_path / f"bad-{workers}.jsonl"
        done = vlsi(file, "--workers", workers, "--bad", bad, "--json")
        assert done.exit_code == 0, done.output
        assert done.stderr.endswith("5 of 10 records cannot be used; the report says why\n")
        reports.append(json.loads(done.stdout))
        assert reports[-1].pop("workers") == workers
        assert reports[-1].pop("bad") == str(bad)
        reports[-1].pop("seconds")
    report, (source,) = reports[0], reports[0]["sources"]
    assert reports[1] == report
    assert (report["records"], report["usable"], report["unusable"], report["complete"]) == (10, 5, 5, True)
    assert (source["holds"], source["with_images"], source["written_images"]) == (10, 1, 1)
    reasons = {"image-missing", "broken-json", "image-damaged", "too-long", "no-response"}
    assert {reason: each["count"] for reason, each in source["reasons"].items()} == dict.fromkeys(reasons, 1)
    assert source["reasons"]["image-missing"]["examples"] == [
        {"record": "gone", "where": f"{file}:3", "detail": "none.png"}
    ]
    assert "image_root" in source["reasons"]["image-missing"]["hint"]
    told = [json.loads(line) for line in (tmp_path / "bad-2.jsonl").read_text().splitlines()]
    assert (tmp_path / "bad-0.jsonl").read_text() == (tmp_path / "bad-2.jsonl").read_text()
    assert [each["index"] for each in told] == [2, 3, 4, 5, 7]
    assert [each["where"] for each in told] == [f"{file}:{line}" for line in (3, 4, 5, 6, 8)]
    assert {each["reason"] for each in told} == reasons
    # as one record after the other is shown by `vlsi data preview`
    shown = []
    for index in (0, 1, 6, 8, 9):
        done = CliRunner().invoke(app, ["data", "preview", str(file), "--index", str(index), "--json"])
        shown.append(json.loads(done.stdout))
    lengths = sorted(each["tokens"] for each in shown)
    assert source["tokens"] == {"min": lengths[0], "median": lengths[2], "p95": lengths[4], "max": lengths[4]}
    assert source["image_tokens"]["max"] == source["image_tokens"]["min"] == shown[1]["image_tokens"]
    trained = sorted(each["trained_tokens"] for each in shown)
    assert (source["trained_tokens"]["min"], source["trained_tokens"]["max"]) == (trained[0], trained[-1])


def test_the_page_names_what_is_printed() -> None:
    report = json.loads(vlsi("patterns", "--limit", 3, "--json").stdout)
    assert set(report) == named("`vlsi data check`")
    assert set(report["sources"][0]) == named("SourceCheck")
    assert (report["records"], report["sources"][0]["holds"]) == (3, None)


def test_exit_codes(file: Path, tmp_path: Path) -> None:
    done = vlsi(file)
    assert done.exit_code == 0
    assert "image-missing: gone in " in done.stdout
    assert "5 of 10 records can be used, as demo/small sees them in at most 2,048 tokens" in done.stdout
    assert "note: the text of 1 record holds <img>...</img>" in done.stdout
    assert vlsi(file, "--strict").exit_code == 3
    assert vlsi(file, "--set", "data.on_bad_record=refuse").exit_code == 3
    assert vlsi(file, "--strict", "--limit", 2).exit_code == 0
    assert vlsi(file, "--set", "data.max_length=8").exit_code == 3  # none is left
    kept = file.read_text()
    done = vlsi(file, "--bad", file, "--overwrite")
    assert done.exit_code == 6
    assert "is itself one of the data" in done.stderr
    assert file.read_text() == kept
    (tmp_path / "bad.jsonl").touch()
    assert "already exists" in vlsi(file, "--bad", tmp_path / "bad.jsonl").stderr
    assert vlsi(file, "--bad", tmp_path / "bad.jsonl", "--overwrite").exit_code == 0
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 5


def test_data_without_an_end_need_a_limit(file: Path) -> None:
    done = vlsi(file, "--data", "patterns")
    assert done.exit_code == 2
    assert "has no end: say how many of its records are to be read\nhint: --limit" in done.stderr
    streamed = {"kind": "huggingface", "id": str(file), "streaming": True}
    words = ("--recipe", "demo", "--set", f"data.sources=[{json.dumps(streamed)}]")
    done = vlsi(*words)
    assert done.exit_code == 2
    assert "is streamed, and how long it is not known" in done.stderr
    done = vlsi()
    assert done.exit_code == 2
    assert "no data are given" in done.stderr


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_with_what_was_counted(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str, code: int
) -> None:
    told = data_check._Progress.__call__

    def stop(progress: Any) -> None:
        told(progress)
        if progress._done == 4:
            signal.raise_signal(signal.Signals[number])

    monkeypatch.setattr(data_check._Progress, "__call__", stop)
    done = vlsi(file, "--workers", 0, "--bad", tmp_path / "bad.jsonl", "--json")
    assert done.exit_code == code
    report = json.loads(done.stdout)
    assert (report["complete"], report["stopped_by"]) == (False, number)
    assert (report["records"], report["unusable"]) == (4, 2)
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 2
    assert not list(tmp_path.glob(".*"))


def test_a_recipe_has_its_held_out_data_checked_too(file: Path, tmp_path: Path) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text("\n".join([talk("What?"), talk("What?", "It is red. " * 9)]) + "\n")
    recipe = tmp_path / "mine.yaml"

    def written(max_length: int) -> None:
        recipe.write_text(
            json.dumps({
                "teacher": {"id": "demo/large"},
                "student": {"id": "demo/small"},
                "data": {"sources": [{"kind": "messages", "path": str(file)}]},
                "evaluation": {
                    "data": {
                        "sources": [{"kind": "messages", "path": str(held)}],
                        "max_length": max_length,
                    },
                },
            })
        )  # fmt: skip

    written(40)
    done = vlsi("--recipe", recipe, "--bad", tmp_path / "bad.jsonl", "--json")
    assert done.exit_code == 0, done.output
    train, other = json.loads(done.stdout)["sources"]
    assert (train["held_out"], train["records"], train["usable"]) == (False, 10, 5)
    assert (other["held_out"], other["records"], other["usable"]) == (True, 2, 1)
    assert [each["max_length"] for each in (train, other)] == [2048, 40]
    bad = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [each["source"] for each in bad] == [str(file)] * 5 + [str(held)]
    written(8)
    done = vlsi("--recipe", recipe)
    assert done.exit_code == 3  # a run could not use any of them
    assert f"1: {held}, held out" in done.stdout
    assert "in at most 2,048 tokens, 8 of the held-out data; read in" in done.stdout
    assert vlsi(file, "--model", "demo/small", "--json").exit_code == 0


def test_images_behind_addresses_are_fetched(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("red.png", "nonsense.png", "none.png")
    lines = [talk("<image>What?", images=[f"http://{HOST}/{name}"]) for name in names]
    file.write_text("\n".join(lines) + "\n")
    with ImageServer() as server:
        monkeypatch.setattr(fetching, "WORLD", server.network())
        server.pages |= {"/red.png": image("red"), "/nonsense.png": b"nonsense"}
        data = DataConfig.model_validate({
            "sources": [{"kind": "messages", "path": file}],
            "image_urls": {"fetch": True, "folder": tmp_path / "kept"},
        })  # fmt: skip
        source = data_check.run(data, model="demo/small", workers=0).sources[0]
    assert (source.usable, source.with_images) == (1, 1)
    assert {name: each.count for name, each in source.reasons.items()} == {
        "image-unreadable": 1, "image-not-fetched": 1,
    }  # fmt: skip


def test_streamed_data_are_read_to_their_end(file: Path) -> None:
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1], lines[2]]) + "\n")
    streamed = {"kind": "huggingface", "id": str(file), "streaming": True}
    data = DataConfig.model_validate({"sources": [streamed]})
    for limit, records in ((2, 2), (100, 3)):
        report = data_check.run(data, model="demo/small", workers=0, limit=limit)
        assert (report.records, report.usable, report.complete) == (records, 2, True)
        assert report.sources[0].holds is None
