"""Tasks of the harness, made by us: without its minutes of retries, its injected stop and its dead ends.

Only imported where lmms-eval is installed (:mod:`vlsi_cli.engine.evaluation.harness`).
"""

from __future__ import annotations

import copy
import hashlib
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from lmms_eval.api.task import ConfigurableMessagesTask, ConfigurableTask
from lmms_eval.utils import load_yaml_config

from vlsi_cli.config.benchmarks import BUILT_IN, Benchmark
from vlsi_cli.engine.data.patterns import exact_match, pattern_record
from vlsi_cli.errors import ConfigError, DataError

_TYPES = ("generate_until", "multiple_choice")


class Task(ConfigurableMessagesTask):
    """A task of the harness: its prompts, data and scoring, as they are.

    Attributes:
        own_stops: whether its ``until`` is its own, and not the blank line that the harness puts in everywhere.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        config = dict(config)
        settings = dict(config.get("dataset_kwargs") or {})
        if not (os.environ.get("HF_TOKEN") or _stored_token()):
            settings.pop("token", None)  # asked for even by public data sets, and an error without a login
        config["dataset_kwargs"] = settings
        self.own_stops = "until" in (config.get("generation_kwargs") or {})
        super().__init__(config=config, model_name="vlsi")

    # The harness retries both for minutes, whatever the error.

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Read the data set, once."""
        ConfigurableTask.download.__wrapped__(self, dataset_kwargs)

    def process_results(self, doc: Any, results: Any, full_docs: Any = None) -> Any:
        """Score one answer, once."""
        return ConfigurableTask.process_results.__wrapped__(self, doc, results, full_docs)

    def construct_requests(self, doc_id: int, ctx: str, **kwargs: Any) -> Any:
        """Requests of one sample; for a choice by likelihood, those that the harness makes for its other models."""
        if self.OUTPUT_TYPE == "multiple_choice":
            return ConfigurableTask.construct_requests(self, doc_id, ctx, **kwargs)
        return super().construct_requests(doc_id, ctx, **kwargs)


class Patterns(Task):
    """The built-in puzzles as a task: pictures and questions drawn from a seed, nothing read from disk."""

    def __init__(self, count: int) -> None:
        self._count = count
        config = {
            "task": BUILT_IN,
            "dataset_path": "vlsi/patterns",
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_visual": lambda doc: [doc["image"]],
            "doc_to_text": "question",
            "doc_to_target": "answer",
            "process_results": _score_puzzle,
            "generation_kwargs": {"max_new_tokens": 32, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1.0},
        }
        super().__init__(config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Draw the puzzles of the test split."""
        records = [pattern_record("test", index) for index in range(self._count)]
        rows = {
            "id": [record.id for record in records],
            "kind": [record.turns[0].kind for record in records],
            "question": [record.turns[0].text for record in records],
            "answer": [record.turns[0].answer for record in records],
        }
        words = datasets.Dataset.from_dict(rows)
        images = datasets.Dataset.from_dict(
            {"image": [record.image for record in records]},
            features=datasets.Features({"image": datasets.Image()}),
        )
        self.dataset = datasets.DatasetDict({"test": datasets.concatenate_datasets([words, images], axis=1)})
        self.dataset_no_image = datasets.DatasetDict({"test": words})


def _score_puzzle(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"exact_match": float(exact_match(results[0], doc["answer"]))}


def _stored_token() -> str | None:
    from huggingface_hub import get_token

    with suppress(OSError):  # a file of the hub's client that cannot be read: as if there were none
        return get_token()
    return None


def load_tasks(benchmark: Benchmark, root: Path | None, limit: int | None) -> list[Task]:
    """The tasks of a benchmark with their data.

    Args:
        benchmark: which.
        root: the harness's folder of tasks; files of a benchmark that are not absolute start there.
        limit: how many questions will be asked; puzzles beyond are not drawn.

    Raises:
        ConfigError: a kind of task that no chat model can be asked, or a file that does not make a task.
        DataError: its data set cannot be read, or is empty.
    """
    if benchmark.name == BUILT_IN:
        whole = benchmark.questions or 0
        return [Patterns(whole if limit is None else min(limit, whole))]
    return [_load(benchmark, file if root is None else root / file) for file in benchmark.files]


def _load(benchmark: Benchmark, file: Path) -> Task:
    try:
        config = load_yaml_config(str(file), mode="full")
    except Exception as error:  # the task's own code runs here
        raise ConfigError(f"the task file {file} cannot be loaded: {_line(error)}") from error
    kind = config.get("output_type", "generate_until")
    if "class" in config or kind not in _TYPES:
        what = "is a Python class of its own" if "class" in config else f"asks for '{kind}'"
        raise ConfigError(
            f"the task '{benchmark.name}' {what}, which is not supported",
            hint=f"supported: {', '.join(_TYPES)}",
        )
    # The harness's own seeds: some tasks shuffle options when they are made, and every process must ask the same.
    random.seed(0)
    np.random.seed(1234)
    try:
        return Task(copy.deepcopy(config))
    except (ConfigError, DataError):
        raise
    except Exception as error:  # reading data raises errors of many unrelated kinds
        raise _data_error(benchmark, config, error) from error


def digest_of(task: Task, limit: int | None) -> str:
    """What tells the questions of a task from others: the fields of its rows that hold no pictures, in their order.

    Pictures are left out, since reading them all would take longer than asking some of them: rows that differ in these
    alone are not told apart.
    """
    docs = task.eval_docs
    count = len(docs) if limit is None else min(limit, len(docs))
    told = hashlib.blake2b(str(count).encode(), digest_size=16)
    features = getattr(docs, "features", None) or {}
    words = [name for name, feature in sorted(features.items()) if not _holds_pictures(feature)]
    if words and count:
        rows = docs.select(range(count)).select_columns(words).with_format("arrow")[:]
        for column in words:  # one after another: whole rows would be in memory as Python's objects
            told.update(f"\0{column}\0{rows[column].to_pylist()!r}".encode(errors="backslashreplace"))
    return told.hexdigest()


def _holds_pictures(feature: Any) -> bool:
    return any(kind in repr(feature) for kind in ("Image(", "binary", "Audio(", "Video("))


def _data_error(benchmark: Benchmark, config: dict[str, Any], error: Exception) -> Exception:
    shown, id = _line(error), str(config.get("dataset_path"))
    if "gated" in shown.casefold() or "authenticat" in shown.casefold():
        return DataError(
            f"the data set {id} of '{benchmark.name}' is gated: its owner must grant you access",
            hint=f"accept its terms at https://huggingface.co/datasets/{id}, then: hf auth login",
        )
    if isinstance(error, IndexError) or "corresponds to no data" in shown:
        return DataError(f"the data set {id} of '{benchmark.name}' is empty")
    fetch = f"hf download --repo-type dataset {id}"
    hub = "/" in id and not Path(id).exists()
    return DataError(
        f"the task '{benchmark.name}' cannot be set up from its data ({id}): {shown}",
        hint=f"fetch it where there is a network: {fetch}"
        if hub
        else "check the task file and its data files",
    )


def _line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
