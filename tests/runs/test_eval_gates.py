"""What a script asks of an evaluation, through the real entry point and the real harness."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.evaluation import needs_harness, write_tasks
from tests.examples import run_example
from vlsi_cli.app import app

pytestmark = needs_harness
LIMIT = 20


def vlsi(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="vlsi")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """The demo pair, whose large model alone is what is asked of both; both are what is asked of the small one."""
    output = tmp_path_factory.mktemp("gates") / "out"
    required = (
        "--require",
        "patterns>=90",
        "--require",
        "demo/small:patterns >= 0",
        "--require",
        "patterns<=100",
    )
    return vlsi("eval", "--limit", LIMIT, "-o", output, *required), output


def test_unmet_the_report_is_whole_and_the_code_its_own(asked: tuple[Result, Path]) -> None:
    done, output = asked
    assert done.exit_code == 10, done.output
    assert done.stdout.count("The built-in puzzles") == 3 + 5
    report = json.loads((output / "report.json").read_text())
    score = report["results"][1]["score"]
    assert [(one["model"], one["relation"], one["met"]) for one in report["requirements"]] == [
        ("demo/large", ">=", True),
        ("demo/small", ">=", False),
        ("demo/small", ">=", True),
        ("demo/large", "<=", True),
        ("demo/small", "<=", True),
    ]
    assert report["requirements"][1]["score"] == score
    sentence = (
        f"patterns of demo/small is {score:.1f}, and should be at least 90 (the first {LIMIT} questions only)"
    )
    assert [line for line in done.stderr.splitlines() if "error" in line] == [f"error: {sentence}"]
    text = (output / "report.md").read_text("utf-8")
    assert f"- not met: {sentence}\n" in text
    assert "- met: patterns of demo/large is 100.0, at least 90" in text


def test_the_same_command_asks_nothing_again_and_prints_one_document(asked: tuple[Result, Path]) -> None:
    _, output = asked
    words = ("eval", "--limit", LIMIT, "-o", output, "--json", "--require")
    failed, passed = vlsi(*words, "patterns>=90"), vlsi(*words, "demo/large:patterns>=90")
    assert (failed.exit_code, passed.exit_code) == (10, 0)
    reports = [
        json.loads(done.stdout) for done in (failed, passed)
    ]  # one document: an error would be a second
    assert [one["met"] for one in reports[0]["requirements"]] == [True, False]
    assert [result["generated"] for result in reports[1]["results"]] == [0, 0]
    assert "error: patterns of demo/small is" in failed.stderr


def test_what_cannot_be_answered_ends_before_anything_is_written(tmp_path: Path) -> None:
    for words in (("patterns>=0.9",), ("mmmu>=50",), ("patterns",)):
        done = vlsi("eval", "-o", tmp_path / "out", "--require", *words)
        assert done.exit_code == 2, done.output
        assert "error: --require " in done.stderr
        assert not (tmp_path / "out").exists()


def test_a_missing_score_meets_nothing(tmp_path: Path) -> None:
    """A metric that is no number: without a requirement the code is that of a score that would not be true."""
    tasks = write_tasks(tmp_path, 1)
    with (tasks / "code.py").open("a") as file:
        file.write('\ndef nothing(doc, results):\n    return {"right": float("nan")}\n')
    text = (tasks / "open.yaml").read_text()
    (tasks / "wrong.yaml").write_text(
        text.replace("task: open", "task: wrong").replace("higher_is_better: true", "higher_is_better: false")
    )
    (tasks / "nan.yaml").write_text(
        text.replace("task: open", "task: nan").replace("code.score", "code.nothing")
    )
    words = ("eval", "-m", "demo/small", "-b", "nan", "--tasks-dir", tasks, "-o", tmp_path / "out", "--html")
    assert vlsi(*words, "-b", "open,wrong").exit_code == 11
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [each["higher_is_better"] for each in report["results"]] == [None, True, False]
    done = vlsi(*words, "--require", "nan<=100")
    assert done.exit_code == 10, done.output
    told = "nan of demo/small should be at most 100, and has no score: nan: the metric 'right,none' is nan"
    assert f"error: {told}" in done.stderr
    page = (tmp_path / "out/report.html").read_text("utf-8")
    assert '<span class="wrong">not met</span>: nan of demo/small should be at most 100' in page


# ---------------------------------------------------------------- one stored model against another


def no_worse(*words: object) -> tuple[Result, list[dict[str, Any]]]:
    """The command for people and the same with ``--json``, which end alike."""
    shown = vlsi("eval", "compare", *words)
    done = vlsi("eval", "compare", *words, "--json")
    assert shown.exit_code == done.exit_code
    return shown, json.loads(done.stdout)["no_worse"]


def test_the_small_model_is_worse_and_the_large_one_is_not(asked: tuple[Result, Path]) -> None:
    _, output = asked
    shown, (verdict,) = no_worse(output, output, "--no-worse")
    assert shown.exit_code == 10
    assert (verdict["met"], verdict["rule"], verdict["n"]) == (False, "interval", LIMIT)
    assert f"error: {verdict['sentence']}" in shown.stderr
    assert f"patterns: {LIMIT} questions are few for an interval" in shown.stdout
    shown, (verdict,) = no_worse(output, output, "--no-worse", "--first", "demo/small", "--margin", 1)
    assert shown.exit_code == 0, shown.output
    assert (verdict["met"], verdict["rule"], verdict["second"]) == (True, "margin", f"{output}: demo/large")
    assert vlsi("eval", "compare", output, output).exit_code == 0, "without --no-worse nothing fails"


def test_models_of_one_name_are_held_against_each_other(asked: tuple[Result, Path], tmp_path: Path) -> None:
    _, output = asked
    again = tmp_path / "again"
    shutil.copytree(output, again)
    shown, found = no_worse(output, again, "--no-worse", "--margin", 19, "-b", "Patterns")  # 3.7 of 20
    assert shown.exit_code == 0, shown.output
    assert [(one["first"], one["second"]) for one in found] == [
        (f"{output}: demo/{size}", f"{again}: demo/{size}") for size in ("large", "small")
    ]


def test_what_one_of_both_was_not_asked_is_not_no_worse(asked: tuple[Result, Path], tmp_path: Path) -> None:
    _, output = asked
    fewer = tmp_path / "fewer"
    shutil.copytree(output, fewer)
    report = json.loads((fewer / "report.json").read_text())
    for result in report["results"]:
        result["benchmark"] = "mmmu"
    (fewer / "report.json").write_text(json.dumps(report))
    for folder in (fewer / "models").iterdir():
        (folder / "patterns").rename(folder / "mmmu")
    words = (output, fewer, "--no-worse", "--first", "demo/large", "--second", "demo/large")
    for more, who in ((), fewer), (("-b", "mmmu"), output):
        shown, (verdict,) = no_worse(*words, *more)
        assert shown.exit_code == 10
        assert verdict["sentence"].endswith(f"{who}: demo/large was not asked")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--margin 1", "--margin says how much worse B may be, but there is no --no-worse"),
        ("--first demo/larg", "holds no model 'demo/larg'\nhint: did you mean demo/large?"),
        ("--first demo/small --second demo/small", "--first and --second name one model of one evaluation"),
        ("--no-worse -b mmmmu", "no benchmark 'mmmmu' is stored there\nhint: stored are patterns"),
    ],
)
def test_wrong_words_end_in_one_sentence(words: str, message: str, asked: tuple[Result, Path]) -> None:
    _, output = asked
    done = vlsi("eval", "compare", output, output, *words.split())
    assert done.exit_code == 2, done.output
    assert message in done.stderr


def test_several_models_whose_names_say_nothing(asked: tuple[Result, Path], tmp_path: Path) -> None:
    _, output = asked
    other = tmp_path / "other"
    shutil.copytree(output, other)
    for file in (other / "report.json", *other.glob("models/*/model.json")):
        file.write_text(file.read_text().replace("demo/small", "mine/student"))
    done = vlsi("eval", "compare", output, other, "--no-worse")
    assert done.exit_code == 2
    assert (
        "hint: give --first, one of demo/large, demo/small\nhint: and --second, one of demo/large, mine/student"
        in done.stderr
    )
    done = vlsi("eval", "compare", output, other, "--no-worse", "--first", "demo/small", "--second", "mine/")
    assert done.exit_code == 0, done.output  # a run stands for its student


# ---------------------------------------------------------------- the script of docs/ci.md


def test_the_script_of_the_page(asked: tuple[Result, Path], tmp_path: Path) -> None:
    """The model is good enough, and held against a better one of the same name it is worse."""
    _, output = asked
    for name in ("runs/eval", "baseline"):
        shutil.copytree(output, tmp_path / name)  # answers from before
    for file in (
        "report.json",
        *(f"models/{each.name}/model.json" for each in (output / "models").iterdir()),
    ):
        path = tmp_path / "baseline" / file
        path.write_text(path.read_text().replace("demo/small", "other").replace("demo/large", "demo/small"))
    done = run_example("ci-gate.sh", tmp_path, {"LIMIT": str(LIMIT), "REQUIRE": "patterns>=5"})
    assert done.returncode == 10, done.stderr
    assert ">= 5      yes" in done.stdout
    assert "error: patterns: runs/eval: demo/small is worse than baseline: demo/small" in done.stderr
