"""From the events of a run to its trackers: names, one count of steps over all stages, and failures that do no harm."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from vlsi_cli.engine.trackers.kinds import KINDS, Tracker
from vlsi_cli.errors import ConfigError
from vlsi_cli.events import Evaluated, Event, Events, Sampled, StageEnded, StageStarted, StepDone, Warn

HISTOGRAM_STEPS = 20  # draws of so many steps make one histogram


class Reporting:
    """An :data:`Events` function that tells trackers what they can show, and hands every event on.

    A tracker that fails is warned of once and told nothing more; the run goes on.

    Args:
        events: who else hears.
        trackers: those that have started.
        done: steps of the stages that are complete.
        resumed: whether the run was begun by an earlier process, which may have told steps that come again.
    """

    def __init__(
        self, events: Events, trackers: Sequence[Tracker], done: int, *, resumed: bool = False
    ) -> None:
        self._events, self._trackers = events, list(trackers)
        self._done, self._rewinds = done, resumed
        self._key, self._total = "", 0
        self._drawn: dict[str, list[int]] = {}

    def __call__(self, event: Event) -> None:
        """Hear an event."""
        self._events(event)
        if not self._trackers:
            return
        match event:
            case StageStarted():
                self._key, self._total, self._drawn = (
                    stage_key(event.stage, event.side),
                    event.total_steps,
                    {},
                )
                if self._rewinds:
                    self._rewinds = False
                    self._tell(lambda tracker: tracker.rewind(self._done + event.first_step))
            case StepDone():
                self._step(event)
            case Sampled():
                self._sampled(event)
            case StageEnded():
                self._done += self._total
            case Evaluated():
                self._scored(event)

    def finish(self) -> None:
        """Close every tracker; what one has to say about that is a warning."""
        self._tell(lambda tracker: tracker.finish())
        self._trackers = []

    def _step(self, event: StepDone) -> None:
        step, key = self._done + event.step, self._key
        values = {f"{key}/{name}": value for name, value in step_numbers(event).items()}
        self._tell(lambda tracker: tracker.numbers(values, step))
        for draw in event.draws:
            for small, large in draw.items():
                self._drawn.setdefault(f"{key}/matched_layers/{small}", []).extend(large)
        if self._drawn and (event.step % HISTOGRAM_STEPS == 0 or event.step == event.total):
            drawn, self._drawn = self._drawn, {}
            self._tell(lambda tracker: tracker.histograms(drawn, step))

    def _sampled(self, event: Sampled) -> None:
        layers = list(event.samples[0].answers) if event.samples else []
        columns = ["question", "reference", *(f"layer {layer}" for layer in layers)]
        rows = [[s.question, s.reference, *(s.answers[k] for k in layers)] for s in event.samples]
        name, step = f"{self._key}/samples", self._done + event.step
        self._tell(lambda tracker: tracker.table(name, columns, rows, step))

    def _scored(self, event: Evaluated) -> None:
        place = f"held_out/{event.who.replace(' ', '_')}"
        values = {f"{place}/accuracy": event.accuracy, f"{place}/loss": event.loss}
        values |= {f"{place}/accuracy_of/{kind}": share for kind, share in event.by_kind.items()}
        known = _finite(values)
        self._tell(lambda tracker: tracker.numbers(known, self._done))

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                with redirect_stdout(sys.stderr):  # standard output is for data
                    what(tracker)
            except Exception as error:  # noqa: BLE001 - whatever breaks in a tracker, the run is worth more
                self._trackers.remove(tracker)
                cause = f"{type(error).__name__}: {error}".splitlines()[0]
                self._events(
                    Warn(
                        f"{tracker.name} failed ({cause}) and is told nothing more; the run goes on, and its folder "
                        "holds everything"
                    )
                )


def step_numbers(event: StepDone) -> dict[str, float]:
    """The numbers of a step by the names they have in trackers, without those that are unknown or not finite."""
    values: dict[str, float | None] = {"loss": event.loss}
    values |= {f"loss_of_layer/{name}": loss for name, loss in event.per_layer.items()}
    values |= {f"matched/{small}": mean for small, mean in mean_matched(event.draws).items()}
    values |= {
        "learning_rate": event.learning_rate,
        "grad_norm": event.grad_norm,
        "response_tokens": event.response_tokens,
        "input_tokens": event.input_tokens,
        "seconds": event.seconds,
        "tokens_per_second": event.input_tokens / event.seconds if event.seconds else None,
        "teacher_seconds": event.teacher_seconds,
        "teacher_share": teacher_share(event),
        "memory_bytes": event.memory_bytes,
        "peak_memory_bytes": event.peak_memory_bytes,
    }
    return _finite(values)


def teacher_share(event: StepDone) -> float | None:
    """The large model's share of a step's time, 0..1; None where it is not asked."""
    if event.teacher_seconds is None or not event.seconds:
        return None
    return event.teacher_seconds / event.seconds


def mean_matched(draws: Sequence[Mapping[int, Sequence[int]]]) -> dict[int, float]:
    """The mean large layer that each small layer was matched with, over micro-batches."""
    found: dict[int, list[int]] = {}
    for draw in draws:
        for small, large in draw.items():
            found.setdefault(small, []).extend(large)
    return {small: sum(large) / len(large) for small, large in found.items()}


def stage_key(stage: str, side: str) -> str:
    """The name of a stage in the run folder and in trackers: verbalization has two."""
    return f"{stage}-{side}" if stage == "verbalization" else stage


@contextmanager
def open_trackers(
    names: Sequence[str],
    events: Events,
    *,
    folder: Path,
    project: str,
    run: str,
    resumed: bool,
    done: int,
    configuration: Mapping[str, Any],
) -> Iterator[Events]:
    """Start the trackers of a run, and close them when the block ends, however it ends.

    Args:
        names: of :data:`KINDS`; none of them: the block gets ``events`` itself.
        events: who else hears.
        folder, project, run, resumed: see :class:`Tracker`.
        done: steps of the stages that are complete.
        configuration: dotted key -> value, without secrets.

    Yields:
        The function to call with the run's events.

    Raises:
        ConfigError: a tracker does not start. Before the first step that is worth stopping for.
    """
    if not names:
        yield events
        return
    started: list[Tracker] = []
    try:
        for name in names:
            started.append(_started(name, folder, project, run, resumed, configuration))
    except BaseException:
        Reporting(events, started, done).finish()
        raise
    reporting = Reporting(events, started, done, resumed=resumed)
    try:
        yield reporting
    finally:
        reporting.finish()


def _started(
    name: str, folder: Path, project: str, run: str, resumed: bool, values: Mapping[str, Any]
) -> Tracker:
    try:
        with redirect_stdout(sys.stderr):
            tracker = KINDS[name](folder, project=project, run=run, resumed=resumed)
            tracker.configure(values)
    except Exception as error:
        cause = (str(error) or type(error).__name__).splitlines()[0]
        hint = f"leave --report-to {name} out, or mend it"
        if name == "wandb":
            hint = "run `wandb login`, or set WANDB_MODE=offline, or leave --report-to wandb out"
        raise ConfigError(f"{name} does not start: {cause}", hint=hint) from error
    return tracker


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
