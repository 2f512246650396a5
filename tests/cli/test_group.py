"""The command line as a whole: what is taken everywhere, and how words that cannot be read are told."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import typer.main
from typer.testing import CliRunner, Result

from vlsi_cli.app import app
from vlsi_cli.commands import _output
from vlsi_cli.config import recipes


def vlsi(*words: str) -> Result:
    return CliRunner().invoke(app, words, prog_name="vlsi")


def every_command(command: Any, name: str = "vlsi") -> Iterator[tuple[str, Any]]:
    yield name, command
    for inner, below in getattr(command, "commands", {}).items():
        yield from every_command(below, f"{name} {inner}")


def test_every_command_takes_the_options_of_the_program() -> None:
    commands = dict(every_command(typer.main.get_command(app)))
    assert {"vlsi", "vlsi distill", "vlsi eval compare", "vlsi cache build"} <= set(commands)
    for name, command in commands.items():
        words = [word for option in command.params for word in option.opts]
        assert {"--verbose", "-v", "--quiet", "-q"} <= set(words), name
        assert len(words) == len(set(words)), f"{name} has an option twice"


@pytest.mark.parametrize(
    ("words", "verbose", "quiet"),
    [
        ("recipes ls", False, False),
        ("--quiet recipes ls", False, True),
        ("recipes -q ls", False, True),
        ("recipes ls -q", False, True),
        ("-v recipes -q ls --verbose", True, True),
        ("eval --list --quiet", False, True),
    ],
)
def test_an_option_of_the_program_may_stand_anywhere(words: str, verbose: bool, quiet: bool) -> None:
    assert vlsi(*words.split()).exit_code == 0
    assert (_output._state.verbose, _output._state.quiet) == (verbose, quiet)


def test_after_the_command_it_does_what_it_does_before() -> None:
    assert "Traceback" not in vlsi("recipes", "show", "dmeo").stderr
    assert "Traceback" in vlsi("recipes", "show", "dmeo", "-v").stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("distill --recpie demo", "no such option: --recpie"),
        ("distill --seed x", "invalid value for '--seed'"),
        ("cache info", "missing argument 'DIR'"),
        ("distil", "no such command 'distil'"),
        ("--recipe", "no such option: --recipe"),
    ],
)
def test_words_that_cannot_be_read_are_told_as_json_too(words: str, message: str) -> None:
    done = vlsi(*words.split(), "--json")
    assert done.exit_code == 2
    (error,) = json.loads(done.stdout).values()
    assert (error["type"], error["exit_code"]) == ("ConfigError", 2)
    assert message in error["message"]
    assert error["hint"].startswith("see vlsi")
    assert error["hint"].endswith("--help")
    assert "Error" in done.stderr
    assert vlsi(*words.split()).stdout == ""


def test_json_after_the_arguments_of_a_launcher_is_the_launchers() -> None:
    done = vlsi("distill", "--colour", "--", "--json")
    assert (done.exit_code, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("ci", "quiet", "hidden"), [("", False, False), ("", True, True), ("true", False, True)]
)
def test_a_quiet_command_and_a_job_of_ci_have_no_bars_of_downloads(
    ci: str, quiet: bool, hidden: bool
) -> None:
    """Told to the hub's client before it is imported, which no test of this process could see."""
    program = (
        f"from vlsi_cli.commands import _output; _output.begin(); _output.also(quiet={quiet});"
        "from huggingface_hub.utils import are_progress_bars_disabled as bars; print(bars())"
    )
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env | {"CI": ci}, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(hidden), done.stderr


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_what_a_library_makes_of_an_interrupt_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, number: str, code: int
) -> None:
    """As transformers does where an import is broken off: it says that the module is missing."""

    def broken() -> list[str]:
        try:
            signal.raise_signal(signal.Signals[number])
        except KeyboardInterrupt:
            raise ModuleNotFoundError("Could not import module 'AutoTokenizer'") from None
        return []

    monkeypatch.setattr(recipes, "names", broken)
    done = vlsi("recipes", "ls")
    assert (done.exit_code, done.stdout, done.stderr) == (code, "", "warning: interrupted\n")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_command_of_one_process_is_not_started_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for name, words in (
        ("cache build", "somewhere"),
        ("data check", "patterns"),
        ("plan", ""),
        ("eval compare", "a b"),
    ):
        done = vlsi(*name.split(), *words.split())
        assert done.exit_code == 2
        assert done.stderr.startswith(f"error: vlsi {name} runs in one process, and 2 were started")
        assert "without torchrun" in done.stderr
    for words in ("distill --dry-run --json", "eval --list", "data answer --help"):
        assert vlsi(*words.split()).exit_code == 0


