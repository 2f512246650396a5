"""Runs that are killed after one of their steps: children of one process that has imported all that a run needs.

Importing takes longer than a tiny run. ``python -m tests.runs.killed``, with a list of runs as JSON on standard input,
prints how each ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.runs.conftest import SHORT

#: Stage, side and step.
At = tuple[str, str, int]


def kill(pair: tuple[Path, Path], runs: Mapping[Path, tuple[At, tuple[str, ...]]]) -> None:
    """Run into each folder, with its own settings besides those of all, up to SIGKILL behind its step."""
    large, small = pair
    models = [f"teacher.id={large}", f"student.id={small}", *SHORT]
    asked = [
        {"output": str(output), "at": at, "sets": [*models, *sets]} for output, (at, sets) in runs.items()
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.runs.killed", str(small)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [-signal.SIGKILL] * len(runs), done.stderr


def live(output: str, at: list[Any], sets: list[str]) -> None:
    """A child's whole life."""
    from vlsi_cli import events
    from vlsi_cli.config.loading import resolve
    from vlsi_cli.engine.runs.distill import run

    seen: list[list[str]] = []

    def watch(event: object) -> None:
        if isinstance(event, events.StageStarted):
            seen.append([event.stage, event.side])
        if isinstance(event, events.StepDone) and [*seen[-1], event.step] == at:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        run(resolve("demo", sets), output=Path(output), events=watch)
    finally:
        os._exit(1)


def main() -> None:
    from tests.quick import do_not_wait, set_aside
    from vlsi_cli.engine.backbones.load import load_backbone
    from vlsi_cli.engine.runs import distill

    assert distill
    do_not_wait()
    load_backbone(sys.argv[1])  # nothing is computed: autograd that has run before a fork does not survive it
    set_aside()
    codes = []
    for asked in json.load(sys.stdin):
        child = os.fork()
        if child == 0:
            live(**asked)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    sys.stdout.write(json.dumps(codes) + "\n")


if __name__ == "__main__":
    main()
