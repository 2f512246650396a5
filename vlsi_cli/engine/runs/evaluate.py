"""`vlsi eval`: models on benchmarks, through lmms-eval, with every answer kept on disk.

OUTPUT/report.json, report.md, report.html   the last run's figures and settings
OUTPUT/models/NAME-IDENTITY/BENCHMARK/       answers.jsonl, verdicts.jsonl, samples.jsonl, result.json
OUTPUT/harness.log                           what the harness says

Of several processes each answers its share, into a file of its own until the first one takes it over; the first alone
asks the judge, scores and writes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from vlsi_cli.config import harness as place
from vlsi_cli.config.benchmarks import Benchmark, paper
from vlsi_cli.config.evaluating import Asked, EvaluationPlan
from vlsi_cli.config.evaluation import EvaluationConfig
from vlsi_cli.config.models import ModelConfig
from vlsi_cli.config.redaction import redact_tree
from vlsi_cli.engine import processes
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.devices import precision_name, resolve_precision
from vlsi_cli.engine.evaluation import harness
from vlsi_cli.engine.evaluation.generation import Answerer
from vlsi_cli.engine.evaluation.identity import folder_name, identity
from vlsi_cli.engine.evaluation.judge import Judge
from vlsi_cli.engine.evaluation.scores import Paired, Result, Sample, paired
from vlsi_cli.engine.files import only_process, sweep, write_json, writing
from vlsi_cli.engine.runs import evaluation_report as report_files
from vlsi_cli.engine.runs.agreement import (
    files_in,
    files_of,
    place_of_first,
    require_alike,
    require_same_questions,
    require_shared,
)
from vlsi_cli.engine.runs.folder import environment
from vlsi_cli.engine.runs.models import own_device
from vlsi_cli.engine.runs.requirements import RequirementOutcome, hold
from vlsi_cli.engine.runs.stopping import keeping_answers
from vlsi_cli.events import BenchmarkStarted, Events, Warn

if TYPE_CHECKING:
    from vlsi_cli.engine.evaluation.running import Evaluated
    from vlsi_cli.engine.evaluation.tasks import Task

Made = TypeVar("Made")

_PATIENCE = timedelta(days=7)
"""How long processes wait for the first, which may be asking a judge thousands of times."""


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation hands back.

    Attributes:
        output: the folder.
        results: one for each model and benchmark, models first.
        pairs: differences between models on the same samples.
        skipped: benchmarks left out for want of a judge.
        settings: configuration, identity of each model, versions.
        requirements: what was asked of the scores, and whether it is so.
    """

    output: Path
    results: tuple[Result, ...]
    pairs: tuple[Paired, ...]
    skipped: tuple[str, ...]
    settings: dict[str, Any]
    requirements: tuple[RequirementOutcome, ...] = ()

    @property
    def unmet(self) -> tuple[RequirementOutcome, ...]:
        """Requirements that a score does not meet, or that have none to meet them."""
        return tuple(outcome for outcome in self.requirements if not outcome.met)

    @property
    def unscored(self) -> tuple[Result, ...]:
        """Results without a true score."""
        return tuple(result for result in self.results if result.score is None)


def run(config: EvaluationConfig, plan: EvaluationPlan, events: Events) -> EvaluationReport | None:
    """Evaluate; whatever was answered before by the same weights, processor and settings is not asked again.

    Returns:
        The report; None in every process but the first.

    Raises:
        ConfigError: no such device, a task that cannot be asked, or processes that were not started alike.
        DataError: a data set that cannot be read, or files that differ between processes.
        EvaluationError: the judge failed, or memory ran out with one question.
        OutputError: the folder cannot be written, another process works in it, or not all processes see it.
        ProcessError: another process has ended before its time.
        Interrupted: Ctrl-C or SIGTERM; the answers so far are kept.
    """
    device = own_device(config.device)
    dtype = resolve_precision(config.precision, device)
    events = harness.heard(events)
    with keeping_answers(), processes.joined(torch.device("cpu"), _PATIENCE, events):
        _require_alike(config, plan)
        config = config.model_copy(update={"output": place_of_first(config.output)})
        judge = None
        if processes.is_first():
            judge = _judge(config, plan)
            for title in plan.skipped:
                events(Warn(f"{title} is left out: it needs a judge"))
        with _held(config.output) if processes.is_first() else nullcontext():
            require_shared(config.output)
            return _run(config, plan, events, device, dtype, judge)


def _require_alike(config: EvaluationConfig, plan: EvaluationPlan) -> None:
    """All processes must ask the same models the same questions; where answers are written, the first says."""
    held = files_of(ModelConfig(id=asked.id) for asked in plan.models)
    if config.tasks_dir is not None:
        held |= files_in(config.tasks_dir, ".yaml", ".yml", ".py")
    told = config.model_copy(update={"output": Path()})
    require_alike(told, held=held, versions={place.PACKAGE: place.installed()})


def _judge(config: EvaluationConfig, plan: EvaluationPlan) -> Judge | None:
    """The judge, which has answered; None when none is configured or none is needed."""
    if config.judge is None or all(b.judge == "none" and b.known for b in plan.benchmarks):
        return None
    judge = Judge(config.judge.model, config.judge.url, config.judge.timeout, config.judge.attempts)
    judge.probe(pictures=any(benchmark.verdict == "pair" for benchmark in plan.benchmarks))
    return judge


