"""From the loop's progress to events for whoever watches and to lines in the run folder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vlsi_cli.engine.data.report import DataReport
from vlsi_cli.engine.gauges import DeviceClock, forget_peak, memory_in_use, peak_memory
from vlsi_cli.engine.runs.folder import RunFolder
from vlsi_cli.engine.trackers.reporting import mean_matched
from vlsi_cli.engine.training import Progress
from vlsi_cli.events import CheckpointSaved, Events, StageEnded, StageReport, StageStarted, StepDone, Warn

#: Keys of a line in ``metrics.jsonl`` that depend on the machine and the moment: two equal runs differ in them.
VOLATILE = frozenset({"seconds", "teacher_seconds", "memory_bytes", "peak_memory_bytes"})

_WRITTEN_IMAGE = (
    "data: the text of {} holds <img>...</img>, which is trained on as words, and no picture is read there; "
    "`vlsi data check` counts such records"
)


class StageWatch:
    """Watches one stage.

    Args:
        key: the stage's key in the run folder, such as ``verbalization-large``.
        stage: its name; ``side`` which model trains.
        total: steps of the whole stage; ``first`` those already done.
        records: of one step, in all processes.
        device: whose memory is told.
        teacher_clock: time spent on the large model; None where none is asked.
        sample: called after each step with its number, to take sample answers when they are due.
        data: what became of the records so far; those left out of the first step are told at once, since a wrong
            folder of images is better known before the stage has run; and so is a text that names a picture.
    """

    def __init__(
        self,
        folder: RunFolder,
        events: Events,
        *,
        key: str,
        stage: str,
        side: str,
        total: int,
        first: int,
        records: int,
        device: torch.device,
        teacher_clock: DeviceClock | None = None,
        sample: Callable[[int], None] = lambda step: None,
        data: DataReport | None = None,
    ) -> None:
        self._folder, self._events = folder, events
        self._key, self._stage, self._side, self._total, self._first = key, stage, side, total, first
        self._device, self._clock, self._sample = device, teacher_clock, sample
        self._data = self._all_data = data
        self._started = time.perf_counter()
        self._tokens = 0
        forget_peak(device)
        events(StageStarted(stage, side, total, records, first))

    def step(self, progress: Progress) -> None:
        """Log one optimizer step and tell of it."""
        self._tokens += progress.input_tokens
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        done = progress.step - self._first
        matched = progress.matched[-1] if progress.matched and progress.matched[-1] else None
        event = StepDone(
            stage=self._stage,
            step=progress.step,
            total=progress.total,
            loss=progress.loss,
            per_layer=progress.terms,
            matched={s: large[0] for s, large in matched.items()} if matched is not None else None,
            learning_rate=progress.learning_rate,
            grad_norm=progress.grad_norm,
            tokens_per_second=self._tokens / elapsed,
            eta_seconds=elapsed / done * (self._total - progress.step),
            draws=tuple(progress.matched) if matched is not None else (),
            response_tokens=progress.tokens,
            input_tokens=progress.input_tokens,
            seconds=progress.seconds,
            teacher_seconds=self._clock.take() if self._clock is not None else None,
            memory_bytes=memory_in_use(self._device),
            peak_memory_bytes=peak_memory(self._device),
        )
        if self._data is not None and self._data.skipped:
            last = self._data.last
            more = f"; {last.hint}" if last is not None and last.hint else ""
            self._events(Warn(f"data of the first step: {self._data.summary()}; the last: {last}{more}"))
        self._data = None
        if self._all_data is not None and self._all_data.written_image:
            self._events(Warn(_WRITTEN_IMAGE.format(self._all_data.written_image)))
            self._all_data = None  # once
        self._note(event)
        self._events(event)
        self._sample(progress.step)

    def _note(self, event: StepDone) -> None:
        line = {
            "stage": self._key,
            "step": event.step,
            "loss": event.loss,
            "terms": event.per_layer,
            "learning_rate": event.learning_rate,
            # under fp16 a norm may overflow, and JSON has no word for that
            "grad_norm": event.grad_norm if math.isfinite(event.grad_norm) else None,
            "response_tokens": event.response_tokens,
            "input_tokens": event.input_tokens,
            "seconds": round(event.seconds, 4),
            "memory_bytes": event.memory_bytes,
            "peak_memory_bytes": event.peak_memory_bytes,
        }
        if event.teacher_seconds is not None:
            line["teacher_seconds"] = round(event.teacher_seconds, 4)
        if event.draws:
            line["matched"] = {str(small): mean for small, mean in mean_matched(event.draws).items()}
            drawn = [{str(s): list(large) for s, large in each.items()} for each in event.draws]
            self._folder.append("matches.jsonl", {"stage": self._key, "step": event.step, "matched": drawn})
        self._folder.append("metrics.jsonl", line)

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
