"""``docs/proof.md`` from the stored results, and from nothing else: the same results give the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.proof.arms import ARMS, untrained
from benchmarks.proof.estimates import binomial_error
from benchmarks.proof.fields import FIELDS, Field, scores_by_size
from benchmarks.proof.grid import tables, tuned_rates, tuning_runs
from benchmarks.proof.pilots import pilot_sections
from benchmarks.proof.results import DIAGNOSIS, GRID, PILOTS, Store, read
from benchmarks.proof.seen import seen_sections
from benchmarks.proof.settings import Settings
from benchmarks.proof.tables import Done, rows_of, table_text, verdicts
from benchmarks.proof.text import ABLATIONS, FIELD, HEAD, LIMITS, METHOD, TUNED, WHY, table_lines

DOCUMENT = "docs/proof.md"
_ROOT = Path(__file__).parents[2]
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """The files that the document is made from.

    Attributes:
        grid: the comparison.
        pilots: trials on the validation split.
        diagnosis: looks inside the interaction step.
    """

    grid: Path = GRID
    pilots: Path = PILOTS
    diagnosis: Path = DIAGNOSIS


RESULTS = Results()


@dataclass(frozen=True)
class Found:
    """What is stored of one field.

    Attributes:
        field: which.
        done: run -> what came out.
        rates: arm -> tuned learning rate; None before all tuning runs are done.
    """

    field: Field
    done: Done
    rates: Mapping[str, float] | None


def write_report(results: Results = RESULTS, target: Path = _ROOT / DOCUMENT) -> None:
    """Write the document, whole."""
    from vlsi_cli.engine.files import new_file

    text = report(results)
    with new_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


def report(results: Results = RESULTS) -> str:
    """The document: of the fields as they are now and of the pair that was measured last."""
    lines, trials, looks = read(results.grid), read(results.pilots), read(results.diagnosis)
    fields = [field.settings for field in FIELDS.values()]
    ours = [line for line in lines if Settings.from_json(line["settings"]) in fields]
    pair = ours[-1]["pair"] if ours else {}
    found = [_found(field, results.grid, pair) for field in FIELDS.values()]
    parts = [HEAD, "## The comparison", *_choice(trials)]
    for each in found:
        parts += _main(each)
    parts.append(METHOD)
    parts += [WHY, *seen_sections(looks)] if looks else []
    parts += [*_conditions(found, pair), *_cost(found, trials)]
    parts += [*_tuning(found), *_ablations(found), LIMITS, *pilot_sections(trials, ours)]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _found(field: Field, grid: Path, pair: dict[str, str]) -> Found:
    done = Store(grid, field.settings, pair).load()
    return Found(field, done, tuned_rates(field.settings, done, field.tuning))


# ---------------------------------------------------------------- sections


def _choice(trials: Sequence[Line]) -> Iterator[str]:
    """How the fields were chosen, with the scores that chose the finite one."""
    yield FIELD
    scores = scores_by_size(trials)
    if not scores:
        return
    rates = sorted({rate for each in scores.values() for rate in each})
    lines = [
        [
            "no end" if size is None else str(size),
            *(f"{each[rate]:.1f}" if rate in each else "" for rate in rates),
        ]
        for size, each in scores.items()
    ]
    yield table_lines(["training puzzles", *(f"{rate:g}" for rate in rates)], lines)


def _main(found: Found) -> Iterator[str]:
    table, done, rates = tables(found.field.settings)[0], found.done, found.rates
    yield f"### {found.field.title}"
    yield from table_text(table, done, rates)
    rows = rows_of(table, done, rates)
    for model, words in (("small", "The small model before any training"), ("large", "The large model")):
        if untrained(model) in done:
            yield f"{words}: {100 * done[untrained(model)]['accuracy']:.1f} %."
    if any(rows.values()):
        yield "\n".join(verdicts(rows))
        yield _kinds(rows)


def _kinds(found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    kinds = sorted({kind for results in found.values() for r in results.values() for kind in r["by_kind"]})
    lines = []
    for label, results in found.items():
        if results:
            each = [sum(r["by_kind"][k] for r in results.values()) / len(results) for k in kinds]
            lines.append([label, *(f"{100 * share:.0f}" for share in each)])
            lines[-1].append(f"{sum(r['loss'] for r in results.values()) / len(results):.3f}")
    names = [f"`{kind}`, %" for kind in kinds]
    return "By kind of puzzle, and the mean loss on the right answers (nats a token):\n\n" + table_lines(
        ["", *names, "loss"], lines
    )


def _conditions(found: Sequence[Found], pair: Mapping[str, str]) -> Iterator[str]:
    yield "## Under which conditions"
    fixed = [each.field.settings.to_json() for each in found]
    shown = [[f"`{name}`", *(_plain(values[name]) for values in fixed)] for name in fixed[0]]
    yield table_lines(["setting", *(each.field.title for each in found)], shown)
    if pair:
        digits = f"large `{pair['large']}`, small `{pair['small']}`"
        yield f"Weights: {digits} (SHA-256, first digits)."
    told = []
    for each in found:
        said = next((r["verbalizers"] for r in each.done.values() if len(r["verbalizers"]) == 2), {})
        for side, trained in said.items():
            losses = [f"{loss:.2f}" for loss in trained["losses"].values()]
            told.append(f"- {each.field.title}, {side} model: {', '.join(losses)}")
    if told:
        yield "Loss of each target layer at the last step of step 1, first to last, in one run (nats a token):"
        yield "\n".join(told)


def _cost(found: Sequence[Found], trials: Sequence[Line]) -> Iterator[str]:
    done = [(run, result) for each in found for run, result in each.done.items()]
    if not done:
        return
    hours = sum(result["elapsed"] for _, result in done) / 3600
    before = sum(line["result"].get("elapsed", 0.0) for line in trials) / 3600
    errors = [100 * binomial_error(r["accuracy"], r["n"]) for run, r in done if run.split == "test"]
    spread = (
        f" The binomial error of one run's accuracy is at most {max(errors):.1f} points." if errors else ""
    )
    yield (
        f"{len(done)} runs are stored, {hours:.1f} hours by the clock of processes that shared two busy cores with "
        f"others; the trials at the end of this page took {before:.1f} hours more.{spread}"
    )


def _plain(value: Any) -> str:
    """A value as a reader likes it."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "no limit" if value is None else str(value)


