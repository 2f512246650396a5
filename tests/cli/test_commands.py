"""The commands through the real app: exit codes, and what goes to which stream."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.hub_client import vlsi
from vlsi_cli import __version__
from vlsi_cli import events as ev
from vlsi_cli.app import main
from vlsi_cli.config import reach
from vlsi_cli.config.folders import claim
from vlsi_cli.errors import Interrupted, TrainingError

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_version_and_help() -> None:
    assert vlsi("--version").stdout == f"vlsi {__version__}\n"
    shown = vlsi("--help")
    assert shown.exit_code == 0
    for word in ("distill", "export", "push", "data", "recipes"):
        assert word in shown.stdout


# ------------------------------------------------------------------ errors and their codes


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("distill --recipe dmeo", 2, "error: no recipe is named 'dmeo'\nhint: did you mean demo?"),
        ("distill --set intraction.steps=1", 2, "unknown key 'intraction'\nhint: did you mean interaction?"),
        ("distill --set seed=x --dry-run", 2, "--set: seed: input should be a whole number"),
        ("distill --set precision=bf17", 2, "not 'bf17'\nhint: did you mean bf16?"),
        ("distill --set student.targets.layers=2,3", 2, "layers: input should be a list, in [ ], not '2,3'"),
        ("distill --set interaction=3", 2, "interaction: input should be a mapping of keys to values, not 3"),
        ("distill --set data.sources.0.kind=lava", 2, "'images', not 'lava'\nhint: did you mean llava?"),
        ("distill --teacher Qwen/Qwen2-VL-7B", 2, "--teacher is given without --student"),
        ("distill --teacher Qwen/Qwen2-VL-7B --student 3b", 2, "the family Qwen2-VL has no size '3b'"),
        ("distill --teacher a/large --student b/small", 2, "data is not given\nhint: pass --data PATH"),
        ("distill --data nowhere", 2, "--data nowhere: there is no such file or folder"),
        ("distill --data none.json", 3, "none.json"),
        ("distill --teacher a/large --student b/small --data patterns", 4, "hf download a/large"),
        ("distill --teacher Qwen/Qwen2-VL-72B --student 2b", 4, "data/mathplus.parquet"),
        ("distill --student ./none --teacher demo/large --data patterns", 4, "student: ./none"),
        ("distill --set student.targets.layers=[1,99] --dry-run", 5, "must lie between 1 and"),
        ("distill --push thing", 2, "'thing' is not the name of a repository: it must be owner/name"),
        ("distill --resume none", 7, "none is not a run folder"),
        ("distill --resume none --seed 3", 2, "but --seed was given too"),
        ("distill --skip-damaged", 2, "there is no --resume"),
        ("distill --resume auto --overwrite", 2, "would go on with what --overwrite removes"),
        ("distill --precision fp8", 2, "fp8"),
        ("distill --colour", 2, "No such option"),
        ("distil", 2, "distill"),
        ("recipes show nope", 2, "no recipe is named 'nope'"),
        ("export", 2, "no MODEL is given"),
        ("export demo/small --to onyx", 2, "onyx"),
        ("data preview --data nowhere", 2, "no such file or folder"),
        ("data preview nowhere", 2, "no such file or folder"),
        ("data preview --data none.jsonl", 3, "none.jsonl"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_its_code(words: str, code: int, message: str) -> None:
    done = vlsi(*words.split())
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_existing_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    done = vlsi("distill", "--output", "run")
    assert done.exit_code == 6
    assert "error: run already holds a run\nhint: continue it with `vlsi distill --resume run`" in done.stderr


def test_errors_as_json() -> None:
    done = vlsi("distill", "--recipe", "dmeo", "--json")
    assert json.loads(done.stdout)["error"] == {
        "type": "ConfigError",
        "message": "no recipe is named 'dmeo'",
        "hint": "did you mean demo?",
        "exit_code": 2,
    }


# ------------------------------------------------------------------ a run, with an engine that only talks


def talk(tell: ev.Events, run: Path) -> ev.Report:
    tell(ev.RunStarted(run, ("interaction",)))
    tell(ev.StageStarted("interaction", "small", 2, 8))
    for step in (1, 2):
        layers = {"2": 1.5, "6": 1.25, "last": 0.5}
        tell(ev.StepDone("interaction", step, 2, 3.25, layers, {2: 6, 6: 10}, 1e-4, 0.7, 1234.0, 61.0))
    tell(ev.CheckpointSaved(run / "checkpoints" / "2", "interaction", 2))
    tell(ev.StageEnded("interaction", 3.0, 3.25))
    tell(ev.Warn("2 records skipped"))
    scores = (ev.Score("small before", 0.25, 2.5, 40, {"where": 0.5}), ev.Score("large", None, None, 40))
    stages = (ev.StageReport("interaction", "small", 2, 3.0, 3.25, {"2": 1.5}),)
    report = ev.Report(run, run / "student", scores, stages, 4.0)
    tell(ev.RunEnded(report))
    return report


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for the engine's entry; the entry tests in tests/runs drive the real one."""
    seen: dict[str, Any] = {}

    def run(resolved: Any, *, output: Path | None, events: ev.Events, resume: bool, **more: Any) -> ev.Report:
        output = output or claim(resolved.config.name)
        seen.update(resolved=resolved, output=output, resume=resume, **more)
        if "raises" in seen:
            raise seen["raises"]
        return talk(events, output)

    package, module = ModuleType("vlsi_cli.engine.runs"), ModuleType("vlsi_cli.engine.runs.distill")
    vars(module)["run"] = run
    vars(package).update(distill=module, __path__=[])
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return seen


