"""The door to lmms-eval: absent, broken, and quiet."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.evaluation import needs_harness
from vlsi_cli.app import app
from vlsi_cli.config import harness as place
from vlsi_cli.engine.evaluation import harness
from vlsi_cli.errors import ConfigError

ROOT = Path(__file__).parents[3]


def test_without_the_harness_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(place, "installed", lambda: None)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["eval"])
    assert done.exit_code == 2
    assert f"{place.MISSING}, and benchmarks run on it\nhint: {place.INSTALL}" in done.stderr
    done = CliRunner().invoke(app, ["eval", "--bench", "mmmu_val_reasoning"])
    assert "so its other tasks are not known here" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_readme_installs_the_version_that_was_read() -> None:
    found = re.findall(r"lmms-eval==([\d.]+)", (ROOT / "README.md").read_text("utf-8"))
    assert set(found) == {place.VERSION}
    assert f"lmms-eval=={place.VERSION}" in (ROOT / "constraints.txt").read_text("utf-8")


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (
            RuntimeError("operator torchvision::nms does not exist"),
            "torchvision::nms",
            "pip uninstall torchvision",
        ),
        (
            ModuleNotFoundError("No module named 'loguru'", name="loguru"),
            "it needs the package loguru",
            "[eval]",
        ),
    ],
)
def test_a_harness_that_cannot_be_imported_is_told(
    error: Exception, message: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def broken(name: str, package: str | None = None) -> Any:
        if name.startswith("lmms_eval"):
            raise error
        return real(name, package)

    monkeypatch.setattr(place, "installed", lambda: place.VERSION)
    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ConfigError, match=message) as caught:
        harness.load()
    assert hint in str(caught.value.hint)


@needs_harness
def test_what_it_says_goes_to_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "deep" / "harness.log"
    with harness.quiet(log):
        sys.stdout.write("printed")
        sys.stderr.write("spoken")
        warnings.warn("warned", stacklevel=1)
        os.environ["FROM_A_DOT_ENV_FILE"] = "key"
        importlib.import_module("loguru").logger.info("logged")
    text = log.read_text("utf-8")
    assert "printed" in text
    assert "spoken" in text
    assert "logged" in text
    assert "FROM_A_DOT_ENV_FILE" not in os.environ
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")


@needs_harness
def test_a_command_without_standard_error_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "__stderr__", None)  # ``2>&-``
    with harness.quiet(tmp_path / "harness.log"):
        print("printed")  # noqa: T201
    assert "printed" in (tmp_path / "harness.log").read_text("utf-8")


@needs_harness
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    log = tmp_path / "harness.log"
    log.symlink_to("/dev/full")
    with harness.quiet(log):
        sys.stdout.write("printed\nand half a line")
        importlib.import_module("loguru").logger.info("logged")


@needs_harness
def test_the_log_holds_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Printed whole, in pieces, logged, in a traceback, and in a last line without an end."""
    token, password = "hf_" + "aB3" * 12, "correct-horse"
    monkeypatch.setenv("JUDGE_PASSWORD", password)
    log = tmp_path / "harness.log"
    with harness.quiet(log):
        sys.stdout.write(f"using {token}\n")
        for piece in ("Bearer ", token[:9], token[9:], " and more\r", "then\n"):
            sys.stdout.write(piece)
        importlib.import_module("loguru").logger.info(f"asking https://me:{password}@judge.example")
        try:
            raise RuntimeError(f"no access with {token}")
        except RuntimeError:
            traceback.print_exc()
        sys.stderr.write(f"the end: {password}")
    text = log.read_text("utf-8")
    assert token not in text
    assert password not in text
    for kept in (
        "using [redacted]\n",
        "and more",
        "then\n",
        "asking https://",
        "RuntimeError: no access with [redacted]",
    ):
        assert kept in text
    assert text.endswith("the end: [redacted]")


@needs_harness
def test_a_token_that_cannot_be_read_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where `HF_HOME` lies in somebody else's folder; benchmarks that need no hub need no token."""
    import huggingface_hub

    from vlsi_cli.engine.evaluation import tasks

    def unreadable() -> str:
        raise PermissionError(13, "Permission denied", "token")

    monkeypatch.setattr(huggingface_hub, "get_token", unreadable)
    assert tasks._stored_token() is None
