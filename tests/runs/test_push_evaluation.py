"""Scores of `vlsi eval` on the card of a push: of exactly the pushed weights, beside the paper's, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from tests.hub_client import vlsi
from tests.hub_server import HubServer
from tests.hub_store import metadata_errors
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.evaluation.identity import identity
from vlsi_cli.engine.evaluation.scores import Result
from vlsi_cli.engine.runs.evaluate import EvaluationReport
from vlsi_cli.engine.runs.evaluation_report import write
from vlsi_cli.engine.runs.push_evaluation import scores_for
from vlsi_cli.events import Warn, ignore

SAID = {"tasks": ["t"], "limit": None}


def evaluation(output: Path, *models: Path, **options: Any) -> Path:
    """What `vlsi eval` writes of these models, by its own writer, with scores made up."""
    results, facts = [], {}
    for number, model in enumerate(models):
        facts[str(model)] = identity(load_backbone(str(model)), None, None) | {"paper": "VLsI-2B"}
        name = str(model)
        results += [
            Result("mmmu", "MMMU (val)", name, 31.25 + number, 900, error=1.544, paper=[51.4], settings=SAID),
            Result("mme", "MME", name, 1234.5, 2374, settings=SAID, paper=[2022.0], metrics={"a,none": 1.0}),
            Result(
                "own",
                "own",
                name,
                0.125,
                8,
                error=0.125,
                settings=SAID | {"limit": 8},
                metrics={"right,none": 1},
            ),
            Result("mmvet", "MM-Vet", name, None, 218, missing="a verdict of prose", settings=SAID),
        ]
    settings = {"harness": "lmms-eval 0.7.3", "decoding": "greedy", "precision": "fp32", "device": "cpu",
                "environment": {}, "models": facts} | options  # fmt: skip
    write(EvaluationReport(output, tuple(results), (), (), settings))
    return output


@pytest.fixture
def other(model: Path, tmp_path: Path) -> Path:
    """The same model with one weight changed."""
    folder = Path(shutil.copytree(model, tmp_path / "other"))
    tensors = load_file(folder / "model.safetensors")
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_scores_are_on_the_card_and_in_its_metadata(
    model: Path, other: Path, hub: HubServer, tmp_path: Path
) -> None:
    folder = evaluation(tmp_path / "eval", other, model)
    done = vlsi("push", model, "--repo", "me/thing", "--license", "mit", "--evaluation", folder)
    assert done.exit_code == 0, done.output
    assert "MM-Vet has no score in" in done.stderr
    text = hub.files("me/thing")["README.md"].decode()
    assert metadata_errors(text) == []
    assert "| MMMU (val) | mmmu_acc, of 100 | 32.2 | 1.54 | 900 | - | 51.4 (VLsI-2B) |" in text
    assert (
        "| MME | mme_perception_score + mme_cognition_score, of 2800 | 1234.5 | - | 2374 | - | 2022 (VLsI-2B) |"
        in text
    )
    assert "| own | right | 0.125 | 0.125 | 8 | first 8 only | - |" in text
    assert "MM-Vet" not in text
    assert "(lmms-eval 0.7.3, greedy decoding, fp32)" in text
    assert str(tmp_path) not in text
    found = {result.dataset_name: result for result in ModelCard(text).data.eval_results}
    mmmu = found["MMMU (val)"]
    assert (mmmu.dataset_type, mmmu.dataset_split, mmmu.metric_type) == (
        "lmms-lab-encoder/MMMU",
        "validation",
        "mmmu_acc",
    )
    assert (mmmu.metric_value, mmmu.metric_args) == (32.25, {"questions": 900, "standard_error": 1.544})
    assert found["MME"].metric_value == 1234.5
    assert found["own"].metric_args["limit"] == 8
    assert {51.4, 2022.0}.isdisjoint(result.metric_value for result in found.values())


def test_scores_of_other_weights_are_refused(
    model: Path, other: Path, hub: HubServer, tmp_path: Path
) -> None:
    folder = evaluation(tmp_path / "eval", other)
    done = vlsi("push", model, "--repo", "me/thing", "--evaluation", folder)
    assert done.exit_code == 4
    assert (
        f"the evaluation in {folder} is of other weights than those of '{model}': it is of 'other'"
        in done.stderr
    )
    assert f"hint: evaluate these: vlsi eval -m {model} -o DIR" in done.stderr
    assert "me/thing" not in hub.repos


def test_scores_of_another_processor_are_refused(model: Path, tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "eval", model)
    settings = json.loads((model / "preprocessor_config.json").read_text("utf-8"))
    (model / "preprocessor_config.json").write_text(
        json.dumps(settings | {"max_pixels": 5000}), encoding="utf-8"
    )
    done = vlsi("push", model, "--repo", "me/thing", "--evaluation", folder, "--dry-run")
    assert done.exit_code == 4
    assert "with another preprocessor_config.json" in done.stderr


def test_what_is_no_evaluation(model: Path, tmp_path: Path) -> None:
    def refused(code: int, said: str, *more: object) -> None:
        done = vlsi("push", model, "--repo", "me/thing", "--dry-run", "--evaluation", tmp_path / "e", *more)
        assert (done.exit_code, done.stdout) == (code, "")
        assert said in done.stderr
        assert done.stderr.count("error: ") == 1

    refused(3, "holds no evaluation: it has no report.json")
    (tmp_path / "e").mkdir()
    for content in ("{", "[]", '{"results": [{"score": 1}], "settings": {"models": {}}}', '{"results": []}'):
        (tmp_path / "e" / "report.json").write_text(content, encoding="utf-8")
        refused(3, "cannot be read")
    evaluation(tmp_path / "e", model)
    refused(4, "two evaluations score", "--evaluation", tmp_path / "e")
    (model / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    refused(2, "--evaluation was given, but")


def test_an_evaluation_in_the_run_folder_is_found(model: Path, other: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "student").mkdir(parents=True)
    (run / "student" / "report.json").write_text("{}", encoding="utf-8")  # somebody else's
    assert scores_for(model, run, (), "run", ignore).benchmarks == ()
    folder = evaluation(run / "eval", model)
    found = scores_for(model, run, (), "run", ignore)
    assert next((mark.name, mark.value) for mark in found.benchmarks) == ("MMMU (val)", 31.25)
    told: list[object] = []
    assert scores_for(other, run, (), "run", told.append).benchmarks == ()
    assert isinstance(told[0], Warn)
    assert "its scores are not on the card: the evaluation in" in told[0].text
    assert scores_for(model, run, (evaluation(tmp_path / "named", model),), "run", ignore) == found
    # an earlier command into the same folder asked for more
    report = json.loads((folder / "report.json").read_text("utf-8"))
    (facts,) = report["settings"]["models"].values()
    place = folder / "models" / "a"
    (place / "ai2d").mkdir(parents=True)
    (place / "model.json").write_text(json.dumps(facts), encoding="utf-8")
    (place / "ai2d" / "result.json").write_text("{}", encoding="utf-8")
    told.clear()
    scores_for(model, run, (), "run", told.append)
    assert "holds answers on ai2d too" in str(told[-1])
