"""`vlsi eval compare`: stored evaluations side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

from vlsi_cli.config import catalog
from vlsi_cli.config.benchmarks import table
from vlsi_cli.engine.evaluation.scores import Paired, Result, Sample, paired
from vlsi_cli.engine.runs.evaluation_report import read_results
from vlsi_cli.engine.runs.no_worse import FEW, NoWorse, Stored, absent, no_worse
from vlsi_cli.errors import ConfigError, DataError, did_you_mean


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
        no_worse: with `--no-worse`, for each benchmark of the first folder whether the second is no worse.
    """

    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    pairs: tuple[Paired, ...]
    notes: tuple[str, ...]
    no_worse: tuple[NoWorse, ...] = ()

    @property
    def worse(self) -> tuple[NoWorse, ...]:
        """Where the second is worse, or cannot be compared."""
        return tuple(verdict for verdict in self.no_worse if not verdict.met)


def run(
    first: Path,
    second: Path,
    *,
    benchmarks: Sequence[str] = (),
    of_first: str | None = None,
    of_second: str | None = None,
    gate: bool = False,
    margin: float | None = None,
) -> Comparison:
    """Compare two evaluations.

    Args:
        first: folder of an evaluation.
        second: folder of another, or the same.
        benchmarks: only these, in any spelling; none means all that were stored, and to hold models against each other
            on all that the first was asked.
        of_first: only this model of the first.
        of_second: only this model of the second.
        gate: whether to hold models of the second against those of the first.
        margin: points of each score that they may be worse by.

    Raises:
        DataError: a folder without a report, or one that cannot be read; or one given twice that holds a single model.
        ConfigError: a model or benchmark that is not stored there, or models of which nothing says which is to be held
            against which.
    """
    once = first.resolve() == second.resolve()
    whole = _read(first)
    sides = [whole, whole if once else _read(second)]
    if once and len(_models(whole)) < 2:
        raise DataError(
            f"{first} was given twice and holds one model: there is nothing to compare it with",
            hint="give the --output folder of another vlsi eval",
        )
    picked = of_first is not None or of_second is not None
    sides = [_of(sides[0], first, of_first), _of(sides[1], second, of_second)]
    if picked and once and _models(sides[0]) == _models(sides[1]):
        raise ConfigError("--first and --second name one model of one evaluation", hint="name two of them")
    names = _chosen([stored for side in sides for stored in side], benchmarks)
    asked = names if benchmarks else _benchmarks(sides[0])
    verdicts = tuple(_verdicts(sides, asked, once=once, margin=margin)) if gate else ()
    sides = [[stored for stored in side if stored.result.benchmark in names] for side in sides]
    twins = once and not picked  # each two models of one evaluation are shown once
    both = sides[0] if twins else [stored for side in sides for stored in side]
    columns = tuple(dict.fromkeys((stored.name, stored.result.model) for stored in both))
    scores = {(s.name, s.result.model, s.result.benchmark): s.result.score for s in both}
    rows = tuple(Row(name, tuple(scores.get((*column, name)) for column in columns)) for name in names)
    pairs, notes = [], []
    for name in names:
        held = [[stored for stored in side if stored.result.benchmark == name] for side in sides]
        for a, b in combinations(held[0], 2) if twins else product(*held):
            if a is b:
                continue
            if found := paired(name, a.label, b.label, a.samples, b.samples):
                pairs.append(found)
            notes += _unlike(name, a.result, b.result)
    notes += [
        f"{v.benchmark}: {v.n} questions are few for an interval: it is too rough to rely upon"
        for v in verdicts
        if v.rule in ("interval", "margin") and v.n < FEW
    ]
    return Comparison(columns, rows, tuple(pairs), tuple(dict.fromkeys(notes)), verdicts)


def _models(side: Sequence[Stored]) -> list[str]:
    return list(dict.fromkeys(stored.result.model for stored in side))


def _benchmarks(side: Sequence[Stored]) -> list[str]:
    return list(dict.fromkeys(stored.result.benchmark for stored in side))


def _of(side: list[Stored], folder: Path, model: str | None) -> list[Stored]:
    """What one model of an evaluation reached, or all of them where none is named."""
    if model is None:
        return side
    held = _models(side)
    named = {name.rstrip("/\\"): name for name in held}
    named |= {name.removesuffix("/student"): name for name in held if name.endswith("/student")}  # of a run
    entry = catalog.find(model)
    ids = [model.rstrip("/\\"), *(entry.ids if entry else ())]
    found = next((named[id] for id in ids if id in named), None)
    if found is None:
        near = did_you_mean(model, held)
        raise ConfigError(
            f"{folder} holds no model '{model}'",
            hint=f"did you mean {near}?" if near else "it holds " + ", ".join(held),
        )
    return [stored for stored in side if stored.result.model == found]


def _chosen(stored: Sequence[Stored], words: Sequence[str]) -> list[str]:
    """The benchmarks to compare, in the order in which they were asked."""
    held = _benchmarks(stored)
    names = {alias: row.name for row in table().values() for alias in (row.name, *row.aliases)}
    asked = [word.strip() for each in words for word in each.split(",") if word.strip()]
    wanted = [word if word in held else names.get(word.casefold().replace("-", "_"), word) for word in asked]
    for word in wanted:
        if word not in held:
            near = did_you_mean(word, held)
            raise ConfigError(
                f"no benchmark '{word}' is stored there",
                hint=f"did you mean {near}?" if near else "stored are " + ", ".join(held),
            )
    return [name for name in held if name in wanted] if wanted else held


def _verdicts(
    sides: Sequence[list[Stored]], names: Sequence[str], *, once: bool, margin: float | None
) -> Iterator[NoWorse]:
    """Hold models of the second side against those of the first, on each of these benchmarks."""
    places = [side[0].name for side in sides]
    by_name = [{(stored.result.model, stored.result.benchmark): stored for stored in side} for side in sides]
    for one, other in _facing(_models(sides[0]), _models(sides[1]), once=once):
        for name in names:
            a, b = by_name[0].get((one, name)), by_name[1].get((other, name))
            if a is not None and b is not None:
                yield no_worse(a, b, margin)
            else:
                labels = f"{places[0]}: {one}", f"{places[1]}: {other}"
                yield absent(name, *labels, margin, labels[0] if a is None else labels[1])


def _facing(first: list[str], second: list[str], *, once: bool) -> list[tuple[str, str]]:
    """Which model is held against which: a single one on the first side serves all, several go by their names.

    Raises:
        ConfigError: neither says it.
    """
    if once and first == second and len(first) == 2:
        return [(first[0], first[1])]
    if once and len(second) == 1:
        first = [model for model in first if model != second[0]]
    elif once and len(first) == 1:
        second = [model for model in second if model != first[0]]
    if len(first) == 1:
        return [(first[0], model) for model in second]
    if not once and set(second) <= set(first):
        return [(model, model) for model in second]
    raise ConfigError(
        "--no-worse has several models to choose from, and their names do not say which is held against which",
        hint=f"give --first, one of {', '.join(first)}\nand --second, one of {', '.join(second)}",
    )


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


def _read(folder: Path) -> list[Stored]:
    path = folder / "report.json"
    if not path.is_file():
        raise DataError(f"{folder} holds no evaluation", hint="give the --output folder of a vlsi eval")
    try:
        results = read_results(path)
        places = _places(folder)
        return [
            Stored(str(folder), result, _samples(places, result.model, result.benchmark))
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
    with (places[model] / benchmark / "samples.jsonl").open(encoding="utf-8") as lines:
        return [Sample(**json.loads(line)) for line in lines]  # (an answer may hold U+2028: no splitlines)
