"""``docs/proof.md`` from the stored results, and from nothing else: the same results give the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.proof.arms import ARMS, untrained
from benchmarks.proof.earlier import earlier_sections
from benchmarks.proof.estimates import binomial_error
from benchmarks.proof.field import field_section
from benchmarks.proof.grid import (
    TUNING,
    tables,
    tuned_rates,
    tuning_runs,
)
from benchmarks.proof.pilots import pilot_sections
from benchmarks.proof.results import DIAGNOSIS, EARLIER, GRID, PILOTS, Store, read
from benchmarks.proof.seen import seen_sections
from benchmarks.proof.settings import Settings
from benchmarks.proof.tables import Done, rows_of, table_text, verdicts
from benchmarks.proof.text import HEAD, LIMITS, METHOD, WHY, table_lines

DOCUMENT = "docs/proof.md"
_ROOT = Path(__file__).parents[2]
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """The files that the document is made from.

    Attributes:
        grid: the comparison.
        pilots: trials on the validation split.
        earlier: the comparison on endless puzzles.
        diagnosis: looks inside the interaction step.
    """

    grid: Path = GRID
    pilots: Path = PILOTS
    earlier: Path = EARLIER
    diagnosis: Path = DIAGNOSIS


RESULTS = Results()


def write_report(results: Results = RESULTS, target: Path = _ROOT / DOCUMENT) -> None:
    """Write the document, whole."""
    from vlsi_cli.engine.files import new_file

    text = report(results)
    with new_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


def report(results: Results = RESULTS) -> str:
    """The document: of the settings as they are now and of the pair that was measured last."""
    settings = Settings()
    ours = [line for line in read(results.grid) if line["settings"] == settings.to_json()]
    pair = ours[-1]["pair"] if ours else {}
    done = Store(results.grid, settings, pair).load()
    trials, earlier, looks = read(results.pilots), read(results.earlier), read(results.diagnosis)
    parts = [HEAD, *field_section(trials), *_main(settings, done), METHOD]
    parts += [WHY, *seen_sections(looks)] if looks else []
    parts += [*_conditions(settings, pair, done), *_cost(done, earlier, trials)]
    parts += [*_tuning(settings, done), *_ablations(settings, done), LIMITS]
    if earlier or trials:
        parts += ["## What else was tried", *earlier_sections(earlier)]
        parts += pilot_sections(trials, [*ours, *earlier])
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


# ---------------------------------------------------------------- sections


def _main(settings: Settings, done: Done) -> Iterator[str]:
    table, rates = tables(settings)[0], tuned_rates(settings, done)
    yield "## The comparison"
    yield from table_text(table, done, rates)
    found = rows_of(table, done, rates)
    for model, words in (("small", "The small model before any training"), ("large", "The large model")):
        if untrained(model) in done:
            yield f"{words}: {100 * done[untrained(model)]['accuracy']:.1f} %."
    if any(found.values()):
        yield "\n".join(verdicts(found))
        yield _kinds(found)


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


def _conditions(settings: Settings, pair: Mapping[str, str], done: Done) -> Iterator[str]:
    yield "## Under which conditions"
    fixed = settings.to_json()
    shown = [[f"`{name}`", _plain(value)] for name, value in fixed.items()]
    yield table_lines(["setting", "value"], shown)
    if pair:
        digits = f"large `{pair['large']}`, small `{pair['small']}`"
        yield f"Weights: {digits} (SHA-256, first digits)."
    said = next((r["verbalizers"] for r in done.values() if len(r["verbalizers"]) == 2), None)
    if said is not None:
        each = (
            f"{side} " + ", ".join(f"{loss:.2f}" for loss in trained["losses"].values())
            for side, trained in said.items()
        )
        yield (
            "Loss of each target layer at the last step of step 1, first to last, in one run (nats a token): "
            + "; ".join(each)
            + "."
        )


def _cost(done: Done, earlier: Sequence[Line], trials: Sequence[Line]) -> Iterator[str]:
    if done:
        hours = sum(result["elapsed"] for result in done.values()) / 3600
        before = sum(line["result"].get("elapsed", 0.0) for line in (*earlier, *trials)) / 3600
        errors = [
            100 * binomial_error(r["accuracy"], r["n"]) for run, r in done.items() if run.split == "test"
        ]
        spread = (
            f" The binomial error of one run's accuracy is at most {max(errors):.1f} points."
            if errors
            else ""
        )
        yield (
            f"{len(done)} runs are stored, {hours:.1f} hours of one core of a shared machine by the clock; "
            f"what else was tried, at the end of this page, took {before:.1f} hours more.{spread}"
        )


def _plain(value: Any) -> str:
    """A value as a reader likes it."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "no limit" if value is None else str(value)


def _tuning(settings: Settings, done: Done) -> Iterator[str]:
    yield "## Learning rates"
    runs = tuning_runs(settings)
    finished = sum(run in done for _, run in runs)
    rates = tuned_rates(settings, done)
    lines = []
    for arm in ARMS:
        cells = []
        for rate in TUNING.rates:
            scores = [
                100 * done[run]["accuracy"]
                for a, run in runs
                if a == arm and run.rate == rate and run in done
            ]
            best = rates is not None and rates[arm] == rate
            text = f"{sum(scores) / len(scores):.1f}" if scores else "not run yet"
            cells.append(f"**{text}**" if best else text)
        lines.append([arm, *cells])
    yield (
        f"The budget is the same for every arm: {len(TUNING.rates)} rates, each on training seeds "
        f"{' and '.join(map(str, TUNING.seeds))} (used for nothing else), "
        f"measured on {settings.asked} puzzles of the **validation** split; {finished} of {len(runs)} runs are done. "
        "Mean accuracy in %; the chosen rate is bold."
    )
    yield table_lines(["", *(f"{rate:g}" for rate in TUNING.rates)], lines)
    edge = [arm for arm in ARMS if rates is not None and rates[arm] in (TUNING.rates[0], TUNING.rates[-1])]
    if edge:
        yield f"Chosen at the edge of the grid, so that another rate might have been better still: {', '.join(edge)}."
    yield (
        "Rows of the ablations take the rate of the arm that they change: VLsI's; `feature L2`'s where features are "
        "compared; `SFT`'s where nothing is distilled. They are not tuned one by one, which may cost a row some "
        "points against the row that the rate was tuned for."
    )


def _ablations(settings: Settings, done: Done) -> Iterator[str]:
    yield "## The paper's ablations, in small"
    rates = tuned_rates(settings, done)
    for table in tables(settings)[1:]:
        yield f"### {table.title}"
        yield from table_text(table, done, rates)
