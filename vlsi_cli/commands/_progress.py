"""A run as it goes: a live display on a terminal, plain lines elsewhere. Draws through ``_output``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from vlsi_cli import events as ev
from vlsi_cli.commands import _output

PLAIN_SECONDS = 10.0  # between plain lines of one stage
LATER_SECONDS = 60.0  # the same once it has run for ten minutes: a log of a long run should stay readable
LATER_AFTER = 600.0


class RunView:
    """Shows the events of a run; used as a context manager, called with each event."""

    def __init__(self) -> None:
        self._console = _output.speech()
        self._live: Live | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_line, self._opened = 0.0, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __call__(self, event: ev.Event) -> None:
        """Show one event."""
        match event:
            case ev.Warn(text):
                self._print(Text.assemble(("warning: ", "yellow"), text))
            case ev.Lost(error):
                self._close()
                _output.error(error)
            case _ if _output.is_quiet():
                return
            case ev.RunStarted(run, stages):
                self._print(f"run folder: {run} ({', '.join(stages)})")
            case ev.Note(text):
                self._print(text)
            case ev.StageStarted():
                self._open(event)
            case ev.StepDone():
                self._step(event)
            case ev.Sampled(_, step, samples):
                self._print(f"sample answers of step {step}: {len(samples)} in samples.jsonl")
            case ev.CheckpointSaved(path, _, step):
                self._print(f"checkpoint of step {step}: {path}")
            case ev.StageEnded(stage, seconds, loss, side):
                self._close()
                self._print(f"{title(stage, side)} done in {duration(seconds)}, loss {loss:.4f}")
            case ev.EvaluationStarted(who, n):
                self._print(f"asking {who}: {n} held-out questions")
            case ev.Evaluated(who, accuracy, loss, n, _):
                self._print(f"{who}: accuracy {percent(accuracy)}, loss {number(loss)} on {n}")
            case ev.Advanced():
                self._advance(event)
            case ev.RunEnded(report):
                self._close()
                self._print(f"done in {duration(report.seconds)}; the student is in {report.student}")

    def _print(self, text: str | Text) -> None:
        (self._live.console if self._live else self._console).print(text, markup=False)

    def _open(self, event: ev.StageStarted) -> None:
        self._close()
        self._last_line, self._opened = 0.0, time.monotonic()
        name = title(event.stage, event.side)
        resumed = f", continuing after step {event.first_step}" if event.first_step else ""
        steps, records = (
            f"{n:,} {what}{'s' * (n != 1)}"
            for n, what in ((event.total_steps, "step"), (event.records, "record"))
        )
        self._print(f"{name}: {steps} of {records}{resumed}")
        if self._console.is_interactive:
            self._show_bar(name, event.total_steps, event.first_step)

    def _show_bar(self, name: str, total: int, completed: int) -> None:
        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._task = self._bar.add_task(name, total=total, completed=completed)
        self._live = Live(self._bar, console=self._console, refresh_per_second=4, transient=True)
        self._live.start()

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = self._bar = self._task = None

    def _advance(self, event: ev.Advanced) -> None:
        if self._console.is_interactive and self._live is None:
            self._show_bar(event.what, event.total, event.done)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=event.done)
        elif self._is_time(last=event.done == event.total):
            self._print(f"{event.what} {event.done:,}/{event.total:,} records, left {left(event)}")

    def _is_time(self, *, last: bool) -> bool:
        """Whether the next plain line is due."""
        now = time.monotonic()
        due = last or now - self._last_line >= pace(now - self._opened)
        self._last_line = now if due else self._last_line
        return due

    def _step(self, event: ev.StepDone) -> None:
        if self._live is None or self._bar is None or self._task is None:
            if self._is_time(last=event.step == event.total):
                self._print(plain_line(event))
            return
        self._bar.update(self._task, completed=event.step)
        self._live.update(Group(self._bar, *_panel(event, self._console.width)))


def pace(seconds: float) -> float:
    """Seconds between plain lines of something that has run for so many."""
    return PLAIN_SECONDS if seconds < LATER_AFTER else LATER_SECONDS


def plain_line(event: ev.StepDone) -> str:
    """One step on one line, for logs."""
    parts = [f"{event.stage} {event.step}/{event.total}", f"loss {event.loss:.4f}"]
    parts.append("layers " + " ".join(f"{name}:{loss:.3f}" for name, loss in event.per_layer.items()))
    if event.matched:
        parts.append("matched " + " ".join(f"{small}>{large}" for small, large in event.matched.items()))
    parts += [
        f"lr {event.learning_rate:.2e}",
        f"grad {event.grad_norm:.2f}",
        f"{event.tokens_per_second:,.0f} tokens/s",
    ]
    if event.memory_bytes is not None:
        parts.append(f"memory {gibibytes(event.memory_bytes)}")
    parts.append(f"left {left(event)}")
    return ", ".join(parts)


def _panel(event: ev.StepDone, width: int) -> list[RenderableType]:
    """What stands below the bar: figures of the step that wrap, and layers side by side, in as many rows as fit."""
    figures = {
        "loss": f"{event.loss:.4f}",
        "lr": f"{event.learning_rate:.2e}",
        "grad": f"{event.grad_norm:.2f}",
        "tokens/s": f"{event.tokens_per_second:,.0f}",
    }
    if event.memory_bytes is not None:
        figures["memory"] = gibibytes(event.memory_bytes)
    if event.teacher_seconds is not None and event.seconds:
        figures["teacher"] = f"{event.teacher_seconds / event.seconds:.0%}"
    figures["left"] = left(event)
    lines = [""]
    for name, figure in figures.items():
        longer = f"{lines[-1]}  {name} {figure}" if lines[-1] else f"{name} {figure}"
        if len(longer) > width:
            lines.append(f"{name} {figure}")
        else:
            lines[-1] = longer
    large = {str(small): str(number) for small, number in (event.matched or {}).items()}
    cells = [(name, f"{loss:.2f}", large.get(name, "")) for name, loss in event.per_layer.items()]
    column = max(len(text) for cell in cells for text in cell) + 1
    fit = max(1, (width - len("layer ")) // column)
    tables = [_layers(cells[first : first + fit], matched=bool(large)) for first in range(0, len(cells), fit)]
    return [Text("\n".join(lines)), *tables]


def _layers(cells: Sequence[tuple[str, str, str]], *, matched: bool) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    rows = [("layer", 0), ("loss", 1), *([("large", 2)] if matched else [])]
    for name, place in rows:
        table.add_row(Text(name, style="dim"), *(cell[place] for cell in cells))
    return table


def gibibytes(count: int) -> str:
    """Bytes of memory as people read them."""
    return f"{count / 2**30:.2f} GiB"


def left(event: ev.StepDone | ev.Advanced) -> str:
    """Time to the end of the stage, or of other work."""
    return "?" if event.eta_seconds is None else duration(event.eta_seconds)


def title(stage: str, side: str) -> str:
    """A stage by name, with the model that trains."""
    return f"{stage} ({side})"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours = minutes // 60
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{hours} h {minutes % 60:02d} min" if hours < 72 else f"{hours // 24:,} days {hours % 24:02d} h"


def percent(share: float | None) -> str:
    """A share as a percentage; a dash when it was not measured."""
    return "-" if share is None else f"{100 * share:.1f} %"


def number(value: float | None) -> str:
    """A loss; a dash when it was not measured."""
    return "-" if value is None else f"{value:.4f}"
