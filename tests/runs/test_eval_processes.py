"""`vlsi eval` in two processes (gloo, on the CPU): the same scores, and nothing lost when one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tests.evaluation import local_judge, needs_harness, with_rows, write_tasks
from vlsi_cli.app import app

pytestmark = needs_harness


def alone(*words: object) -> dict[str, Any]:
    """The report of one process."""
    done = CliRunner().invoke(app, ["eval", *map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@contextmanager
def in_two(*words: object) -> Iterator[subprocess.Popen[str]]:
    """The command in two processes, which do not outlive the block."""
    command = [
        sys.executable,
        "-m",
        "vlsi_cli",
        "eval",
        *map(str, words),
        "--processes",
        "2",
        "--device",
        "cpu",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def samples(output: Path) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for file in output.rglob("samples.jsonl"):
        found[file.parent.name] = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return found


def test_two_processes_say_what_one_says(tmp_path: Path) -> None:
    """An open answer, a choice by likelihood, random fill-ins and a judge; what one process began, two go on with."""
    tasks = write_tasks(tmp_path)
    with_rows("mmvet", tmp_path / "mmvet", count=3)
    (tmp_path / "judged.yaml").write_text(f"task: judged\ninclude: {tmp_path}/mmvet/mmvet.yaml\n", "utf-8")
    with local_judge("0.5") as judge:
        words = ["--model", "demo/small", "--tasks-dir", tasks, "--bench", "patterns,likely,chance,judged"]
        words += ["--judge-model", "some-model", "--judge-url", judge.url, "--batch-size", "1"]  # bit for bit
        one = alone(*words, "--limit", 7, "-o", tmp_path / "one")
        alone(*words[:3], tasks, "--bench", "patterns", "--limit", 2, "-o", tmp_path / "two")
        asked, judge.asked = judge.asked, []
        with in_two(
            *words, "--limit", 7, "-o", tmp_path / "two", "--json", "--require", "likely>=2"
        ) as process:
            said, told = process.communicate(timeout=600)
    assert process.returncode == 10, told  # what no share of 1 can reach
    assert told.count("error: likely of demo/small is") == 1
    two = json.loads(said)  # one document: one process speaks
    assert [outcome["met"] for outcome in two["requirements"]] == [False]
    assert judge.asked == asked  # not twice
    assert (one["settings"]["processes"], two["settings"]["processes"]) == (1, 2)
    for first, second in zip(one["results"], two["results"], strict=True):
        begun = 2 if first["benchmark"] == "patterns" else 0
        assert (first.pop("reused"), second.pop("reused")) == (0, begun)
        assert second.pop("generated") == first.pop("generated") - begun
        del first["seconds"], second["seconds"]
        assert first == second
    assert samples(tmp_path / "one") == samples(tmp_path / "two")
    assert not list((tmp_path / "two").rglob("answers.*.jsonl"))


def test_a_process_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path)
    words = ("--model", "demo/small", "--tasks-dir", tasks, "--bench", "held", "--batch-size", 1)
    with in_two(*words, "-o", tmp_path / "two") as process:
        while process.poll() is None and sum(counted(tmp_path / "two").values()) < 4:
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()
        os.kill(the_second_of(process.pid), signal.SIGKILL)
        said, told = process.communicate(timeout=600)
    (tasks / "go").touch()
    assert process.returncode not in (0, 1), told
    assert said == ""
    (sentence,) = [
        line for line in told.splitlines() if line.startswith(("error: ", "stopped: ", "process "))
    ]
    assert (
        "another process of it was killed" in sentence or "another process of this run was killed" in sentence
    )
    assert "the answers so far are kept: the same command goes on from here" in told
    assert "Traceback" not in told
    kept = sum(counted(tmp_path / "two").values())
    assert kept == 4
    again = alone(*words, "-o", tmp_path / "two")
    assert [again["results"][0][name] for name in ("generated", "reused")] == [12 - kept, kept]
    whole = alone(*words, "-o", tmp_path / "one")
    assert again["results"][0]["score"] == whole["results"][0]["score"]
    assert samples(tmp_path / "one") == samples(tmp_path / "two")


def counted(output: Path) -> dict[str, int]:
    """Whole lines of every file of answers."""
    lines = {file.name: file.read_bytes().count(b"\n") for file in output.rglob("answers*.jsonl")}
    return {name: count for name, count in lines.items() if count}


def the_second_of(launcher: int) -> int:
    """The child of a launcher that is its second process."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                environment = (folder / "environ").read_bytes().split(b"\0")
            except (OSError, IndexError):
                continue  # it has ended
            if parent == launcher and b"RANK=1" in environment:
                return int(folder.name)
    raise AssertionError("there is no second process")