def test_a_run_speaks_on_stderr_and_reports_on_stdout(engine: dict[str, Any]) -> None:
    done = vlsi("distill", "--seed", "4")
    assert done.exit_code == 0, done.output
    assert (engine["output"], engine["resume"], engine["overwrite"]) == (Path("runs/demo-1"), False, False)
    assert engine["resolved"].config.seed == 4
    line = "interaction 1/2, loss 3.2500, layers 2:1.500 6:1.250 last:0.500, matched 2>6 6>10, lr 1.00e-04, "
    assert line + "grad 0.70, 1,234 tokens/s, left 1 min 01 s" in done.stderr
    assert "warning: 2 records skipped" in done.stderr
    assert re.search(r"small before +25\.0 % +2\.5000 +40 +50\.0 %", done.stdout)
    assert "student: runs/demo-1/student" in done.stdout
    assert "tokens/s" not in done.stdout


def test_a_run_as_json(engine: dict[str, Any]) -> None:
    report = json.loads(vlsi("distill", "--json").stdout)
    assert report["scores"][0]["by_kind"] == {"where": 0.5}
    assert report["student"] == "runs/demo-1/student"


def test_quiet_keeps_warnings_only(engine: dict[str, Any]) -> None:
    assert vlsi("--quiet", "distill").stderr == "warning: 2 records skipped\n"


def test_resume_takes_the_runs_own_configuration(engine: dict[str, Any], tmp_path: Path) -> None:
    vlsi("distill", "--set", "seed=11")
    engine["resolved"].save(tmp_path / "run")
    done = vlsi("distill", "--resume", "run")
    assert done.exit_code == 0, done.output
    assert (engine["resume"], engine["output"], engine["resolved"].config.seed) == (True, Path("run"), 11)


