"""From what the harness hands back to a score that can be trusted, and to differences between two models."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlsi_cli.config.benchmarks import Benchmark

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass
class Sample:
    """One question as it was answered and scored; a line of `samples.jsonl`.

    Attributes:
        id: task and row.
        digest: digest of the row, so that runs on different data are never paired.
        answer: what the model said; for a choice by likelihood, the losses.
        target: what the data give.
        score: this sample's part of the score, on its scale; None where the metric has no such parts.
        question: what was asked, as the task wrote it; "" in folders of earlier versions.
    """

    id: str
    digest: str
    answer: Any
    target: Any
    score: float | None = None
    question: str = ""


@dataclass
class Result:
    """What a model reaches on a benchmark.

    Attributes:
        benchmark: its name; ``title`` is for readers.
        model: as it was given.
        score: on the paper's scale for the paper's benchmarks, on the harness's for others; None when missing.
        missing: why there is no score.
        error: standard error of the score; None where it is not a mean over samples.
        higher_is_better: as the task says; None where it does not, and in folders of earlier versions.
        n: samples.
        paper: what the paper prints for the matching model.
        metrics: the harness's other figures, unscaled.
        filled: answers that could not be read and were replaced by chance.
        cut: answers that were ended by their length.
        generated, reused: answers made in this run, and found from before.
        judge: model, address, verdicts asked and reused, and those that could not be used.
        settings: generation settings of the benchmark, and versions.
        notes: what a reader of the figure must know.
        seconds: wall-clock time.
    """

    benchmark: str
    title: str
    model: str
    score: float | None
    n: int
    missing: str | None = None
    error: float | None = None
    paper: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    filled: int = 0
    cut: int = 0
    generated: int = 0
    reused: int = 0
    judge: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    higher_is_better: bool | None = None

    @property
    def difference(self) -> float | None:
        """From the paper's first figure to this score."""
        return None if self.score is None or not self.paper else self.score - self.paper[0]


class Unscored(Exception):
    """There is no true score; the message says why."""


@dataclass(frozen=True)
class TaskScore:
    """A task's figure in the harness's units, its samples, the harness's other figures, and whether a higher figure is
    better, as far as that is known."""

    value: float
    samples: list[Sample]
    metrics: dict[str, float]
    higher_is_better: bool | None = None


def read_task(
    benchmark: Benchmark,
    name: str,
    raw: Mapping[str, Any],
    aggregate: Mapping[str, Any],
    *,
    limited: bool,
    rising: Mapping[str, Any] | None = None,
) -> TaskScore:
    """The score of one task.

    Args:
        benchmark: which metrics make the score.
        name: the task's name.
        raw: what `simple_evaluate` returned.
        aggregate: the task's functions from single results to a figure, by metric.
        limited: whether only the first samples were asked, so that a part of a sum may be empty.
        rising: whether a higher figure is better, by metric; of the benchmarks in the table it always is.

    Raises:
        Unscored: no samples, or a figure that is missing, empty or not a number.
    """
    found: dict[str, Any] = dict(raw["results"].get(name, {}))
    rows: list[dict[str, Any]] = list(raw["samples"].get(name, []))
    if not rows:
        raise Unscored("no sample was scored")
    figures = {key: number for key, value in found.items() if (number := _number(value)) is not None}
    others = {key: value for key, value in figures.items() if "_stderr" not in key}
    metrics = benchmark.metrics or tuple(key for key in found if "," in key and "_stderr" not in key)[:1]
    if not metrics:
        raise Unscored("the task has no metric")
    if len(metrics) > 1 and limited:
        metrics = tuple(metric for metric in metrics if metric in found) or metrics
    parts = [_part(row, metrics[0], aggregate) for row in rows] if len(metrics) == 1 else []
    samples = [_sample(name, row) for row in rows]
    values = [figures.get(metric) for metric in metrics]
    for metric, value in zip(metrics, values, strict=True):
        if value is None and metric in found and found[metric] is None and parts and not any(parts):
            values[metrics.index(metric)] = 0.0  # MathVista's way to say that nothing was right
        elif value is None:
            shown = (
                f"is {found[metric]!r}, not a number"
                if metric in found
                else "is not among the harness's figures"
            )
            raise Unscored(f"the metric '{metric}' {shown}")
    total = sum(value for value in values if value is not None)
    factor = _factor(parts, total) if parts and (benchmark.each or not benchmark.known) else None
    if factor is not None:
        for sample, part in zip(samples, parts, strict=True):
            assert part is not None
            sample.score = part * factor
    direction = True if benchmark.known else (rising or {}).get(metrics[0].split(",")[0])
    return TaskScore(total, samples, others, direction if isinstance(direction, bool) else None)


