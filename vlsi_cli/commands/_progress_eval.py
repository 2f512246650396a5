"""An evaluation as it goes: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from vlsi_cli import events as ev
from vlsi_cli.commands import _output
from vlsi_cli.commands._progress import pace


class EvaluationView:
    """Shows the events of an evaluation; used as a context manager, called with each event.

    It holds on to the console that it began with: the harness's own output goes elsewhere meanwhile.
    """

    def __init__(self) -> None:
        self._console = _output.speech()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last = self._opened = 0.0

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
            case ev.BenchmarkStarted(model, benchmark, questions):
                self._open(f"{model} on {benchmark}", questions)
            case ev.AnswersDone(done, total):
                self._step(done, total)
            case ev.ScoringStarted(benchmark):
                self._close()
                self._print(f"scoring {benchmark}")
            case ev.BenchmarkEnded(model, benchmark, score, n, reused, missing):
                self._close()
                shown = f"no score ({missing})" if score is None else f"{score:.3g}"
                before = f", {reused} answers from before" if reused else ""
                self._print(f"{model} on {benchmark}: {shown} on {n} questions{before}")

    def _print(self, text: str | Text) -> None:
        (self._bar.console if self._bar else self._console).print(text, markup=False)

    def _open(self, title: str, total: int) -> None:
        self._close()
        self._last = self._opened = time.monotonic()
        if not self._console.is_interactive:
            self._print(f"{title}: {total} questions")
            return
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task(title, total=total)
        self._bar.start()

    def _step(self, done: int, total: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif (now := time.monotonic()) - self._last >= pace(now - self._opened):
            self._last = now
            self._print(f"{done}/{total} answers")

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None
