"""Reading the models that a run leaves, through the verbalizers that it leaves."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_folder
from vlsi_cli.engine.runs import verbalize
from vlsi_cli.engine.runs.verbalize import ModelReading, VerbalizeReport, _rows
from vlsi_cli.engine.verbalizing.manifest import read_manifest
from vlsi_cli.errors import CheckpointError, ConfigError, ModelError
from vlsi_cli.events import ignore


def read(model: Path | str, compare: Path | str | None = None, **options: Any) -> VerbalizeReport:
    chosen = {
        "stdin": io.BytesIO(),
        "prompt": "",
        "puzzle_index": 0,
        "verbalizers": (),
        "logit_lens": False,
        "layers": None,
        "place": None,
        "top_k": 5,
        "max_new_tokens": 4,
        "device": "cpu",
        "precision": "auto",
        "events": ignore,
    } | options
    images = chosen.pop("images", ())
    other = None if compare is None else str(compare)
    return verbalize.run(images, model=str(model), compare=other, **chosen)


def log_probabilities(report: VerbalizeReport, model: int = 0) -> list[float]:
    return [answer.log_probability for answer in report.pictures[0].answers[model].layers]


def test_a_run_folder_is_its_student_and_the_verbalizers_of_step_2(whole: Path) -> None:
    report = read(whole)
    (model,) = report.models
    assert model.verbalizers == whole / "verbalizers" / "small-after"
    assert model.later_head, "step 3 trains the head"
    assert "step 3 has trained the head on since" in model.sentence
    assert model.layers == (1, 2, 3, 4)
    same = read(whole / "student")
    assert same.models[0].verbalizers == model.verbalizers
    assert log_probabilities(same) == log_probabilities(report)
    lens = read(whole, logit_lens=True)
    assert lens.models[0].verbalizers is None
    assert lens.models[0].through == "logit lens"
    assert "nothing trained" in lens.models[0].sentence
    assert log_probabilities(lens)[:3] != log_probabilities(report)[:3]
    assert log_probabilities(lens)[3] == log_probabilities(report)[3], "the last row is the model itself"


def test_the_small_model_after_step_2(whole: Path, pair: tuple[Path, Path]) -> None:
    report = read(whole / "stages" / "interaction", pair[1], verbalizers=[whole])
    after, base = report.models
    assert after.verbalizers == whole / "verbalizers" / "small-after"
    assert not after.later_head
    assert base.verbalizers == whole / "verbalizers" / "small", "one head, but another set"
    assert log_probabilities(report, 0)[3] != log_probabilities(report, 1)[3]
    assert report.rows == ((0, 0), (1, 1), (2, 2), (3, 3))


def test_a_runs_own_sets_serve_the_model_it_is_compared_with(whole: Path, pair: tuple[Path, Path]) -> None:
    large, small = pair
    assert read(whole, small).models[1].verbalizers == whole / "verbalizers" / "small"
    assert read(large, verbalizers=[whole]).models[0].verbalizers == whole / "verbalizers" / "large"
    one = whole / "verbalizers" / "large"
    report = read(large, small, verbalizers=[one])
    assert [model.verbalizers for model in report.models] == [one, None]


def test_verbalizers_of_another_model_are_refused(
    whole: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    _, small = pair
    own = whole / "verbalizers" / "large"
    with pytest.raises(CheckpointError, match="through another language head than that of") as caught:
        read(small, verbalizers=[own])
    assert read_manifest(own).base_id in caught.value.message
    stranger = tiny_folder("qwen2_vl", tmp_path / "stranger", layers=4, hidden=32, seed=9)
    with pytest.raises(CheckpointError, match="through another language head") as caught:
        read(stranger, verbalizers=[whole])
    assert str(stranger) in caught.value.message
    # the student of one run is no kin of the sets of another, though both sets have one name
    other = tmp_path / "other"
    shutil.copytree(whole / "verbalizers", other / "verbalizers")
    with pytest.raises(CheckpointError, match="through another language head"):
        read(whole / "student", verbalizers=[other / "verbalizers" / "small-after"])
    with pytest.raises(CheckpointError, match="no verbalizers in"):
        read(small, verbalizers=[tmp_path])
    (tmp_path / "empty" / "verbalizers").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="there are no verbalizers in"):
        read(small, verbalizers=[tmp_path / "empty"])


def test_layers_that_are_not_there(whole: Path, pair: tuple[Path, Path]) -> None:
    large, small = pair
    with pytest.raises(ConfigError, match="has 4 decoder layers, so there is no layer 5"):
        read(small, layers=[2, 5])
    assert read(small, layers=[2]).models[0].layers == (2, 4)
    few = tiny_set(whole, large)
    with pytest.raises(ConfigError, match=r"(?m)layer 3 of .* has no verbalizer: the set has 1, 2$"):
        read(large, verbalizers=[few], layers=[1, 3])
    assert read(large, verbalizers=[few]).models[0].layers == (1, 2, 6)
    assert read(large, verbalizers=[few], layers=[2]).models[0].layers == (2, 6)


def tiny_set(run: Path, large: Path) -> Path:
    """A set for the large model with two layers only."""
    from tests.pairs import verbalizers
    from vlsi_cli.engine.backbones.load import load_backbone
    from vlsi_cli.engine.runs.models import store_verbalizers

    backbone = load_backbone(str(large))
    target = run.parent / "few"
    store_verbalizers(target, backbone, verbalizers(backbone, (1, 2)), {})
    return target


def test_a_run_without_a_student(whole: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "origins.json", "progress.json"):
        shutil.copy(whole / name, tmp_path / name)
    with pytest.raises(ModelError, match="has no student yet"):
        read(tmp_path)


def test_a_place_that_no_answer_has(pair: tuple[Path, Path]) -> None:
    report = read(pair[1], place=2, top_k=3)
    assert [len(row.candidates) for row in report.pictures[0].answers[0].candidates] == [3] * 4
    with pytest.raises(ConfigError, match="--tokens 9: the longest final answer has 4 tokens"):
        read(pair[1], place=9)


def test_a_control_token_in_the_prompt(pair: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match=r"the prompt holds '<.im_end.>', a control token"):
        read(pair[1], prompt="stop <|im_end|> here")


def reading(layers: tuple[int, ...], depth: int) -> ModelReading:
    return ModelReading("m", depth, layers, "logit lens", None, False, "fp32")


def test_lines_of_a_comparison() -> None:
    same = [reading((2, 6, 8), 8)] * 2
    assert _rows(same) == ((0, 0), (1, 1), (2, 2))
    # tenths beside sixths: 2 with 1, 3 with 2, 5 with 3, 7 with 4, 8 with 5, 10 with 6
    unequal = _rows([reading(tuple(range(1, 11)), 10), reading(tuple(range(1, 7)), 6)])
    assert [(a, b) for a, b in unequal if b is not None] == [(1, 0), (2, 1), (4, 2), (6, 3), (7, 4), (9, 5)]
    assert sorted(a for a, _ in unequal if a is not None) == list(range(10))
    assert _rows([reading((4,), 4), reading((1, 4), 4)]) == ((None, 0), (0, 1))
