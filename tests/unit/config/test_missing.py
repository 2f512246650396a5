"""Names of models that name nothing: told as folders where they mean folders, with those near them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlsi_cli.app import app
from vlsi_cli.config.missing import alike, hint_for, means_folder, near
from vlsi_cli.config.presence import hub_cache


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two runs, one of them with a student, and an empty hub cache."""
    (tmp_path / "runs" / "mine-1" / "student").mkdir(parents=True)
    (tmp_path / "runs" / "mine-2").mkdir()
    (tmp_path / "Qwen").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("runs/nope", True),  # runs is a folder
        ("runs/mine-1/studnt", True),
        ("./nope", True),
        ("~/nope", True),
        ("/nope", True),
        ("other/mine/model", True),
        ("nowhere", True),  # no owner
        ("runs/mine-1", True),
        ("owner/name", False),
        ("Qwen/Qwen2-VL-2B-Instruct", False),  # the catalogue knows it, whatever folder stands here
        ("Qwen/Qwen9-VL", True),
        ("demo/small", False),
    ],
)
def test_what_means_a_folder(name: str, folder: bool) -> None:
    assert means_folder(name) is folder


def test_a_model_in_the_hubs_cache_is_no_folder() -> None:
    (hub_cache() / "models--runs--nope" / "snapshots" / "main").mkdir(parents=True)
    assert not means_folder("runs/nope")


def test_near_folders_are_named(here: Path) -> None:
    assert near("runs/nope") == "runs holds mine-1, mine-2"
    assert near("runs/mine-1/studnt") == "did you mean runs/mine-1/student?"
    assert near("rusn/Mine-1/student") == "did you mean runs/mine-1/student?"
    assert near(str(here / "runs" / "mine-1" / "stud")) == f"did you mean {here}/runs/mine-1/student?"
    assert near("elsewhere/x") == near("runs/mine-2/x") == near("/nowhere/x") == ""
    assert alike("runs/nope") == []
    assert alike("rusn/mine-1") == ["did you mean runs/mine-1?"]
    assert "hf download runs/nope" in hint_for("runs/nope")
    assert "hf download" not in hint_for("runs/a/b")
    for number in range(9):
        (here / "runs" / f"zz{number}").mkdir()
    assert near("runs/qqqq").endswith("zz3 and 5 more")


def test_what_a_folder_is_that_is_no_model(here: Path) -> None:
    run = here / "runs" / "mine-1"
    for name in ("config.yaml", "origins.json"):
        (run / name).touch()
    assert hint_for("runs/mine-1").startswith("runs/mine-1 is the folder of a run without a student yet")
    (run / "student" / "config.json").touch()
    assert (
        hint_for("runs/mine-1") == "runs/mine-1 is the folder of a run, and its model is runs/mine-1/student"
    )
    assert near("runs/mine-1/student").endswith("holds no weights, or not all that its index names")
    assert near("runs") == "runs is there, but it has no config.json, so it is not a model folder"


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (
            "distill --teacher runs/mine-1 --student demo/small --data patterns",
            4,
            "its model is runs/mine-1/student",
        ),
        ("data preview --model runs/mine-1", 4, "its model is runs/mine-1/student"),
        ("distill --resume runs/mine-1/student", 7, "it lies in the run "),
        ("distill --recipe runs/mine-1", 2, "the recipe of that run is runs/mine-1/config.yaml"),
        ("distill --teacher rusn --student demo/small --data patterns", 2, "did you mean runs?"),
        ("distill --teacher Qwen/Qwen2-VL-7C --student 2b", 2, "did you mean Qwen/Qwen2-VL-7B?"),
        ("distill --data recs.json", 3, "recors.json?"),
    ],
)
def test_one_thing_given_for_another(here: Path, words: str, code: int, hint: str) -> None:
    run = here / "runs" / "mine-1"
    for name in ("config.yaml", "origins.json", "student/config.json"):
        (run / name).touch()
    (here / "recors.json").touch()
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == code, done.output
    assert f"hint: {hint}" in done.stderr or hint in done.stderr.partition("hint: ")[2]


@pytest.mark.parametrize(
    "words",
    [
        "verbalize --model runs/nope",
        "verbalize --model demo/large --verbalizers runs/nope",
        "match-layers --teacher runs/nope --student demo/small --data patterns",
        "match-layers --teacher demo/large --student runs/nope --data patterns",
        pytest.param(
            "export runs/nope --to onnx",
            marks=pytest.mark.skipif(find_spec("onnx") is None, reason="the extra onnx is not installed"),
        ),
        "push runs/nope --repo me/x --dry-run",
        "distill --teacher runs/nope --student demo/small --data patterns",
        "distill --teacher demo/large --student runs/nope --data patterns",
        "cache build new --teacher runs/nope --student demo/small --data patterns",
        "data preview --model runs/nope",
    ],
)
def test_every_command_says_so(words: str) -> None:
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 4, done.output
    assert (
        "there is no folder 'runs/nope'" in done.stderr
        or "runs/nope (there is no such folder)" in done.stderr
    )
    assert "hint: runs holds mine-1, mine-2" in done.stderr
