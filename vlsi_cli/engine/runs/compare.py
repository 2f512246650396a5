"""`vlsi eval compare`: stored evaluations side by side."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

from vlsi_cli.engine.evaluation.scores import Paired, Result, Sample, paired
from vlsi_cli.engine.runs.evaluation_report import read_results
from vlsi_cli.errors import DataError


@dataclass(frozen=True)
class Row:
    """A benchmark.

    Attributes:
        benchmark: its name.
        scores: one a column, None where there is none.
    """

    benchmark: str
    scores: tuple[float | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Stored evaluations side by side.

    Attributes:
        columns: folder and model.
        rows: one a benchmark, in the order in which they were found.
        pairs: differences from every model of the first folder to every model of the second, on the samples that both
            were asked; of one folder given twice, between its models, each two once.
        notes: what keeps two figures from being comparable.
    """

    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    pairs: tuple[Paired, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Stored:
    name: str
    result: Result
    samples: list[Sample]


def run(first: Path, second: Path) -> Comparison:
    """Compare two evaluations.

    Raises:
        DataError: a folder without a report, or one that cannot be read; or one given twice that holds a single model.
    """
    once = first.resolve() == second.resolve()
    sides = [_read(first)] if once else [_read(first), _read(second)]
    both = [stored for side in sides for stored in side]
    if once and len({stored.result.model for stored in both}) < 2:
        raise DataError(
            f"{first} was given twice and holds one model: there is nothing to compare it with",
            hint="give the --output folder of another vlsi eval",
        )
    columns = tuple(dict.fromkeys((stored.name, stored.result.model) for stored in both))
    names = dict.fromkeys(stored.result.benchmark for stored in both)
    scores = {(s.name, s.result.model, s.result.benchmark): s.result.score for s in both}
    rows = tuple(Row(name, tuple(scores.get((*column, name)) for column in columns)) for name in names)
    pairs, notes = [], []
    for name in names:
        held = [[stored for stored in side if stored.result.benchmark == name] for side in sides]
        for a, b in combinations(held[0], 2) if once else product(*held):
            labels = (f"{a.name}: {a.result.model}", f"{b.name}: {b.result.model}")
            if found := paired(name, *labels, a.samples, b.samples):
                pairs.append(found)
            notes += _unlike(name, a.result, b.result)
    return Comparison(columns, rows, tuple(pairs), tuple(dict.fromkeys(notes)))


def _unlike(benchmark: str, a: Result, b: Result) -> list[str]:
    """Why two figures of one benchmark should not be compared as they are."""
    found = []
    for key, word in (
        ("limit", "limits"),
        ("generation", "generation settings"),
        ("versions", "task versions"),
    ):
        if a.settings.get(key) != b.settings.get(key):
            found.append(f"{benchmark}: {word} differ ({a.settings.get(key)} and {b.settings.get(key)})")
    judges = [result.judge["answers as"] if result.judge else None for result in (a, b)]
    if judges[0] != judges[1]:
        found.append(f"{benchmark}: judges differ ({judges[0]} and {judges[1]})")
    return found


def _read(folder: Path) -> list[_Stored]:
    path = folder / "report.json"
    if not path.is_file():
        raise DataError(f"{folder} holds no evaluation", hint="give the --output folder of a vlsi eval")
    try:
        results = read_results(path)
        places = _places(folder)
        return [
            _Stored(str(folder), result, _samples(places, result.model, result.benchmark))
            for result in results
        ]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise DataError(f"the evaluation in {folder} cannot be read: {error}") from error


def _places(folder: Path) -> dict[str, Path]:
    """The folder of each model, by the identity that the report names: weights that changed have another."""
    settings = json.loads((folder / "report.json").read_text(encoding="utf-8"))["settings"]
    identities = {facts["identity"]: id for id, facts in settings["models"].items()}
    found = {}
    for file in (folder / "models").glob("*/model.json"):
        facts = json.loads(file.read_text(encoding="utf-8"))
        if facts["identity"] in identities:
            found[identities[facts["identity"]]] = file.parent
    return found


def _samples(places: dict[str, Path], model: str, benchmark: str) -> list[Sample]:
    file = places[model] / benchmark / "samples.jsonl"
    return [Sample(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
