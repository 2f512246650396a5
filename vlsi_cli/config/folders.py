"""Where a run may write."""

from __future__ import annotations

import re
from pathlib import Path

from vlsi_cli.config.loading import CONFIG_FILE
from vlsi_cli.errors import ModelError, OutputError

RUNS = Path("runs")

#: The file that tells an export from any other folder.
EXPORT_REPORT = "export_report.json"


def for_new_run(output: Path | None, name: str, *, overwrite: bool = False) -> Path:
    """The folder of a new run: ``output``, or ``runs/NAME-N`` with the first free N from 1.

    Nothing is created here.

    Raises:
        OutputError: the folder holds something already, and either ``overwrite`` was not asked for or it is
            not a
            run folder, which is never overwritten.
    """
    if output is None:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
        number = 1
        while (RUNS / f"{stem}-{number}").exists():
            number += 1
        return RUNS / f"{stem}-{number}"
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file, not a folder", hint="give another --output")
    if output.is_dir() and any(output.iterdir()):
        if not (output / CONFIG_FILE).is_file():
            raise OutputError(f"{output} is not empty and not a run folder", hint="give another --output")
        if not overwrite:
            raise OutputError(
                f"{output} already holds a run",
                hint=f"continue it with `vlsi distill --resume {output}`, replace it with --overwrite, "
                "or give another --output",
            )
    return output


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
            f"the run {model} has no student yet", hint=f"finish it: vlsi distill --resume {model}"
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
