"""Stored results: JSON lines, appended whole, read by whoever wants them.

A line holds the settings, the run, the pair's fingerprint and what came out, so a result can never be taken for that
of other settings or other weights.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.proof.settings import Run, Settings
from vlsi_cli.engine.backbones.folders import resolve_folder
from vlsi_cli.engine.files import file_sha256

FOLDER = Path(__file__).parent / "results"
GRID = FOLDER / "grid.jsonl"
PILOTS = FOLDER / "pilots.jsonl"
DIAGNOSIS = FOLDER / "diagnosis.jsonl"


def fingerprint(settings: Settings) -> dict[str, str]:
    """The two models by the hashes of their weights, shortened to 12 digits."""
    folders = {"large": resolve_folder(settings.large), "small": resolve_folder(settings.small)}
    return {side: file_sha256(folder / "model.safetensors")[:12] for side, folder in folders.items()}


def append(file: Path, line: dict[str, Any]) -> None:
    """Add one line, whole, whoever else is adding; what a killed process left of its last line goes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = (json.dumps(line, sort_keys=True) + "\n").encode()
    with file.open("a+b") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.seek(0)
        whole = handle.read().rfind(b"\n") + 1
        handle.truncate(whole)
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())


def read(file: Path) -> list[dict[str, Any]]:
    """Every whole line, in order; a last line without its end is not one."""
    if not file.is_file():
        return []
    whole, _, _ = file.read_text("utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines() if line]


@dataclass(frozen=True)
class Store:
    """The results of one grid: those of these settings and this pair.

    Attributes:
        file: where lines are.
        settings: those asked for.
        pair: fingerprint asked for.
    """

    file: Path
    settings: Settings
    pair: dict[str, str]

    def load(self) -> dict[Run, dict[str, Any]]:
        """What is done: run -> what came out (the first line of a run counts)."""
        done: dict[Run, dict[str, Any]] = {}
        for line in read(self.file):
            if line["pair"] == self.pair and Settings.from_json(line["settings"]) == self.settings:
                done.setdefault(Run(**line["run"]), line["result"])
        return done

    def add(self, run: Run, result: dict[str, Any]) -> None:
        """Store one run."""
        line = {
            "settings": self.settings.to_json(),
            "pair": self.pair,
            "run": run.to_json(),
            "result": result,
        }
        append(self.file, line)
