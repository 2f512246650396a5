"""From the loop's progress to events for whoever watches and to lines in the run folder."""

from __future__ import annotations

import math
import time
from pathlib import Path

from vlsi_cli.engine.runs.folder import RunFolder
from vlsi_cli.engine.training import Progress
from vlsi_cli.events import CheckpointSaved, Events, StageEnded, StageReport, StageStarted, StepDone


class StageWatch:
    """Watches one stage.

    Args:
        key: the stage's key in the run folder, such as ``verbalization-large``.
        stage: its name; ``side`` which model trains.
        total: steps of the whole stage; ``first`` those already done.
    """

    def __init__(
        self, folder: RunFolder, events: Events, *, key: str, stage: str, side: str, total: int, first: int
    ) -> None:
        self._folder, self._events = folder, events
        self._key, self._stage, self._side, self._total, self._first = key, stage, side, total, first
        self._started = time.perf_counter()
        self._tokens = 0
        events(StageStarted(stage, side, total, first))

    def step(self, progress: Progress) -> None:
        """Log one optimizer step and tell of it."""
        self._tokens += progress.input_tokens
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        done = progress.step - self._first
        rate = self._tokens / elapsed
        line = {
            "stage": self._key,
            "step": progress.step,
            "loss": progress.loss,
            "terms": progress.terms,
            "learning_rate": progress.learning_rate,
            # under fp16 a norm may overflow, and JSON has no word for that
            "grad_norm": progress.grad_norm if math.isfinite(progress.grad_norm) else None,
            "response_tokens": progress.tokens,
            "input_tokens": progress.input_tokens,
            "seconds": round(progress.seconds, 4),
        }
        self._folder.append("metrics.jsonl", line)
        matched = progress.matched[-1] if progress.matched and progress.matched[-1] else None
        if matched is not None:
            drawn = [{str(s): list(large) for s, large in each.items()} for each in progress.matched]
            self._folder.append(
                "matches.jsonl", {"stage": self._key, "step": progress.step, "matched": drawn}
            )
        self._events(
            StepDone(
                stage=self._stage,
                step=progress.step,
                total=progress.total,
                loss=progress.loss,
                per_layer=progress.terms,
                matched={s: large[0] for s, large in matched.items()} if matched is not None else None,
                learning_rate=progress.learning_rate,
                grad_norm=progress.grad_norm,
                tokens_per_second=rate,
                eta_seconds=elapsed / done * (self._total - progress.step),
            )
        )

    def checkpoint(self, path: Path, step: int) -> None:
        """Tell of a checkpoint."""
        self._events(CheckpointSaved(path, self._stage, step))

    def end(self) -> StageReport:
        """Tell that the stage is over; the seconds are those of this process."""
        seconds = time.perf_counter() - self._started
        last = self._folder.last_line("metrics.jsonl", self._key)
        loss, terms = (last["loss"], last["terms"]) if last is not None else (math.nan, {})
        self._events(StageEnded(self._stage, seconds, loss, self._side))
        return StageReport(self._stage, self._side, self._total, seconds, loss, terms)
