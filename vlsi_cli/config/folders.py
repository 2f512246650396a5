"""Where a run may write."""

from __future__ import annotations

import re
from pathlib import Path

from vlsi_cli.config.loading import CONFIG_FILE
from vlsi_cli.errors import OutputError

RUNS = Path("runs")


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
