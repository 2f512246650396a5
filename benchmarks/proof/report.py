"""``docs/proof.md`` from the stored results, and from nothing else: the same results give the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.proof.arms import ARMS, untrained
from benchmarks.proof.estimates import Interval, binomial_error, paired, spearman, t_interval
from benchmarks.proof.grid import (
    RATES,
    SEEDS,
    TUNING_SEEDS,
    Row,
    Table,
    seeded,
    tables,
    tuned_rates,
    tuning_runs,
)
from benchmarks.proof.pilots import pilot_sections
from benchmarks.proof.results import GRID, PILOTS, Store, read
from benchmarks.proof.settings import Run, Settings
from benchmarks.proof.text import HEAD, LIMITS, METHOD, table_lines

DOCUMENT = "docs/proof.md"
PAPER = json.loads((Path(__file__).parent / "paper.json").read_text("utf-8"))
_ROOT = Path(__file__).parents[2]
Results = Mapping[Run, Mapping[str, Any]]


def write_report(grid: Path = GRID, pilots: Path = PILOTS, target: Path = _ROOT / DOCUMENT) -> None:
    """Write the document, whole."""
    from vlsi_cli.engine.files import new_file

    text = report(grid, pilots)
    with new_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


def report(grid: Path = GRID, pilots: Path = PILOTS) -> str:
    """The document: of the settings as they are now and of the pair that was measured last."""
    settings = Settings()
    ours = [line for line in read(grid) if line["settings"] == settings.to_json()]
    pair = ours[-1]["pair"] if ours else {}
    done = Store(grid, settings, pair).load()
    known = read(pilots)
    parts = [HEAD, *_main(settings, done), METHOD]
    parts += [*_conditions(settings, pair, done, known)]
    parts += [*_tuning(settings, done), *_ablations(settings, done), LIMITS]
    parts += pilot_sections(known, ours)
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


# ---------------------------------------------------------------- tables


def _rows(
    table: Table, done: Results, rates: Mapping[str, float] | None
) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Label -> seed -> result, of what is done. An untrained model's one result counts for every seed."""
    if rates is None:
        return {row.label: {} for row in table.rows}
    return {row.label: _of_row(row, done, rates) for row in table.rows}


def _of_row(row: Row, done: Results, rates: Mapping[str, float]) -> dict[int, Mapping[str, Any]]:
    runs = {seed: seeded(row, rates, seed) for seed in SEEDS}
    return {seed: done[run] for seed, run in runs.items() if run in done}