def test_an_interrupt_that_a_callback_swallowed_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's import system has such callbacks, which cannot pass on what they raise."""

    def working() -> list[str]:
        gone = type("Gone", (), {})()
        watched = weakref.ref(gone, lambda _: signal.raise_signal(signal.SIGINT))
        del gone
        assert watched() is None
        time.sleep(30)
        return []

    monkeypatch.setattr(recipes, "names", working)
    done = vlsi("recipes", "ls")
    assert (done.exit_code, done.stderr) == (130, "warning: interrupted\n")


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/a/b"),
            1,
            "/a/b cannot be used: Permission denied",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "b" * 300),
            1,
            f"{'b' * 200}... cannot be used: File name",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", b"/a/b"),
            6,
            "/a/b cannot be written: no space is left",
        ),
        (OSError(errno.EMFILE, "Too many open files", "/a"), 1, "too many files are open"),
    ],
    ids=lambda value: getattr(value, "strerror", None),
)
def test_what_the_machine_refuses_is_no_defect(
    monkeypatch: pytest.MonkeyPatch, error: OSError, code: int, sentence: str
) -> None:
    monkeypatch.setattr(recipes, "names", Mock(side_effect=error))
    done = vlsi("recipes", "ls")
    assert done.exit_code == code
    assert done.stderr.startswith(f"error: {sentence}")
    assert "Traceback" not in done.stderr
    assert "Traceback" in vlsi("recipes", "ls", "-v").stderr


def test_the_home_folder_of_nobody() -> None:
    done = vlsi("data", "check", "~nobody-at-all/x.json")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: the home folder that ~ stands for is not known here")


def test_an_empty_word_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes from a variable that is not set, and would be taken for the folder that one is in."""
    monkeypatch.chdir(tmp_path)
    for words, behind in (
        (["eval", "-o", "", "--limit", "1"], "-o"),
        (["distill", "--output=", "--dry-run"], "--output"),
        (["recipes", "cp", "demo", ""], "demo"),
        (["verbalize", ""], "verbalize"),
    ):
        done = vlsi(*words)
        assert done.exit_code == 2
        assert done.stderr.startswith(f"error: an empty word stands behind {behind}\n")
    assert json.loads(vlsi("cache", "info", "", "--json").stdout)["error"]["exit_code"] == 2
    assert not list(tmp_path.iterdir())


def test_a_python_without_docstrings_is_refused() -> None:
    command = [sys.executable, "-OO", "-m", "vlsi_cli", "recipes", "ls"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "started without docstrings" in done.stderr


def test_a_folder_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        os, "getcwd", Mock(side_effect=FileNotFoundError(errno.ENOENT, "No such file or directory"))
    )
    done = vlsi("recipes", "ls")
    assert done.exit_code == 2
    assert done.stderr.startswith(
        "error: the folder in which this command was started does not exist any more\n"
    )


def test_a_command_of_one_process_speaks_whatever_rank_a_cluster_gives_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "demo-large" in vlsi("recipes", "ls").stdout
    done = vlsi("recipes", "show", "dmeo")
    assert done.stderr.startswith("error: ")