def test_resume_auto_goes_on_or_starts(engine: dict[str, Any]) -> None:
    """Started, then gone on with, each time from one command; a run of another seed is another run."""
    words = ("distill", "--resume", "auto", "--seed", "4")
    for resumed in (False, True):
        assert vlsi(*words).exit_code == 0
        assert (engine["resume"], engine["output"]) == (resumed, Path("runs/demo-1"))
        engine["resolved"].save(engine["output"])
    assert vlsi(*words[:3]).exit_code == 0
    assert (engine["resume"], engine["output"]) == (False, Path("runs/demo-2"))
    assert vlsi("distill", "--resume", "runs/demo-1", "--skip-damaged").exit_code == 0
    assert (engine["resume"], engine["skip_damaged"]) == (True, True)


@pytest.mark.parametrize(
    ("problem", "code", "message"),
    [
        (
            Interrupted("stopped", resume="vlsi distill --resume r"),
            130,
            "hint: resume with: vlsi distill --resume r",
        ),
        (Interrupted("stopped", exit_code=143), 143, "stopped: stopped"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (TrainingError("the loss is not finite"), 8, "error: the loss is not finite"),
    ],
)
def test_how_runs_end(engine: dict[str, Any], problem: BaseException, code: int, message: str) -> None:
    engine["raises"] = problem
    done = vlsi("distill")
    assert done.exit_code == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_defect_tells_no_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**words: Any) -> None:
        raise ZeroDivisionError("asked with hf_" + "aB3" * 12)

    monkeypatch.setattr("vlsi_cli.app.app", broken)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "ZeroDivisionError: asked with [redacted]" in shown


def test_a_defect_keeps_its_traceback_and_says_where_to_turn(engine: dict[str, Any]) -> None:
    engine["raises"] = ZeroDivisionError("division by zero")
    done = vlsi("distill")
    assert done.exit_code == 1
    assert isinstance(done.exception, ZeroDivisionError)
    assert "please report it" in done.exception.__notes__[0]


# ------------------------------------------------------------------ recipes


def test_recipes_ls() -> None:
    listed = json.loads(vlsi("recipes", "ls", "--json").stdout)
    assert listed[0]["name"] == "demo"
    shown = vlsi("recipes", "ls").stdout
    assert all(recipe["name"] in shown and recipe["description"] in shown for recipe in listed)


def test_recipes_show_and_cp(tmp_path: Path) -> None:
    text = vlsi("recipes", "show", "demo").stdout
    assert text.startswith("# demo: ")
    assert (
        json.loads(vlsi("recipes", "show", "demo", "--json").stdout)["name"] == yaml.safe_load(text)["name"]
    )
    assert vlsi("recipes", "cp", "demo", "mine.yaml").stdout == "mine.yaml\n"
    assert (tmp_path / "mine.yaml").read_text(encoding="utf-8") == text
    assert vlsi("recipes", "cp", "demo", "mine.yaml").exit_code == 6
    assert vlsi("recipes", "check", "mine.yaml").stdout == "mine.yaml: valid\n"


def test_recipes_check() -> None:
    done = vlsi("recipes", "check", "--json")
    assert done.exit_code == 0
    assert all(result["valid"] for result in json.loads(done.stdout))
    Path("bad.yaml").write_text("student: {id: demo/small}\nsed: 1\n", encoding="utf-8")
    done = vlsi("recipes", "check", "bad.yaml")
    assert done.exit_code == 2
    assert "recipe bad.yaml: unknown key 'sed'\nhint: did you mean seed?" in done.stderr
    done = vlsi("recipes", "check", "demo", "bad.yaml", "--json")
    assert done.exit_code == 2
    results = json.loads(done.stdout)  # one document
    assert [(result["recipe"], result["valid"]) for result in results] == [
        ("demo", True),
        ("bad.yaml", False),
    ]
    assert done.stderr == "error: not valid: bad.yaml\n"


# ------------------------------------------------------------------ the hub


def test_offline_variables_are_believed_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        reach.urllib.request, "urlopen", lambda *_, **__: pytest.fail("the network was asked")
    )
    assert not reach.hub_is_reachable()


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "not an address"])
def test_a_hub_that_does_not_answer_is_unreachable(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert not reach.hub_is_reachable()
