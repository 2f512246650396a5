"""Two launchers, as on two machines: one that was told something else, folders that are not shared, nobody there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from PIL import Image

from tests.evaluation import needs_harness
from tests.ports import free_port
from tests.runs.conftest import short
from vlsi_cli.config import harness
from vlsi_cli.config.evaluating import Asked, EvaluationPlan
from vlsi_cli.config.evaluation import EvaluationConfig
from vlsi_cli.config.loading import Resolved, resolve
from vlsi_cli.config.run import DataConfig, ImagesSource
from vlsi_cli.engine import processes
from vlsi_cli.engine.runs import agreement, evaluate
from vlsi_cli.engine.runs.answer_reading import Reading
from vlsi_cli.errors import ConfigError, DataError, OutputError, ProcessError, VlsiError

ROOT = Path(__file__).parents[2]


def launchers(*words: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """A command on each of so many "machines", which meet on the loopback."""
    meet = [f"--nnodes={len(words)}", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "vlsi_cli",
                *each,
                "--processes=1",
                "--",
                *meet,
                f"--node-rank={number}",
            ],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, each in enumerate(words)
    ]
    ended = []
    try:
        for process in started:
            out, err = process.communicate(timeout=600)
            ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    finally:
        for process in started:
            process.kill()
    return ended


def test_a_machine_with_another_command_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """By both launchers, told by the first; nothing is left behind. Met, they have a common store and a common word."""
    same = [f"--set=teacher.id={pair[0]}", f"--set=student.id={pair[1]}", "--set=student.targets.stride=1"]
    same += ["--set=teacher.targets.stride=1", "--output", str(tmp_path / "run")]
    first, second = launchers(["distill", *same], ["distill", *same, "--set=seed=5"])
    assert (first.returncode, second.returncode) == (2, 2), first.stderr + second.stderr
    assert "process 1 was started with another configuration than the first" in first.stderr
    assert "seed is 0 in the first, 5 in process 1" in first.stderr
    assert "Traceback" not in first.stderr + second.stderr
    assert "error:" not in second.stderr
    assert not (tmp_path / "run").exists()


def test_answers_are_asked_for_alike(tmp_path: Path) -> None:
    """The words behind -- are the launcher's; the rest has to be the same everywhere, but for where the output lies."""
    words = ["data", "answer", "patterns", "--replace", "--model", "demo/large"]
    first, second = launchers(
        *(
            [*words, f"--output={tmp_path / name}.jsonl", f"--limit={limit}"]
            for name, limit in (("a", 2), ("b", 3))
        )
    )
    assert (first.returncode, second.returncode) == (2, 2), first.stderr + second.stderr
    assert "limit is 2 in the first, 3 in process 1" in first.stderr
    assert "Traceback" not in first.stderr + second.stderr
    assert not list(tmp_path.iterdir())


def test_nobody_keeps_the_place_where_machines_meet(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """One sentence, not the launcher's traceback."""
    place = f"127.0.0.1:{free_port()}"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "vlsi_cli",
            "distill",
            f"--set=student.id={pair[1]}",
            f"--set=teacher.id={pair[0]}",
            "--output",
            str(tmp_path / "run"),
            "--processes=1",
            "--",
            "--nnodes=2",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={place}",
            "--rdzv-conf=join_timeout=1",
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ProcessError.exit_code
    assert f"error: 2 machines were to meet at {place}, and did not within the time for it" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """This process as the first of two; the second's part of an exchange is what ``then`` makes of ours."""
    held: dict[str, Any] = {"then": lambda own: own}
    monkeypatch.setattr(processes, "size", lambda: 2)
    monkeypatch.setattr(processes, "gather", lambda own: [own, held["then"](own)])
    monkeypatch.setattr(processes, "on_first", lambda work: work())
    return held


def files(resolved: Resolved) -> agreement.Held:
    return agreement.files_of((resolved.config.teacher, resolved.config.student), (resolved.config.data,))


def alike(resolved: Resolved) -> None:
    agreement.require_alike(resolved.config, held=files(resolved))


def test_what_all_machines_must_have(pair: tuple[Path, Path], two: dict[str, Any]) -> None:
    resolved = short(pair)
    alike(resolved)
    cases: list[tuple[Any, type[VlsiError], str]] = [
        (
            lambda c, v, f: ((c[0].model_copy(update={"seed": 9}),), v, f),
            ConfigError,
            "seed is 0 in the first, 9 in process 1",
        ),
        (
            lambda c, v, f: (c, v | {"torch": "1.0"}, f),
            ConfigError,
            "process 1 has torch 1.0, and the first has",
        ),
        (
            lambda c, v, f: (c, v, f | {str(pair[1]): {"a.safetensors": "1"}}),
            DataError,
            f"process 1 has other files than the first: {pair[1]}/a.safetensors is not the same",
        ),
    ]
    # a model that one has yet to fetch, and a package that only one has, are told of where they are needed
    two["then"] = lambda own: (own[0], own[1] | {"peft": None}, own[2] | {str(pair[1]): {}})
    alike(resolved)
    for change, kind, message in cases:
        two["then"] = lambda own, change=change: change(*own)
        with pytest.raises(kind, match=message) as caught:
            alike(resolved)
        assert caught.value.shared


@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "train.jsonl"]
)
def test_a_copy_of_the_same_size(
    pair: tuple[Path, Path],
    two: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
) -> None:
    """Its content differs, at the end of a long file or anywhere in a short one."""
    student = shutil.copytree(pair[1], tmp_path / "student")
    place = tmp_path / "train.jsonl" if file == "train.jsonl" else student / file
    (tmp_path / "train.jsonl").write_text('{"messages": []}\n' * 3)
    source = {"kind": "messages", "path": str(tmp_path / "train.jsonl")}
    sets = [f"teacher.id={pair[0]}", f"student.id={student}", f"data.sources={json.dumps([source])}"]
    resolved, whole = resolve("demo", sets), place.read_bytes()
    monkeypatch.setattr(agreement, "PROBE", 1000)

    def edited(place_of_it: int) -> Any:
        other = bytearray(whole)
        other[place_of_it] ^= 1
        place.write_bytes(other)
        theirs = files(resolved)
        place.write_bytes(whole)
        return lambda own: (*own[:2], theirs)

    two["then"] = edited(-20)
    with pytest.raises(DataError, match=f"process 1 has other files than the first: {place} is not the same"):
        alike(resolved)
    two["then"] = edited(min(20, len(whole) - 1))
    with pytest.raises(DataError, match="is not the same"):
        alike(resolved)
    two["then"] = lambda own: own
    alike(resolved)
    place.unlink()  # what is missing of a model is told of, or fetched, when it is read; data have to be there
    theirs = files(resolved)
    place.write_bytes(whole)
    two["then"] = lambda own: (*own[:2], theirs)
    if file == "train.jsonl":
        with pytest.raises(DataError, match="is not the same"):
            alike(resolved)
    else:
        alike(resolved)