def combine(benchmark: Benchmark, tasks: Sequence[TaskScore]) -> tuple[float, float | None, list[Sample]]:
    """Score on the paper's scale, its standard error, and all samples; several tasks weigh by their samples.

    Raises:
        Unscored: a score that its scale does not have.
    """
    samples = [sample for task in tasks for sample in task.samples]
    value = sum(task.value * len(task.samples) for task in tasks) / len(samples) * benchmark.scale
    if benchmark.known and not -1e-9 <= value <= benchmark.best + 1e-9 and benchmark.verdict != "pair":
        raise Unscored(f"{value:g} is not on the scale from 0 to {benchmark.best:g}")
    for sample in samples:
        sample.score = None if sample.score is None else sample.score * benchmark.scale
    scores = [sample.score for sample in samples if sample.score is not None]
    error = standard_error(scores) if len(scores) == len(samples) else None
    return value, error, samples


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None or isinstance(value, str | list | dict):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _part(row: Mapping[str, Any], metric: str, aggregate: Mapping[str, Any]) -> float | None:
    """What one sample contributes: its number, the number in its record, or the metric of it alone."""
    name = metric.split(",")[0]
    value = row.get(name)
    if isinstance(value, dict):
        for key in ("score", "true_false"):
            if isinstance(value.get(key), int | float):
                return float(value[key])
        try:
            return _number(aggregate[name]([copy.deepcopy(value)]))
        except Exception:  # noqa: BLE001 - a metric of many samples need not be one of a single sample
            return None
    return float(value) if isinstance(value, bool) else _number(value)


def _factor(parts: Sequence[float | None], value: float) -> float | None:
    """What samples are multiplied by so that their mean is the figure; None when it is not their mean.

    The harness's figures are rounded to two digits of a percentage, or to five of a share.
    """
    known = [part for part in parts if part is not None]
    if len(known) != len(parts):
        return None
    mean = sum(known) / len(known)
    if abs(mean - value) <= 1e-5:
        return 1.0
    return 100.0 if abs(100 * mean - value) <= 6e-3 else None


def _sample(name: str, row: Mapping[str, Any]) -> Sample:
    answers: list[Any] = []
    for responses in row["resps"]:
        answers += responses if isinstance(responses, list) else [responses]
    answer = answers[0] if len(answers) == 1 else answers
    # the first of what the harness asked with is the text; pictures and functions are left out of the list
    asked = next(iter(row.get("arguments", ())), "")
    question = asked.strip() if isinstance(asked, str) else ""
    return Sample(f"{name}:{row['doc_id']}", str(row["doc_hash"]), answer, row["target"], question=question)


def nearest_choices(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """MathVista's extractions that name no choice: the harness takes the choice with the nearest spelling for them."""
    found = []
    for row in rows:
        record = row.get("llm_as_judge_eval")
        if not isinstance(record, dict) or record.get("question_type") != "multi_choice":
            continue
        text = str(record.get("extraction", "")).strip()
        choices = [str(choice) for choice in record.get("choices", ())]
        letters = [chr(ord("A") + number) for number in range(len(choices))]
        named = [letter.upper() for letter in re.findall(r"\(([a-zA-Z])\)", text)[:1]] or [text]
        if named[0] not in letters and text not in choices:
            found.append(text)
    return found


# ---------------------------------------------------------------- statistics


def standard_error(scores: Sequence[float]) -> float | None:
    """Of the mean: the sample standard deviation over the root of n; None for fewer than two."""
    n = len(scores)
    if n < 2:
        return None
    mean = sum(scores) / n
    return math.sqrt(sum((score - mean) ** 2 for score in scores) / (n - 1) / n)


@dataclass(frozen=True)
class Paired:
    """The mean difference between two models on the same samples, second minus first.

    The interval is the normal one: mean plus and minus 1.96 standard errors of the single differences. It says how
    much another drawing of questions could change the difference, and nothing about other trainings.

    Attributes:
        benchmark: its name.
        first, second: the models.
        difference: second minus first, on the scale of the score.
        low, high: ends of the 95 % interval; None for fewer than two samples.
        n: samples that both have.
    """

    benchmark: str
    first: str
    second: str
    difference: float
    low: float | None
    high: float | None
    n: int


def paired(
    benchmark: str, first: str, second: str, a: Sequence[Sample], b: Sequence[Sample]
) -> Paired | None:
    """The difference on the samples that both scored; None when there are none."""
    theirs = {(sample.id, sample.digest): sample.score for sample in b}
    differences = [
        other - sample.score
        for sample in a
        if sample.score is not None and (other := theirs.get((sample.id, sample.digest))) is not None
    ]
    if not differences:
        return None
    mean = sum(differences) / len(differences)
    error = standard_error(differences)
    low, high = (None, None) if error is None else (mean - Z95 * error, mean + Z95 * error)
    return Paired(benchmark, first, second, mean, low, high, len(differences))