def _scores(results: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    return {seed: 100 * result["accuracy"] for seed, result in results.items()}


def _table(table: Table, done: Results, rates: Mapping[str, float] | None) -> list[str]:
    """One table beside the paper's numbers, and how the two orders agree."""
    found = _rows(table, done, rates)
    paper = PAPER["tables"][table.key]
    printed = {label: sum(scores) / len(scores) for label, scores in paper["rows"].items()}
    against = _scores(found[table.against])
    lines, ours, theirs = [], [], []
    for row in table.rows:
        results = found[row.label]
        if not results:
            lines.append([row.label, "not run yet", "", "0", "", f"{printed[row.label]:.1f}"])
            continue
        scores = _scores(results)
        difference = None if row.label == table.against else paired(scores, against)
        seeds = "any" if row.run.untrained else str(len(scores))
        mean = t_interval(list(scores.values())).mean
        cells = [f"{mean:.1f}", _signed(difference), seeds, f"{_seconds(results):.0f}"]
        lines.append([row.label, *cells, f"{printed[row.label]:.1f}"])
        if row.label == table.against or difference is not None:
            ours.append(difference.mean if difference is not None else 0.0)
            theirs.append(printed[row.label])
    head = ["", "accuracy, %", f"minus {table.against}", "seeds", "seconds", "paper"]
    text = [table_lines(head, lines)]
    text.append(f"paper: mean of what {PAPER['source'].split(',')[0]} prints in its {paper['printed']}.")
    agreement = spearman(ours, theirs) if len(ours) > 2 else None
    if agreement is not None:
        many = "all" if len(ours) == len(table.rows) else f"the {len(ours)} done of"
        text[-1] += (
            f" Rank correlation with it (Spearman, {many} {len(table.rows)} rows): {agreement + 0.0:+.2f}."
        )
    return text


def _signed(difference: Interval | None) -> str:
    if difference is None:
        return ""
    mean = f"{round(difference.mean, 1) + 0.0:+.1f}"  # no minus before a zero
    return mean if difference.half is None else f"{mean} ± {difference.half:.1f}"


def _seconds(results: Mapping[int, Mapping[str, Any]]) -> float:
    """Mean processor seconds that the student's training took, the large model's part included."""
    counted = ("interaction", "large", "reinforcement")
    each = [sum(result["seconds"].get(name, 0.0) for name in counted) for result in results.values()]
    return sum(each) / len(each)


# ---------------------------------------------------------------- sections


def _main(settings: Settings, done: Results) -> Iterator[str]:
    table, rates = tables(settings)[0], tuned_rates(settings, done)
    yield "## The comparison"
    yield from _table(table, done, rates)
    found = _rows(table, done, rates)
    for model, words in (("small", "The small model before any training"), ("large", "The large model")):
        if untrained(model) in done:
            yield f"{words}: {100 * done[untrained(model)]['accuracy']:.1f} %."
    if any(found.values()):
        yield "\n".join(_verdicts(found))
        yield _kinds(found)


def _verdicts(found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> Iterator[str]:
    """Who is ahead of whom, in words that the intervals allow."""
    ours = _scores(found["VLsI"])
    for label in ARMS:
        difference = paired(ours, _scores(found[label])) if label != "VLsI" else None
        if difference is None:
            continue
        if difference.low > 0:
            word = "VLsI is ahead"
        elif difference.high < 0:
            word = "VLsI is behind"
        else:
            word = "undecided: the interval holds zero"
        half = (
            f"[{difference.low:+.1f}, {difference.high:+.1f}]" if difference.half is not None else "one seed"
        )
        yield f"- VLsI minus {label}: {difference.mean:+.1f} points, 95 % interval {half} - **{word}**."


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


def _conditions(
    settings: Settings, pair: Mapping[str, str], done: Results, pilots: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
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
            "Loss of each target layer at the end of step 1, first to last (nats a token): "
            + "; ".join(each)
            + "."
        )
    if done:
        hours = sum(result["elapsed"] for result in done.values()) / 3600
        trials = sum(line["result"].get("elapsed", 0.0) for line in pilots) / 3600
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
            f"the trials at the end of this page took {trials:.1f} hours more.{spread}"
        )


def _plain(value: Any) -> str:
    """A value as a reader likes it."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "no limit" if value is None else str(value)


def _tuning(settings: Settings, done: Results) -> Iterator[str]:
    yield "## Learning rates"
    runs = tuning_runs(settings)
    finished = sum(run in done for _, run in runs)
    rates = tuned_rates(settings, done)
    lines = []
    for arm in ARMS:
        cells = []
        for rate in RATES:
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
        f"The budget is the same for every arm: {len(RATES)} rates, each on training seed "
        f"{' and '.join(map(str, TUNING_SEEDS))} (used for nothing else), "
        f"measured on {settings.asked} puzzles of the **validation** split; {finished} of {len(runs)} runs are done. "
        "Mean accuracy in %; the chosen rate is bold."
    )
    yield table_lines(["", *(f"{rate:g}" for rate in RATES)], lines)
    edge = [arm for arm in ARMS if rates is not None and rates[arm] in (RATES[0], RATES[-1])]
    if edge:
        yield f"Chosen at the edge of the grid, so that another rate might have been better still: {', '.join(edge)}."
    yield (
        "Rows of the ablations take the rate of the arm that they change: VLsI's; `feature L2`'s where features are "
        "compared; `SFT`'s where nothing is distilled. They are not tuned one by one, which may cost a row some "
        "points against the row that the rate was tuned for."
    )


def _ablations(settings: Settings, done: Results) -> Iterator[str]:
    yield "## The paper's ablations, in small"
    rates = tuned_rates(settings, done)
    for table in tables(settings)[1:]:
        yield f"### {table.title}"
        yield from _table(table, done, rates)