@needs_harness
def test_models_are_evaluated_alike(two: dict[str, Any], tmp_path: Path) -> None:
    """Also the files of one's own tasks, and lmms-eval's version; where the folder lies, each may say in its way."""
    task = tmp_path / "mine.yaml"
    task.write_text("task: mine\n", "utf-8")
    config = EvaluationConfig(models=("demo/small",), tasks_dir=tmp_path)
    plan = EvaluationPlan((Asked("demo/small", None),), (), ())
    elsewhere = config.model_copy(update={"output": Path("elsewhere")})
    evaluate._require_alike(config, plan)
    told: list[Any] = []
    two["then"] = lambda own: told.append(own) or own
    evaluate._require_alike(elsewhere, plan)
    two["then"] = lambda own: told[0]
    evaluate._require_alike(config, plan)
    for changed, message in (
        (config.model_copy(update={"limit": 3}), "limit is 3 in the first, null in process 1"),
        (config, f"process 1 has other files than the first: {tmp_path}/mine.yaml is not the same"),
    ):
        with pytest.raises(VlsiError, match=message):
            evaluate._require_alike(changed, plan)
        task.write_text("task: yours\n", "utf-8")
    two["then"] = lambda own: (own[0], own[1] | {harness.PACKAGE: "0.1"}, own[2])
    with pytest.raises(ConfigError, match=f"process 1 has {harness.PACKAGE} 0.1, and the first has"):
        evaluate._require_alike(config, plan)


@needs_harness
def test_benchmarks_have_the_same_questions_everywhere(two: dict[str, Any]) -> None:
    """Answers to another revision of a data set would be scored as answers to the questions of the first."""
    from vlsi_cli.engine.evaluation import tasks

    def read(*questions: str, limit: int | None = None) -> dict[str, str]:
        rows: dict[str, Any] = {"question": questions, "picture": [Image.new("RGB", (8, 8))] * len(questions)}
        task: Any = SimpleNamespace(eval_docs=datasets.Dataset.from_dict(rows))
        return {"mine": tasks.digest_of(task, limit)}

    agreement.require_same_questions(read("Red?", "Blue?"))
    two["then"] = lambda own: read("Red?", "Blue?", "Green?")
    agreement.require_same_questions(read("Red?", "Blue?", "Green?"))
    for other in (read("Blue?", "Red?", "Green?"), read("Red?", "Blue?"), read("Red?", "Blue?", "Grey?")):
        with pytest.raises(
            DataError, match="process 1 has other questions of 'mine' than the first"
        ) as caught:
            agreement.require_same_questions(other)
        assert caught.value.shared
    two["then"] = lambda own: read("Red?", "Blue?", "Green?", limit=2)
    agreement.require_same_questions(read("Red?", "Blue?", "Black?", limit=2))


def test_pictures_that_another_machine_lacks(two: dict[str, Any], tmp_path: Path) -> None:
    """Each process takes every n-th of a folder's pictures: they have to be the same ones."""
    config = DataConfig(sources=(ImagesSource(path=tmp_path, prompt="What is it?"),))
    listings = []
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
        listings.append(Reading(config, None, tmp_path / "out.jsonl").listings)
    two["then"] = lambda own: (*own[:2], listings[0])
    agreement.require_alike(held=listings[0])
    with pytest.raises(DataError, match=f"other files than the first: {tmp_path} is not the same"):
        agreement.require_alike(held=listings[1])


def test_a_run_folder_on_a_disk_of_its_own(
    two: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement.require_shared(tmp_path)
    monkeypatch.setattr(agreement, "SHOWING", timedelta(0))
    two["then"] = lambda own: False
    with pytest.raises(OutputError, match="process 1 does not see the folder") as caught:
        agreement.require_shared(tmp_path)
    assert caught.value.shared
    assert not list(tmp_path.iterdir())
