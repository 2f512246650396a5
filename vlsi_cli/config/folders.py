"""Where a run may write."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

from vlsi_cli.config.loading import CONFIG_FILE, Resolved, difference, load_saved
from vlsi_cli.config.run import DistillConfig
from vlsi_cli.errors import CheckpointError, ModelError, OutputError

RUNS = Path("runs")

#: The file that tells an export from any other folder.
EXPORT_REPORT = "export_report.json"


#: What stands in a run folder before its configuration does: a kill in between leaves no run, and nothing to keep.
_BEFORE_CONFIG = {".lock", "environment.json", "origins.json", "progress.json"}
#: What stands in it before the first step, scores and what they are made of left out; the last two are trackers'.
BEFORE_WORK = _BEFORE_CONFIG | {CONFIG_FILE, "trackers.json", "data.json", "tensorboard", "wandb"}


def holds_something(folder: Path) -> bool:
    """Whether a folder holds more than what a run leaves that was refused or killed before it had done anything."""
    if is_barren(folder):
        return False
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return any(not (name in _BEFORE_CONFIG or _is_half(name)) for name in names)


def is_barren(folder: Path, *, but_for: str | None = None) -> bool:
    """Whether this is the folder of a run that has done nothing yet: no step, no checkpoint, no score.

    Nothing is lost when another run takes it. A process may be at work in it all the same, loading its models: that is
    the lock's to say.

    Args:
        but_for: something that may lie in it besides.
    """
    if not (folder / CONFIG_FILE).is_file():
        return False
    allowed = BEFORE_WORK | {but_for}
    if any(not (path.name in allowed or _is_half(path.name)) for path in folder.iterdir()):
        return False
    try:
        progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        return not (progress["stages"] or progress["scores"] or progress["student"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return False


def _is_half(name: str) -> bool:
    return re.fullmatch(r"\..*\.partial\.\w+", name) is not None


def claim(name: str) -> Path:
    """Make the folder of a new run that was given none: ``runs/NAME-N`` with the first free N from 1.

    The name is taken as it is found to be free, so that runs that begin at the same moment get one each.

    Raises:
        OSError: it cannot be made.
    """
    RUNS.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = RUNS / f"{_stem(name)}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def require_free(output: Path, *, overwrite: bool = False) -> None:
    """Refuse a folder that no new run may have. Nothing is created here.

    Raises:
        OutputError: the folder holds something already, and either ``overwrite`` was not asked for or it is not a run
            folder, which is never overwritten.
    """
    require_readable_name(output)
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file, not a folder", hint="give another --output")
    if holds_something(output):
        if not (output / CONFIG_FILE).is_file():
            raise OutputError(f"{output} is not empty and not a run folder", hint="give another --output")
        if not overwrite:
            raise OutputError(
                f"{output} already holds a run",
                hint=f"continue it with `vlsi distill --resume {shlex.quote(str(output))}`, "
                "replace it with --overwrite, or give another --output",
            )


def require_readable_name(folder: Path) -> None:
    """Refuse a folder for weights whose name is not UTF-8: safetensors would write there, and could not read it.

    Raises:
        OutputError: it is such a one.
    """
    try:
        os.fsencode(folder).decode("utf-8")
    except UnicodeDecodeError:
        raise OutputError(
            f"{folder} cannot hold weights: its name is not UTF-8", hint="give another --output"
        ) from None


def to_go_on_with(output: Path | None, resolved: Resolved) -> Path | None:
    """What ``--resume auto`` goes on with, or None when there is nothing and a run is to be started.

    With an ``output``, the run in it, complete or not; one of another configuration that has done nothing yet was
    refused or killed, and the configuration mended: it is nothing. Without one, the unfinished run of the very same
    configuration with the highest number under ``runs/``. Numbers and files decide, never a clock.

    Raises:
        OutputError: ``output`` holds a run of another configuration.
        CheckpointError: the configuration of the run in it is damaged.
    """
    if output is not None:
        if not (output / CONFIG_FILE).is_file():
            return None
        if differs := difference(load_saved(output).config, resolved.config):
            if is_barren(output):
                return None
            raise OutputError(
                f"{output} holds a run of another configuration: {differs}",
                hint=f"give another --output, replace it with --overwrite, or go on with it as it is: "
                f"`vlsi distill --resume {shlex.quote(str(output))}`",
            )
        return output
    named = re.compile(re.escape(_stem(resolved.config.name)) + r"-([1-9]\d*)")
    matches = [named.fullmatch(path.name) for path in RUNS.iterdir()] if RUNS.is_dir() else []
    for number in sorted((int(match[1]) for match in matches if match), reverse=True):
        folder = RUNS / f"{_stem(resolved.config.name)}-{number}"
        try:
            same = load_saved(folder).config == resolved.config
        except CheckpointError:  # no run, or one that nobody can go on with
            continue
        if same and not is_finished(folder, resolved.config):
            return folder
    return None


def is_finished(folder: Path, config: DistillConfig) -> bool:
    """Whether a run has come to its end: its student is written, and measured where that is asked for."""
    try:
        progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        measured = config.evaluation.data is None or "small after" in progress["scores"]
        return bool(progress["student"]) and measured
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return False


def _stem(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"


def model_of_run(model: str) -> str:
    """The student of a run folder; anything else as it is.

    Raises:
        ModelError: the run has no student yet.
    """
    folder = Path(model).expanduser()
    if not (folder / CONFIG_FILE).is_file():
        return model
    if not (folder / "student" / "config.json").is_file():
        raise ModelError(
            f"the run {model} has no student yet",
            hint=f"finish it: vlsi distill --resume {shlex.quote(str(model))}",
        )
    return str(folder / "student")


def for_export(output: Path | None, model: str, name: str, *, overwrite: bool = False) -> Path:
    """The folder of an export: ``output``; or ``exports/NAME`` in a run folder; or ``exports/MODEL-NAME`` here.

    Nothing is created here.

    Args:
        model: as the user typed it.
        name: what is exported, e.g. ``onnx-int8``.

    Raises:
        OutputError: the folder holds something already, and either ``overwrite`` was not asked for or it is not an
            export, which is never overwritten.
    """
    if output is None:
        folder = Path(model).expanduser()
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name if folder.is_dir() else model).strip("-.")
        is_run = (folder / CONFIG_FILE).is_file()
        output = folder / "exports" / name if is_run else Path("exports") / f"{stem}-{name}"
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file, not a folder", hint="give another --output")
    if output.is_dir() and any(output.iterdir()):
        if not (output / EXPORT_REPORT).is_file():
            raise OutputError(f"{output} is not empty and not an export", hint="give another --output")
        if not overwrite:
            raise OutputError(
                f"{output} already holds an export",
                hint="replace it with --overwrite, or give another --output",
            )
    return output
