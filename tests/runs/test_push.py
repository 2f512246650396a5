"""`vlsi push` and `vlsi distill --push` on a real run, to a hub over HTTP, and back by plain transformers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from tests.hub_client import vlsi
from tests.hub_server import HubServer
from tests.runs.conftest import short
from vlsi_cli.engine.backbones import load
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.reports.heatmap import draw_matches
from vlsi_cli.engine.runs import push
from vlsi_cli.engine.runs.distill import run
from vlsi_cli.events import ignore

# ---------------------------------------------------------------- there and back

LOAD = """
import json, sys, torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForImageTextToText, AutoTokenizer
model, info = AutoModelForImageTextToText.from_pretrained("me/thing", output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained("me/thing")
ids = tokenizer("A red circle", return_tensors="pt")["input_ids"]
total = model.eval()(input_ids=ids).logits.double().sum().item()
odd = [sorted(map(str, info[k])) for k in ("missing_keys", "unexpected_keys")]
assert not any(name.startswith("vlsi") for name in sys.modules)
print(json.dumps({"total": total, "ids": ids.tolist(), "odd": odd, "folder": snapshot_download("me/thing")}))
"""


def test_a_run_is_pushed_and_plain_transformers_loads_it(whole: Path, hub: HubServer, tmp_path: Path) -> None:
    done = vlsi("-v", "push", whole, "--repo", "me/thing", "--with-verbalizers", "--with-metrics", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["url"], report["changed"]) == (f"{hub.url}/me/thing", True)
    held = hub.files("me/thing")
    assert {file["path"] for file in report["files"]} == held.keys() - {".gitattributes"}
    for file in (whole / "student").iterdir():
        assert held[file.name] == file.read_bytes()
    for name in ("large", "small", "small-after"):
        place = f"verbalizers/{name}/verbalizers.safetensors"
        assert held[place] == (whole / place).read_bytes()
    assert held["training/metrics.jsonl"] == (whole / "metrics.jsonl").read_bytes()
    everything = b"".join(held.values()) + done.output.encode()
    assert hub.token.encode() not in everything
    assert str(whole.parent).encode() not in b"".join(held.values())  # no path of this machine

    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", LOAD]
    read = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment)
    assert read.returncode == 0, read.stderr
    said = json.loads(read.stdout.splitlines()[-1])
    assert said["odd"] == [[], []]
    for name, content in held.items():
        assert (Path(said["folder"]) / name).read_bytes() == content

    from vlsi_cli.engine.backbones.load import load_backbone

    ours = load_backbone(str(whole / "student"))
    with torch.no_grad():
        logits = ours.model(input_ids=torch.tensor(said["ids"])).logits
    assert logits.double().sum().item() == said["total"]


def test_the_card_of_a_run(whole: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    named: dict[str, str] = {}

    def draw(*place: object, small: str, large: str, title: str) -> None:
        named.update(small=small, large=large)
        draw_matches(*place, small=small, large=large, title=title)  # type: ignore[arg-type]

    monkeypatch.setattr("vlsi_cli.engine.runs.push.draw_matches", draw)
    done = vlsi("push", whole / "student", "--repo", "me/thing")  # the student's folder means its run
    assert done.exit_code == 0, done.output
    assert "the card names no licence" in done.stderr  # the tiny pair states none
    text = hub.files("me/thing")["README.md"].decode()
    data = ModelCard(text).data
    assert data.base_model is None  # a folder of this machine is no id of the hub
    scores = json.loads((whole / "progress.json").read_text("utf-8"))["scores"]
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    assert values["accuracy"] == pytest.approx(scores["small after"]["accuracy"], abs=1e-6)
    assert values["loss"] == pytest.approx(scores["small after"]["loss"], abs=1e-6)
    assert "began from the shipped recipe `demo`" in text
    assert "| small | `small` | 4 | 32 |" in text
    assert "| large | `large` | 6 | 64 |" in text
    assert (
        "| interaction | small model | 5 | 4 | loss kld between layers and kld at the last; matching multinomial"
        in text
    )
    assert hub.files("me/thing")["matched-layers.png"].startswith(b"\x89PNG")
    assert named == {"small": "small", "large": "large"}  # not the paths of their folders
    assert "vlsi distill --recipe training/recipe.yaml\n" in text
    recipe = yaml.safe_load(hub.files("me/thing")["training/recipe.yaml"])
    assert (recipe["student"]["id"], recipe["interaction"]["steps"]) == ("small", 5)


def test_the_records_of_a_step_are_those_of_all_processes(whole: Path, tmp_path: Path) -> None:
    begun = shutil.copytree(whole, tmp_path / "begun")
    progress = begun / "progress.json"
    progress.write_text(json.dumps(json.loads(progress.read_text("utf-8")) | {"processes": 2}))
    origins = (
        begun / "origins.json"
    )  # of a run from a file of one's own, which readers of the card do not have
    origins.write_text(origins.read_text("utf-8").replace('"recipe demo"', '"recipe demo.yaml"'))
    done = vlsi("push", begun, "--repo", "me/thing", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "| interaction | small model | 5 | 8 |" in done.stdout
    assert "vlsi distill --recipe training/recipe.yaml --processes 2\n" in done.stdout
    assert "shipped recipe" not in done.stdout


def test_pushing_again_changes_nothing(whole: Path, hub: HubServer) -> None:
    assert "sent: " in vlsi("push", whole, "--repo", "me/thing", "--private").stdout
    assert hub.repos["me/thing"].private
    assert "already there: " in vlsi("push", whole, "--repo", "me/thing").stdout


def test_a_model_that_no_run_made_keeps_its_own_card(model: Path, hub: HubServer) -> None:
    assert vlsi("push", model, "--repo", "me/a", "--license", "mit").exit_code == 0
    assert ModelCard(hub.files("me/a")["README.md"].decode()).data.license == "mit"
    (model / "README.md").write_text("---\nlicense: mit\n---\n\n# mine\n", encoding="utf-8")
    assert "has a card of its own" in vlsi("push", model, "--repo", "me/b", "--license", "mit").stderr
    assert vlsi("push", model, "--repo", "me/b").exit_code == 0
    assert hub.files("me/b")["README.md"] == (model / "README.md").read_bytes()


def test_a_model_is_tried_in_the_precision_of_its_text_model(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published configs, and so those of students, may have it there alone."""
    config = json.loads((model / "config.json").read_text())
    del config["dtype"]
    config["text_config"]["dtype"] = "bfloat16"
    (model / "config.json").write_text(json.dumps(config))
    asked: list[torch.dtype] = []

    def noting(id: str, dtype: torch.dtype) -> Backbone:
        asked.append(dtype)
        return load_backbone(id, dtype=dtype)

    monkeypatch.setattr(load, "load_backbone", noting)
    push._load(model, "model")
    assert asked == [torch.bfloat16]


def test_a_dry_run_needs_no_hub_and_no_token(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: HubServer
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    done = vlsi("push", whole, "--repo", "me/thing", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "nothing was sent" in done.stdout
    assert "model.safetensors" in done.stdout
    assert "# thing" in done.stdout
    report = json.loads(vlsi("push", whole, "--repo", "me/thing", "--dry-run", "--json").stdout)
    assert (report["dry_run"], report["url"]) == (True, None)
    assert report["size"] == sum(file["size"] for file in report["files"])
    assert not hub.requests
    assert not [path for path in tmp_path.iterdir() if path.name != "cache"]


def test_exported_graphs_travel_as_whole_folders(whole: Path, hub: HubServer, tmp_path: Path) -> None:
    graphs = tmp_path / "int8"
    (graphs / "onnx").mkdir(parents=True)
    (graphs / "onnx" / "decoder.onnx").write_bytes(b"graph")
    (graphs / "config.json").write_text("{}", encoding="utf-8")
    done = vlsi("push", whole, "--repo", "me/thing", "--with-onnx", graphs)
    assert (done.exit_code, "holds no checked export" in done.stderr) == (4, True)
    (graphs / "export_report.json").write_text(
        json.dumps({"model": str(tmp_path / "student")}), encoding="utf-8"
    )
    assert vlsi("push", whole, "--repo", "me/thing", "--with-onnx", graphs).exit_code == 0
    held = hub.files("me/thing")
    assert held["onnx/int8/onnx/decoder.onnx"] == b"graph"
    assert json.loads(held["onnx/int8/export_report.json"]) == {"model": "student"}
    assert b"onnx/int8" in held["README.md"]


# ---------------------------------------------------------------- at the end of a run


def test_distill_pushes_when_it_is_finished(whole: Path, hub: HubServer) -> None:
    done = vlsi("distill", "--resume", whole, "--push", "me/thing", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["push"]["url"] == f"{hub.url}/me/thing"
    assert (
        hub.files("me/thing")["model.safetensors"] == (whole / "student" / "model.safetensors").read_bytes()
    )


def test_a_push_that_fails_after_the_run_loses_nothing(whole: Path, hub: HubServer) -> None:
    hub.fail("/commit/", 500)
    done = vlsi("distill", "--resume", whole, "--push", "me/thing")
    assert done.exit_code == 9
    assert f"student: {whole / 'student'}" in done.stdout
    assert f"hint: the run is complete in {whole}, and only the push failed" in done.stderr
    assert f"hint: repeat it with: vlsi push {whole} --repo me/thing" in done.stderr


@pytest.mark.parametrize(
    ("repo", "code", "said"),
    [
        ("thing", 2, "it must be owner/name"),
        ("them/thing", 9, "may not write"),
        ("me/thing", 9, "can only read"),
    ],
)
def test_distill_asks_the_hub_before_it_trains(
    hub: HubServer, tmp_path: Path, pair: tuple[Path, Path], repo: str, code: int, said: str
) -> None:
    if repo == "me/thing":
        hub.who["auth"]["accessToken"]["role"] = "read"
    done = vlsi("distill", "--recipe", "demo", "--output", tmp_path / "run", "--push", repo)
    assert done.exit_code == code
    assert said in done.stderr
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- what was pushed is used again


def test_what_was_pushed_teaches_and_is_taught(
    whole: Path, pair: tuple[Path, Path], hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert vlsi("push", pair[0], "--repo", "me/large").exit_code == 0
    assert vlsi("push", whole, "--repo", "me/small", "--with-verbalizers").exit_code == 0
    sets = ["teacher.verbalizers=me/small", "evaluation.data=null", "reinforcement=null"]
    sets += [f"{stage}.steps=1" for stage in ("verbalization", "interaction")]
    planned = vlsi("distill", "--recipe", "demo", "--teacher", "me/large", "--student", "me/small",
                   *(word for text in sets for word in ("--set", text)), "--dry-run")  # fmt: skip
    assert "hf download me/small --include 'verbalizers/large/*'" in planned.stdout
    resolved = short((Path("me/large"), Path("me/small")), *sets)
    report = run(resolved, output=tmp_path / "run", events=ignore)
    assert [(stage.stage, stage.side) for stage in report.stages] == [
        ("verbalization", "small"),
        ("interaction", "small"),
    ]
    fetched = {path.name for path in (tmp_path / "cache").glob("models--me--small/snapshots/*/*")}
    assert "training" not in fetched
    assert not list((tmp_path / "cache").glob("models--me--small/snapshots/*/verbalizers/small*"))

    # and again without a network, from the cache that this left
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    run(resolved, output=tmp_path / "run2", events=ignore)
    assert not hub.requests
    ours, theirs = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("run", "run2"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture
def pushed(whole: Path, pair: tuple[Path, Path], hub: HubServer) -> HubServer:
    """The pair on the hub: the large model, and the run's student with every set of verbalizers."""
    assert vlsi("push", pair[0], "--repo", "me/large").exit_code == 0
    assert vlsi("push", whole, "--repo", "me/small", "--with-verbalizers").exit_code == 0
    return hub


def test_layers_are_read_through_what_was_pushed(
    whole: Path, pair: tuple[Path, Path], pushed: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*words: object) -> Any:
        done = vlsi("verbalize", "--puzzle", 0, "--max-new-tokens", 4, "--json", *words)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    words = ("--model", "me/small", "--compare", "me/large", "--verbalizers", "me/small")
    report = read(*words)
    sets = [model["verbalizers"] for model in report["models"]]
    assert sets == ["me/small/verbalizers/small-after", "me/small/verbalizers/large"]
    assert [model["later_head"] for model in report["models"]] == [True, False]
    here = read("--model", whole, "--compare", pair[0])
    assert report["pictures"][0]["answers"] == here["pictures"][0]["answers"]

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pushed.requests.clear()
    assert read(*words) == report, "without a network, from the cache"
    assert not pushed.requests

    refused = vlsi("verbalize", "--model", "demo/small", "--verbalizers", "me/small", "--max-new-tokens", 1)
    assert refused.exit_code == 7
    assert "the verbalizers in me/small were trained on" in refused.stderr


def test_layers_are_matched_through_what_was_pushed(pushed: HubServer) -> None:
    words = ["--recipe", "demo", "--teacher", "me/large", "--student", "me/small", "--samples", 4, "--json"]
    sets = [word for side in ("teacher", "student") for word in (f"--{side}-verbalizers", "me/small")]
    done = vlsi("match-layers", *words, *sets)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["large"]["reading"] == report["small"]["reading"] == "verbalizers me/small"
    assert (report["large"]["layers"], report["small"]["layers"]) == ([1, 2, 3, 4, 5], [1, 2, 3])
    assert "step 3 has trained the small model's head on" in done.stderr
    lens = json.loads(vlsi("match-layers", *words, *sets[:2], "--set", "student.targets.stride=1").stdout)
    assert lens["survey"]["divergence"] != report["survey"]["divergence"]


def test_verbalizers_that_were_not_pushed(pair: tuple[Path, Path], hub: HubServer) -> None:
    assert vlsi("push", pair[0], "--repo", "me/large").exit_code == 0
    for words in (
        ("verbalize", "--model", "me/large", "--verbalizers", "me/large"),
        ("match-layers", "--recipe", "demo", "--student-verbalizers", "me/large"),
    ):
        done = vlsi(*words)
        assert done.exit_code == 4, done.output
        assert "'me/large' was pushed without verbalizers" in done.stderr
        assert done.stderr.count("error: ") == 1
