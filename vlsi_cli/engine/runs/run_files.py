"""A run folder read back as plain values, while the run goes on or afterwards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlsi_cli.config.folders import is_finished
from vlsi_cli.config.loading import load_saved
from vlsi_cli.config.run import DistillConfig
from vlsi_cli.engine.runs.folder import RunFolder
from vlsi_cli.errors import CheckpointError
from vlsi_cli.events import Score, StageReport


@dataclass(frozen=True)
class Run:
    """A run folder as it was when it was read; what is in its logs is read when it is asked for.

    Attributes:
        path: the folder.
        config: its configuration.
        stages: those that are complete, in the order in which they ran.
        scores: ``small before``, ``small after``, ``large``: those that were measured.
        student: its stock checkpoint; None before it is written.
        finished: whether nothing is left to do.
    """

    path: Path
    config: DistillConfig
    stages: tuple[StageReport, ...]
    scores: tuple[Score, ...]
    student: Path | None
    finished: bool

    def metrics(self, stage: str | None = None) -> list[dict[str, Any]]:
        """Lines of ``metrics.jsonl``, one an optimizer step; ``docs/watching.md`` has their keys.

        Args:
            stage: only those of ``verbalization-large``, ``verbalization-small``, ``interaction`` or
                ``reinforcement``.

        Raises:
            CheckpointError: the file cannot be read, or a line of it but the last.
        """
        lines = read_lines(self.path / "metrics.jsonl")
        return [line for line in lines if stage is None or line.get("stage") == stage]

    def matches(self) -> list[dict[str, Any]]:
        """Lines of ``matches.jsonl``, one an interaction step.

        ``matched`` has an entry a micro-batch: small target layer, as text, -> the large ones that it was matched with.

        Raises:
            CheckpointError: as :meth:`metrics`.
        """
        return read_lines(self.path / "matches.jsonl")

    def samples(self) -> list[dict[str, Any]]:
        """Lines of ``samples.jsonl``: sample answers of the layers on the way, where they were asked for.

        Raises:
            CheckpointError: as :meth:`metrics`.
        """
        return read_lines(self.path / "samples.jsonl")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a log of a run, one a line; none where there is no file.

    A last line that is no JSON is left out: the run is writing it, or was killed while it did.

    Raises:
        CheckpointError: it cannot be read, or another line of it is no object.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError(f"a {type(value).__name__} instead of an object")
            found.append(value)
        except (ValueError, RecursionError) as error:
            if number == len(lines) and isinstance(error, json.JSONDecodeError):
                break
            raise CheckpointError(f"{file}:{number} is damaged: {error}") from error
    return found


def read_run(path: Path) -> Run:
    """Read a run folder; see :func:`vlsi_cli.read_run`."""
    config = load_saved(path).config
    state = RunFolder.open(path).state
    scores = (state.scores.get(who) for who in ("small before", "small after", "large"))
    return Run(
        path=path,
        config=config,
        stages=tuple(state.stages.values()),
        scores=tuple(score for score in scores if score is not None),
        student=path / "student" if state.student else None,
        finished=is_finished(path, config),
    )
