"""`vlsi eval`: models on benchmarks, through lmms-eval, with every answer kept on disk.

OUTPUT/report.json, report.md, report.html   the last run's figures and settings
OUTPUT/models/NAME-IDENTITY/BENCHMARK/       answers.jsonl, verdicts.jsonl, samples.jsonl, result.json
OUTPUT/harness.log                           what the harness says
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlsi_cli.config import harness as place
from vlsi_cli.config.benchmarks import Benchmark, paper
from vlsi_cli.config.evaluating import Asked, EvaluationPlan
from vlsi_cli.config.evaluation import EvaluationConfig
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.backbones.processors import PROCESSOR_FILES
from vlsi_cli.engine.devices import precision_name, resolve_device, resolve_precision
from vlsi_cli.engine.evaluation import harness
from vlsi_cli.engine.evaluation.generation import Answerer
from vlsi_cli.engine.evaluation.judge import Judge
from vlsi_cli.engine.evaluation.scores import Paired, Result, Sample, paired
from vlsi_cli.engine.files import file_sha256, write_json, writing
from vlsi_cli.engine.runs import evaluation_report as report_files
from vlsi_cli.engine.runs.folder import environment
from vlsi_cli.errors import Interrupted, OutputError
from vlsi_cli.events import BenchmarkStarted, Events, Warn

if TYPE_CHECKING:
    from vlsi_cli.engine.evaluation.tasks import Task

try:
    import fcntl
except ImportError:  # not on Windows, where the folder is not locked
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation hands back.

    Attributes:
        output: the folder.
        results: one for each model and benchmark, models first.
        pairs: differences between models on the same samples.
        skipped: benchmarks left out for want of a judge.
        settings: configuration, identity of each model, versions.
    """

    output: Path
    results: tuple[Result, ...]
    pairs: tuple[Paired, ...]
    skipped: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def unscored(self) -> tuple[Result, ...]:
        """Results without a true score."""
        return tuple(result for result in self.results if result.score is None)


def run(config: EvaluationConfig, plan: EvaluationPlan, events: Events) -> EvaluationReport:
    """Evaluate; whatever was answered before by the same weights, processor and settings is not asked again.

    Raises:
        ConfigError: no such device, or a task that cannot be asked.
        DataError: a data set that cannot be read.
        EvaluationError: the judge failed, or memory ran out with one question.
        OutputError: the folder cannot be written, or another process works in it.
        Interrupted: Ctrl-C; the answers so far are kept.
    """
    device = resolve_device(config.device)
    dtype = resolve_precision(config.precision, device)
    judge = None
    if config.judge is not None and any(b.judge != "none" or not b.known for b in plan.benchmarks):
        judge = Judge(config.judge.model, config.judge.url, config.judge.timeout, config.judge.attempts)
        judge.probe(pictures=any(benchmark.verdict == "pair" for benchmark in plan.benchmarks))
    for title in plan.skipped:
        events(Warn(f"{title} is left out: it needs a judge"))
    with _held(config.output):
        try:
            return _run(config, plan, events, device, dtype, judge)
        except KeyboardInterrupt as error:
            raise Interrupted(
                "interrupted; the answers so far are kept", hint="the same command goes on from here"
            ) from error


def _run(
    config: EvaluationConfig,
    plan: EvaluationPlan,
    events: Events,
    device: torch.device,
    dtype: torch.dtype,
    judge: Judge | None,
) -> EvaluationReport:
    log = config.output / "harness.log"
    root = place.tasks_folder()
    with harness.quiet(log):
        harness.load()
        from vlsi_cli.engine.evaluation import guard, running
        from vlsi_cli.engine.evaluation import tasks as making

        guard.install()
        loaded = {b.name: making.load_tasks(b, root, b.limited(config.limit)) for b in plan.benchmarks}
    results: list[Result] = []
    samples: dict[tuple[str, str], list[Sample]] = {}
    identities: dict[str, Any] = {}
    for asked in plan.models:
        low, high = config.min_pixels, config.max_pixels
        backbone = load_backbone(asked.id, dtype=dtype, device=device, min_pixels=low, max_pixels=high)
        identities[asked.id] = {**identity(backbone, low, high), "paper": asked.row}
        folder = config.output / "models" / _folder_name(asked.id, identities[asked.id]["identity"])
        write_json(folder / "model.json", {"id": asked.id, **identities[asked.id]})
        size = None if config.batch_size == "auto" else config.batch_size
        answerer = Answerer(backbone, size, told=lambda text: events(Warn(text)))
        for benchmark in plan.benchmarks:
            limit = benchmark.limited(config.limit)
            questions = sum(running.asked(task, limit) for task in loaded[benchmark.name])
            events(BenchmarkStarted(asked.id, benchmark.title, questions))
            with harness.quiet(log):
                evaluated = running.run_benchmark(
                    benchmark,
                    loaded[benchmark.name],
                    answerer,
                    folder / benchmark.name,
                    model=asked.id,
                    paper=paper().get(asked.row or "", {}).get(benchmark.name, []),
                    judge=judge,
                    limit=limit,
                    longest=config.max_new_tokens,
                    code=[where for where in (root, config.tasks_dir) if where is not None],
                    events=events,
                )
            results.append(evaluated.result)
            samples[asked.id, benchmark.name] = evaluated.samples
        del backbone, answerer
        gc.collect()
    report = EvaluationReport(
        output=config.output,
        results=tuple(results),
        pairs=tuple(_pairs(plan.models, plan.benchmarks, samples)),
        skipped=plan.skipped,
        settings=_settings(config, identities, device, dtype),
    )
    report_files.write(report)
    if config.html:
        _page(config.output, report, loaded, samples, plan)
    return report


def _page(
    output: Path,
    report: EvaluationReport,
    loaded: dict[str, list[Task]],
    samples: dict[tuple[str, str], list[Sample]],
    plan: EvaluationPlan,
) -> None:
    from vlsi_cli.engine.runs import evaluation_page

    evaluation_page.write(output / "report.html", report, loaded, samples, plan)


# ---------------------------------------------------------------- what answers depend on


def identity(backbone: Backbone, low: int | None, high: int | None) -> dict[str, Any]:
    """Digests of what an answer depends on besides its question: weights, configuration, processor, precision.

    A file that the hub's cache keeps under its SHA-256 is not read again for it.
    """
    weights = {path.name: _sha256(path) for path in sorted(backbone.folder.glob("*.safetensors"))}
    names = ("config.json", "generation_config.json", *PROCESSOR_FILES)
    rest = {name: _sha256(backbone.folder / name) for name in names if (backbone.folder / name).is_file()}
    facts = {
        "weights": weights,
        "files": rest,
        "pixels": [low, high],
        "precision": precision_name(backbone.dtype),
        "processor": type(backbone.processor.image_processor).__name__,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return {"identity": digest, **facts}


def _sha256(path: Path) -> str:
    blob = path.resolve().name
    return blob if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob) else file_sha256(path)


def _folder_name(id: str, digest: str) -> str:
    name = "-".join(Path(id).parts[-2:])
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.') or 'model'}-{digest[:10]}"


def _settings(
    config: EvaluationConfig, identities: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    return {
        "configuration": config.model_dump(mode="json"),
        "models": identities,
        "device": str(device),
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
    """Keep other processes out of the folder: two of them would write into one journal.

    Raises:
        OutputError: another process works in it, or it cannot be written.
    """
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / ".lock").open("w")
    with lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(
                    f"another process evaluates into {output}", hint="wait for it, or give another --output"
                ) from None
        yield
