"""The scripts of docs/examples, run as a reader would, with the `vlsi` of this environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.invariants.tree import ROOT


def run_example(name: str, folder: Path, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a shell script of the examples.

    Args:
        name: the file.
        folder: where it is run.
        variables: what it is given in its environment.
    """
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CI": "true",
        **variables,
    }
    command = ["bash", str(ROOT / "docs/examples" / name)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
