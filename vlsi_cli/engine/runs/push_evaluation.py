"""Scores of ``vlsi eval`` for a model card: those of exactly the weights that are pushed, and no others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlsi_cli.config.benchmarks import Benchmark as Row
from vlsi_cli.config.benchmarks import table
from vlsi_cli.config.presence import weight_files
from vlsi_cli.engine.backbones.processors import PROCESSOR_FILES
from vlsi_cli.engine.evaluation.scores import Result
from vlsi_cli.engine.files import file_sha256
from vlsi_cli.engine.hub.card import Benchmark
from vlsi_cli.engine.runs.evaluation_report import remarks
from vlsi_cli.errors import DataError, ModelError
from vlsi_cli.events import Events, Warn

REPORT = "report.json"


@dataclass(frozen=True)
class Scores:
    """What evaluations say of one model.

    Attributes:
        benchmarks: for the card, in the order of the evaluations.
        measured: with what, one sentence part an evaluation.
    """

    benchmarks: tuple[Benchmark, ...] = ()
    measured: tuple[str, ...] = ()


def scores_for(model: Path, run: Path | None, given: Sequence[Path], shown: str, events: Events) -> Scores:
    """The scores of a model that is to be pushed.

    Args:
        model: folder of its checkpoint.
        run: the run that made it; an evaluation in a folder of it counts where none is given.
        given: output folders of ``vlsi eval``.
        shown: what the user called the model.
        events: told of an evaluation that was found, and of scores that are left out.

    Raises:
        DataError: a folder given is no evaluation.
        ModelError: it evaluated other weights, or these with other settings files; or two say a benchmark's score.
    """
    folders = list(given) or (list(_inside(run)) if run is not None else [])
    if not folders:
        return Scores()
    weights = {path.name: file_sha256(path) for path in weight_files(model)}
    benchmarks: dict[str, Benchmark] = {}
    measured: list[str] = []
    for folder in folders:
        report = _read(folder)
        try:
            name, facts = _ours(folder, report, model, weights, shown)
        except ModelError as error:
            if given:
                raise
            events(Warn(f"its scores are not on the card: {error.message}"))
            continue
        results = [Result(**entry) for entry in report["results"] if entry["model"] == name]
        for result in results:
            if result.score is None:
                events(
                    Warn(f"{result.title} has no score in {folder} ({result.missing}): it is not on the card")
                )
            elif result.benchmark in benchmarks:
                raise ModelError(
                    f"two evaluations score '{shown}' on {result.title}, the second of them {folder}",
                    hint="name the one to be shown with --evaluation DIR",
                )
            else:
                benchmarks[result.benchmark] = _mark(result, facts.get("paper"))
        measured.append(_how(report["settings"], facts))
        for other in _left_out(folder, facts["identity"], {result.benchmark for result in results}):
            events(Warn(f"{folder} holds answers on {other} too, but its last command did not ask for it: "
                        "repeat it with all benchmarks to have them on the card"))  # fmt: skip
    return Scores(tuple(benchmarks.values()), tuple(dict.fromkeys(measured)))


def _inside(run: Path) -> Iterator[Path]:
    """Evaluations in the run folder itself."""
    for file in sorted(run.glob(f"*/{REPORT}")):
        try:
            _read(file.parent)
        except DataError:
            continue  # somebody else's report
        yield file.parent


def _read(folder: Path) -> dict[str, Any]:
    path = folder / REPORT
    if not path.is_file():
        raise DataError(
            f"{folder} holds no evaluation: it has no {REPORT}",
            hint="give the --output folder of a vlsi eval",
        )
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for entry in report["results"]:
            Result(**entry)
        for facts in report["settings"]["models"].values():
            (
                facts["identity"],
                facts["weights"].items(),
                facts["files"].items(),
                facts["precision"],
                facts["pixels"],
            )
        report["settings"]["harness"], report["settings"]["decoding"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"the evaluation in {folder} cannot be read: {error!r}", hint="repeat it: its answers are kept"
        ) from error
    return report


def _ours(
    folder: Path, report: dict[str, Any], model: Path, weights: dict[str, str], shown: str
) -> tuple[str, dict[str, Any]]:
    """The evaluated model that has these weights, and what the evaluation says of it."""
    evaluated = report["settings"]["models"]
    same = {name: facts for name, facts in evaluated.items() if facts["weights"] == weights}
    if not same:
        named = ", ".join(f"'{Path(name).name if Path(name).is_absolute() else name}'" for name in evaluated)
        raise ModelError(
            f"the evaluation in {folder} is of other weights than those of '{shown}': it is of {named}",
            hint=f"evaluate these: vlsi eval -m {model} -o DIR, then push with --evaluation DIR",
        )
    changed = ""
    for name, facts in same.items():
        now = {
            file: file_sha256(model / file)
            for file in {*facts["files"], *PROCESSOR_FILES}
            if (model / file).is_file()
        }
        other = sorted(file for file in {*now, *facts["files"]} if now.get(file) != facts["files"].get(file))
        if not other:
            return name, facts
        changed = other[0]
    raise ModelError(
        f"the evaluation in {folder} read the weights of '{shown}' with another {changed}",
        hint=f"evaluate them as they are: vlsi eval -m {model} -o DIR",
    )


def _mark(result: Result, row: str | None) -> Benchmark:
    known: Row | None = table().get(result.benchmark)
    metrics = [metric.partition(",")[0] for metric in known.metrics] if known else []
    metrics = metrics or [next(iter(result.metrics), "score").partition(",")[0]]
    return Benchmark(
        name=result.title,
        # a data set of one's own has no id; the name of its task stands for it
        dataset=(known.data if known else None) or f"vlsi-{result.benchmark}",
        split=known.split if known else None,
        metric=metrics[0] if len(metrics) == 1 else f"{result.benchmark}_score",
        metric_name=" + ".join(metrics),
        best=known.best if known else None,
        value=result.score if result.score is not None else float("nan"),
        standard_error=result.error,
        n=result.n,
        limit=result.settings.get("limit"),
        judge=str(result.judge["answers as"]) if result.judge else None,
        remarks=remarks(result),
        paper=tuple(result.paper),
        paper_model=row,
    )


def _how(settings: dict[str, Any], facts: dict[str, Any]) -> str:
    low, high = facts["pixels"]
    limits = [f"{word} {pixels} pixels" for word, pixels in (("at least", low), ("at most", high)) if pixels]
    pictures = f", pictures of {' and '.join(limits)}" if limits else ""
    return f"{settings['harness']}, {settings['decoding']} decoding, {facts['precision']}{pictures}"


def _left_out(folder: Path, identity: str, shown: set[str]) -> list[str]:
    """Benchmarks that an earlier command into the same folder scored with the same model."""
    found = []
    for file in folder.glob("models/*/model.json"):
        try:
            same = json.loads(file.read_text(encoding="utf-8"))["identity"] == identity
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            continue
        if same:
            found += [path.parent.name for path in sorted(file.parent.glob("*/result.json"))]
    return [name for name in found if name not in shown]