def _tuning(found: Sequence[Found]) -> Iterator[str]:
    yield "## Learning rates"
    yield TUNED
    for each in found:
        tuning, done, rates = each.field.tuning, each.done, each.rates
        runs = tuning_runs(each.field.settings, tuning)
        lines = []
        for arm in ARMS:
            cells = []
            for rate in tuning.rates:
                ours = [run for a, run in runs if a == arm and run.rate == rate and run in done]
                scores = [100 * done[run]["accuracy"] for run in ours]
                text = f"{sum(scores) / len(scores):.1f}" if scores else "not run yet"
                cells.append(f"**{text}**" if rates is not None and rates[arm] == rate else text)
            lines.append([arm, *cells])
        seeds = " and ".join(map(str, tuning.seeds))
        finished = sum(run in done for _, run in runs)
        yield f"{each.field.title}, training seed {seeds}; {finished} of {len(runs)} runs are done:"
        yield table_lines(["", *(f"{rate:g}" for rate in tuning.rates)], lines)
        ends = tuning.rates[0], tuning.rates[-1]
        edge = [arm for arm in ARMS if rates is not None and rates[arm] in ends]
        if edge:
            yield (
                "Chosen at the edge of the grid, so that another rate might have been better still: "
                f"{', '.join(edge)}."
            )


def _ablations(found: Sequence[Found]) -> Iterator[str]:
    yield ABLATIONS
    for each in found:
        for table in tables(each.field.settings):
            if table.part != "main" and table.part in each.field.parts:
                yield f"### {table.title}"
                yield from table_text(table, each.done, each.rates)
