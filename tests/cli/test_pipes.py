"""Readers that go away: a command goes on and says so by its exit code alone, as a Unix tool does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pairs import tiny_pair

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes of another kind")

TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
PROGRAM = (sys.executable, "-m", "vlsi_cli")
SHORT = (
    "teacher=null",
    "verbalization=null",
    "interaction=null",
    "evaluation.data=null",
    "checkpoint_every=1",
)


def test_data_that_nobody_reads_end_the_command_quietly() -> None:
    command = subprocess.Popen([*PROGRAM, "recipes", "ls"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    with command.stderr:
        assert command.stderr.read() == b""
    assert command.wait(300) == 141


@pytest.mark.parametrize("json_too", [False, True])
def test_a_terminal_of_few_letters_gets_the_others_as_it_can_show_them(
    json_too: bool, tmp_path: Path
) -> None:
    """People get a question mark, programs the letter itself, in the way of JSON."""
    name = "d\N{LATIN SMALL LETTER E WITH ACUTE}mo"
    recipe = tmp_path / "recipe.yaml"
    text = f"name: {name}\nstudent: demo/small\ndata: {{sources: [{{kind: patterns}}]}}\n"
    alone = "teacher: null\nverbalization: null\ninteraction: null\nreinforcement: {steps: 1}\n"
    recipe.write_text(text + alone, "utf-8")
    words = [*PROGRAM, "recipes", "show", str(recipe), *(["--json"] if json_too else [])]
    done = subprocess.run(
        words, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    if json_too:
        assert json.loads(done.stdout)["name"] == name
    else:
        assert done.stdout.startswith(b"name: d?mo")


def test_a_command_does_without_standard_streams(tmp_path: Path) -> None:
    command = f"{sys.executable} -m vlsi_cli recipes cp demo mine.yaml --json <&- >&-"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "mine.yaml").read_text("utf-8").startswith("# demo: ")
    done = subprocess.run(["sh", "-c", f"{command} 2>&-"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 6  # it is there already; nobody hears so


def test_an_error_keeps_its_code_though_nobody_reads_it() -> None:
    words = ["recipes", "show", "nothing-of-the-kind"]
    command = subprocess.Popen([*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert command.stdout is not None
    command.stdout.close()
    assert command.wait(300) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_under_what_is_printed_costs_no_work() -> None:
    """A log that cannot be written is left out; data that cannot are an error, told in one sentence."""
    for words, code in ((["recipes", "show", "nothing-of-the-kind"], 2), (["recipes", "ls"], 0)):
        with open("/dev/full", "w") as full:
            assert subprocess.run([*PROGRAM, *words], stderr=full, check=False).returncode == code
    with open("/dev/full", "w") as full:
        done = subprocess.run([*PROGRAM, "recipes", "ls"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 6
    assert done.stderr == b"error: standard output cannot be written: no space is left on the disk\n"


def test_a_training_whose_log_nobody_reads_any_more_goes_on(tmp_path: Path) -> None:
    """As under ``2>&1 | head -1``: it trains to its end, and only the table at the end is lost."""
    _, small = tiny_pair(tmp_path)
    sets = [*SHORT, f"student.id={small}", "reinforcement.steps=3", "reinforcement.batch_size=2"]
    words = [
        "distill",
        "--output",
        str(tmp_path / "run"),
        *(word for each in sets for word in ("--set", each)),
    ]
    command = subprocess.Popen([*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert command.stdout is not None
    assert command.stdout.readline().startswith(b"run folder: ")
    command.stdout.close()
    assert command.wait(300) == 141
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").count("\n") == 3


def test_a_terminal_that_is_closed_stops_a_training_with_a_checkpoint(tmp_path: Path) -> None:
    """The system sends SIGHUP, and writing to what was the terminal fails from then on."""
    _, small = tiny_pair(tmp_path)
    sets = [*SHORT, f"student.id={small}", "reinforcement.steps=100000", "reinforcement.batch_size=2"]
    words = [
        "distill",
        "--output",
        str(tmp_path / "run"),
        *(word for each in sets for word in ("--set", each)),
    ]
    ours, theirs = os.openpty()
    take = (sys.executable, "-c", TAKE_TERMINAL, *PROGRAM)  # as a shell of that terminal would start it
    command = subprocess.Popen(
        [*take, *words], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    said = b""
    while b"checkpoint of step" not in said:
        said += os.read(ours, 4096)
    os.close(ours)
    assert command.wait(300) == 129
    (checkpoint, *_) = sorted((tmp_path / "run" / "checkpoints").iterdir(), reverse=True)
    assert (checkpoint / "state.json").is_file()