def _run(
    config: EvaluationConfig,
    plan: EvaluationPlan,
    events: Events,
    device: torch.device,
    dtype: torch.dtype,
    judge: Judge | None,
) -> EvaluationReport | None:
    log = config.output / (f"harness.{processes.rank()}.log" if processes.rank() else "harness.log")
    root = place.tasks_folder()
    with harness.quiet(log):
        harness.load()
        from vlsi_cli.engine.evaluation import guard
        from vlsi_cli.engine.evaluation import tasks as making

        guard.install()
        loaded = _in_turn(
            lambda: {b.name: making.load_tasks(b, root, b.limited(config.limit)) for b in plan.benchmarks}
        )
        if processes.size() > 1:
            require_same_questions({
                str(task.task_name): making.digest_of(task, b.limited(config.limit))
                for b in plan.benchmarks
                for task in loaded[b.name]
            })  # fmt: skip
    results: list[Result] = []
    samples: dict[tuple[str, str], list[Sample]] = {}
    identities: dict[str, Any] = {}
    for asked in plan.models:
        identities[asked.id], found = _model(asked, config, plan, loaded, events, device, dtype, judge, log)
        if asked != plan.models[-1]:
            gc.collect()  # the model is gone before the next one comes
        for evaluated in found:
            results.append(evaluated.result)
            samples[asked.id, evaluated.result.benchmark] = evaluated.samples
    if not processes.is_first():
        return None
    report = EvaluationReport(
        output=config.output,
        results=tuple(results),
        pairs=tuple(_pairs(plan.models, plan.benchmarks, samples)),
        skipped=plan.skipped,
        settings=_settings(config, identities, device, dtype),
        requirements=tuple(hold(plan.requirements, results)),
    )
    report_files.write(report)
    if config.html:
        _page(config.output, report, loaded, samples, plan)
    return report


def _model(
    asked: Asked,
    config: EvaluationConfig,
    plan: EvaluationPlan,
    loaded: dict[str, list[Task]],
    events: Events,
    device: torch.device,
    dtype: torch.dtype,
    judge: Judge | None,
    log: Path,
) -> tuple[dict[str, Any], list[Evaluated]]:
    """One model on every benchmark: its identity, and what came of it in the process that scores."""
    from vlsi_cli.engine.evaluation import running

    low, high = config.min_pixels, config.max_pixels
    backbone = load_backbone(asked.id, dtype=dtype, device=device, min_pixels=low, max_pixels=high)
    facts = {**processes.on_first(lambda: identity(backbone, low, high)), "paper": asked.row}
    folder = config.output / "models" / folder_name(asked.id, facts["identity"])
    if processes.is_first():
        write_json(folder / "model.json", {"id": asked.id, **facts})
    size = None if config.batch_size == "auto" else config.batch_size
    answerer = Answerer(backbone, size, told=lambda text: events(Warn(text)))
    found = []
    for benchmark in plan.benchmarks:
        limit = benchmark.limited(config.limit)
        tasks = loaded[benchmark.name]
        events(BenchmarkStarted(asked.id, benchmark.title, sum(running.asked(task, limit) for task in tasks)))
        with harness.quiet(log):
            evaluated = running.run_benchmark(
                benchmark,
                tasks,
                answerer,
                folder / benchmark.name,
                model=asked.id,
                paper=paper().get(asked.row or "", {}).get(benchmark.name, []),
                judge=judge,
                limit=limit,
                longest=config.max_new_tokens,
                code=[
                    where.absolute()
                    for where in (place.tasks_folder(), config.tasks_dir)
                    if where is not None
                ],
                events=events,
            )
        if evaluated is not None:
            found.append(evaluated)
    return facts, found


def _in_turn(work: Callable[[], Made]) -> Made:
    """What every process makes for itself, the first one before the others, which find its caches then."""
    made = work() if processes.is_first() else None
    processes.wait()
    return work() if made is None else made


def _page(
    output: Path,
    report: EvaluationReport,
    loaded: dict[str, list[Task]],
    samples: dict[tuple[str, str], list[Sample]],
    plan: EvaluationPlan,
) -> None:
    from vlsi_cli.engine.runs import evaluation_page

    evaluation_page.write(output / "report.html", report, loaded, samples, plan)


def _settings(
    config: EvaluationConfig, identities: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    return {
        "configuration": redact_tree(config.model_dump(mode="json")),
        "models": identities,
        "device": str(device),
        "processes": processes.size(),
        "precision": precision_name(dtype),
        "decoding": "greedy",
        "harness": f"{place.PACKAGE} {place.installed()}",
        "environment": environment(),
    }


def _pairs(
    models: tuple[Asked, ...], chosen: tuple[Benchmark, ...], samples: dict[tuple[str, str], list[Sample]]
) -> Iterator[Paired]:
    for benchmark in chosen:
        for number, second in enumerate(models):
            for first in models[:number]:
                a, b = samples[first.id, benchmark.name], samples[second.id, benchmark.name]
                if found := paired(benchmark.name, first.id, second.id, a, b):
                    yield found


@contextmanager
def _held(output: Path) -> Iterator[None]:
    """Keep other commands out of the folder: two of them would write into one journal.

    Raises:
        OutputError: another command works in it, or it cannot be written.
    """
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    with only_process(output, f"the evaluation in {output}"):
        sweep(output)
        yield
