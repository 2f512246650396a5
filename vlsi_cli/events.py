"""What a run tells while it works, and what it hands back at the end: plain values, no printing, no tensors.

The engine calls an :data:`Events` function with one frozen event at a time; ``commands`` draws them. A caller
that does not care passes :func:`ignore`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vlsi_cli.errors import ProcessError


@dataclass(frozen=True)
class RunStarted:
    """The run folder exists and the stages are known, e.g. ``("verbalization", "interaction")``."""

    run: Path
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Note:
    """Something worth knowing (the pairs of target layers, a download, an estimate)."""

    text: str


@dataclass(frozen=True)
class Warn:
    """Something worth acting upon that does not stop the run (skipped records, a slow fallback)."""

    text: str


@dataclass(frozen=True)
class Lost:
    """Another machine of the run is lost: the error that this process is about to be ended with, whichever it is."""

    error: ProcessError


@dataclass(frozen=True)
class StageStarted:
    """A stage begins, or continues after a resume (then ``first_step`` > 0).

    Attributes:
        stage: ``verbalization``, ``interaction`` or ``reinforcement``.
        side: which model trains: ``small`` or ``large``.
        total_steps: optimizer steps of the whole stage.
        records: records of one step, those of all processes together.
        first_step: optimizer steps already done.
    """

    stage: str
    side: str
    total_steps: int
    records: int
    first_step: int = 0


@dataclass(frozen=True)
class StepDone:
    """One optimizer step.

    Attributes:
        step: steps done so far, from 1.
        loss: mean loss per response token, summed over the stage's terms.
        per_layer: the same per target layer, keyed by its name (``"2"``, ``"6"``, ..., ``"last"``).
        matched: small layer number -> large layer number drawn last in this step; None outside interaction.
        learning_rate: the rate used in this step.
        grad_norm: norm of the gradient before clipping.
        tokens_per_second: input tokens per second since the stage began or resumed.
        eta_seconds: expected time to the end of this stage, None while unknown.
        draws: one entry a micro-batch: small layer number -> large layer numbers; empty outside interaction.
        response_tokens: tokens that the losses are means over; ``input_tokens`` all that are not padding.
        seconds: wall-clock of the step.
        teacher_seconds: of these, what the large model's answers took; None where no large model is asked.
        memory_bytes: held after the step, ``peak_memory_bytes`` the most so far (see ``engine.gauges``); None
            where the system does not tell.
    """

    stage: str
    step: int
    total: int
    loss: float
    per_layer: Mapping[str, float]
    matched: Mapping[int, int] | None
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    eta_seconds: float | None
    draws: tuple[Mapping[int, tuple[int, ...]], ...] = ()
    response_tokens: int = 0
    input_tokens: int = 0
    seconds: float = 0.0
    teacher_seconds: float | None = None
    memory_bytes: int | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True)
class LayerSample:
    """What each layer answers to one held-out question.

    Attributes:
        record: id of the question; ``question`` its text, ``reference`` the right answer.
        answers: layer number, or ``last``, -> its own greedy answer.
    """

    record: str
    question: str
    reference: str
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Sampled:
    """The small model's layers have answered some held-out questions after a step."""

    stage: str
    step: int
    samples: tuple[LayerSample, ...]


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is complete on disk."""

    path: Path
    stage: str
    step: int


@dataclass(frozen=True)
class StageEnded:
    """A stage is over; ``final_loss`` is the loss of its last step."""

    stage: str
    seconds: float
    final_loss: float
    side: str = "small"


@dataclass(frozen=True)
class EvaluationStarted:
    """A model is about to answer ``n`` held-out questions."""

    who: str
    n: int


@dataclass(frozen=True)
class Score:
    """What a model makes of the held-out questions; a line of the final table.

    Attributes:
        who: ``small before``, ``small after`` or ``large``.
        accuracy: share of exact answers, 0..1; None when the data have no exact answers to compare with.
        loss: mean cross-entropy per response token, nats.
        n: questions asked.
        by_kind: accuracy of each kind of question, 0..1.
    """

    who: str
    accuracy: float | None
    loss: float | None
    n: int
    by_kind: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluated(Score):
    """A model has answered the held-out questions."""


@dataclass(frozen=True)
class StageReport:
    """What became of one stage.

    Attributes:
        stage: ``verbalization``, ``interaction`` or ``reinforcement``.
        side: whose: ``large`` or ``small``.
        steps: optimizer steps done.
        seconds: wall-clock time.
        final_loss: of the last step, nats a response token.
        per_layer: the same by layer.
    """

    stage: str
    side: str
    steps: int
    seconds: float
    final_loss: float
    per_layer: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What a distillation hands back.

    Attributes:
        run: the run folder.
        student: the stock checkpoint inside it, already reloaded and compared.
        scores: small before, small after, large (those that were measured).
        stages: one entry a stage, in the order in which they ran.
        seconds: wall-clock time of this process (not of the parts before a resume).
    """

    run: Path
    student: Path
    scores: tuple[Score, ...]
    stages: tuple[StageReport, ...]
    seconds: float


@dataclass(frozen=True)
class Advanced:
    """A long piece of work that is no stage has come to ``done`` of ``total`` records.

    Attributes:
        what: the work, e.g. ``cache``.
        eta_seconds: expected time to its end, None while unknown.
    """

    what: str
    done: int
    total: int
    eta_seconds: float | None


@dataclass(frozen=True)
class RunEnded:
    """The run is complete."""

    report: Report


@dataclass(frozen=True)
class BenchmarkStarted:
    """A model is about to be asked the questions of a benchmark; those answered before are not asked again."""

    model: str
    benchmark: str
    questions: int


@dataclass(frozen=True)
class AnswersDone:
    """So many answers of the running benchmark are on disk."""

    done: int
    total: int


@dataclass(frozen=True)
class ScoringStarted:
    """All answers are there, and scoring begins; with a judge it takes a while."""

    benchmark: str


@dataclass(frozen=True)
class BenchmarkEnded:
    """A model's score on a benchmark, None when there is no true one; ``reused`` answers are from earlier runs."""

    model: str
    benchmark: str
    score: float | None
    n: int
    reused: int
    missing: str | None


Event = (
    RunStarted
    | Note
    | Warn
    | Lost
    | StageStarted
    | StepDone
    | Sampled
    | CheckpointSaved
    | StageEnded
    | EvaluationStarted
    | Evaluated
    | Advanced
    | RunEnded
    | BenchmarkStarted
    | AnswersDone
    | ScoringStarted
    | BenchmarkEnded
)
Events = Callable[[Event], None]


def ignore(event: Event) -> None:
    """An :data:`Events` function for callers that do not watch."""
