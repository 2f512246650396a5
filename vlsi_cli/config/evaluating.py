"""What an evaluation needs, checked before anything heavy is imported: benchmarks, models, data, a judge."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from vlsi_cli.config import benchmarks, catalog, harness, reach
from vlsi_cli.config.benchmarks import Benchmark
from vlsi_cli.config.evaluation import EvaluationConfig
from vlsi_cli.config.folders import model_of_run
from vlsi_cli.config.missing import model_need
from vlsi_cli.config.models import ModelConfig
from vlsi_cli.config.presence import Need, cached_snapshot
from vlsi_cli.config.requirements import Requirement, read_requirements
from vlsi_cli.errors import ConfigError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Asked:
    """A model by its id, and the paper's row to hold it against, or None."""

    id: str
    row: str | None


@dataclass(frozen=True)
class EvaluationPlan:
    """What will be evaluated.

    Attributes:
        skipped: titles of benchmarks that are left out for want of a judge.
        requirements: what is asked of the scores.
    """

    models: tuple[Asked, ...]
    benchmarks: tuple[Benchmark, ...]
    skipped: tuple[str, ...]
    requirements: tuple[Requirement, ...] = ()


def plan(config: EvaluationConfig) -> EvaluationPlan:
    """Resolve an evaluation and see that all it needs is here or can be had.

    Where the hub cannot be reached, the libraries that read from it are told so: they would retry for minutes.

    Raises:
        ConfigError: an unknown benchmark or row of the paper, no harness, no judge where one is needed, or a
            requirement that no outcome could answer.
        ModelError, DataError: a model or data set that is neither here nor within reach.
    """
    chosen = benchmarks.choose(list(config.benchmarks), config.tasks_dir)
    harness.require()
    models = _models(config)
    judged = [benchmark for benchmark in chosen if benchmark.judge != "none" and config.judge is None]
    if judged and not config.skip_unjudged:
        raise ConfigError(
            f"{', '.join(b.title for b in judged)}: answers are read by a judge, and none is configured",
            hint="give --judge-model NAME and, for other servers than OpenAI's, --judge-url URL; the key is read from "
            "VLSI_JUDGE_KEY or OPENAI_API_KEY\n--skip-unjudged leaves such benchmarks out",
        )
    kept = [benchmark for benchmark in chosen if benchmark not in judged]
    if not kept:
        raise ConfigError("every benchmark asked for needs a judge, so --skip-unjudged leaves none")
    ids = [asked.id for asked in models]
    names = {**dict(zip(config.models, ids, strict=True)), **{id: id for id in ids}}
    required = read_requirements(config.require, names, kept, judged, config.tasks_dir)
    _require(config, ids, kept)
    return EvaluationPlan(models, tuple(kept), tuple(b.title for b in judged), required)


def _models(config: EvaluationConfig) -> tuple[Asked, ...]:
    rows = config.paper
    if rows and len(rows) != len(config.models):
        raise ConfigError(
            f"--paper is given {len(rows)} times and --model {len(config.models)} times",
            hint="give one row for each model, in the same order; the word none stands for none",
        )
    models = []
    for number, name in enumerate(config.models):
        row = rows[number] if rows else benchmarks.paper_row(name)
        named = row is not None and row.casefold() != "none"
        models.append(
            Asked(
                catalog.resolve_alias(model_of_run(name)),
                benchmarks.require_row(row) if row and named else None,
            )
        )
    if len({asked.id for asked in models}) < len(models):
        raise ConfigError("a model is given twice")
    return tuple(models)


def _require(config: EvaluationConfig, models: list[str], chosen: list[Benchmark]) -> None:
    needs = [model_need("model", ModelConfig(id=id)) for id in models]
    ids = {benchmark.data: benchmark for benchmark in chosen if benchmark.data is not None}
    for id, benchmark in ids.items():
        if not _HUB_ID.fullmatch(id) or Path(id).exists():
            continue
        size = f" ({benchmark.questions} questions)" if benchmark.questions else ""
        needs.append(
            Need(
                f"data of {benchmark.name}{size}",
                "data",
                id,
                _cached(id),
                f"hf download --repo-type dataset {id}",
            )
        )
    if any(need.fetch for need in needs) and not reach.hub_is_reachable():
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    reach.require(needs, dry_run=False)


def _cached(id: str) -> bool:
    """Whether a data set is in the hub's cache, or prepared in that of `datasets`."""
    home = os.environ.get("HF_HOME") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(home) / "datasets").expanduser()
    found = prepared / id.replace("/", "___")
    return cached_snapshot(id, kind="datasets") is not None or any(
        folder.is_dir() for folder in (found, prepared / id.replace("/", "___").lower())
    )
