"""``python -m benchmarks.proof``: run what is left of the comparison, then write the report."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.proof.claims import Claims
from benchmarks.proof.fields import FIELDS
from benchmarks.proof.grid import PARTS, SEEDS, Tuning, final_runs, tuned_rates, tuning_runs
from benchmarks.proof.report import DOCUMENT, Results, write_report
from benchmarks.proof.results import GRID, Store, fingerprint
from benchmarks.proof.settings import Run

#: Seconds between two looks at what other processes have done.
PATIENCE = 2.0
#: One run of the student: in the benchmark ``Laboratory.run``, in its tests a stand-in.
Runner = Callable[[Run], dict[str, Any]]


@dataclass(frozen=True)
class Grid:
    """The runs of some parts of the comparison on one field, and what is stored of them.

    Attributes:
        store: the results.
        tuning: the budget for learning rates.
        parts: of ``PARTS``.
        seeds: of the tables, at most.
    """

    store: Store
    tuning: Tuning
    parts: Sequence[str] = PARTS
    seeds: int = len(SEEDS)

    def left(self) -> Iterator[Run]:
        """What is not stored yet, in order, each claimed until the next is asked for.

        Other processes may work too: what one of them is at is left to it, and waited for at the end, since more may
        follow from it.
        """
        claims = Claims(self.store.file.with_suffix(".lock"))
        while True:
            missing = [run for run in self.runs() if run not in self.store.load()]
            ours = next((run for run in missing if claims.take(run)), None)
            if ours is not None:
                if ours not in self.store.load():  # it may have been stored just before it was ours
                    yield ours
                claims.release(ours)
            elif missing:
                time.sleep(PATIENCE)
            else:
                return

    def runs(self) -> list[Run]:
        """Every run, as far as it is known: tuning decides the learning rates of the others."""
        settings, done = self.store.settings, self.store.load()
        tuning = [run for _, run in tuning_runs(settings, self.tuning)]
        rates = tuned_rates(settings, done, self.tuning)
        if rates is None:
            return tuning
        return tuning + list(final_runs(settings, rates, self.parts, self.seeds))

    def work(self, runner: Runner, say: Callable[[str], None], until: float | None = None) -> int:
        """Run and store what is left, until a point of ``time.monotonic()``; returns the number of runs."""
        number = 0
        for run in self.left():
            if until is not None and time.monotonic() > until:
                break
            started = time.monotonic()
            result = runner(run)
            elapsed = time.monotonic() - started
            self.store.add(run, result | {"elapsed": round(elapsed, 1)})
            number += 1
            say(f"{elapsed:6.0f} s  {result.get('accuracy', result.get('loss')):.3f}  {describe(run)}")
        return number


def describe(run: Run) -> str:
    """One line: what differs from a run with nothing said."""
    usual = Run().to_json()
    return ", ".join(f"{name} {value}" for name, value in run.to_json().items() if value != usual[name])


def listing(grid: Grid) -> Iterator[str]:
    """What is done, what is left, and how long that would take at the pace of what is done."""
    done, runs = grid.store.load(), grid.runs()
    for run in runs:
        mark = f"{done[run]['accuracy']:.3f}" if run in done else "left "
        yield f"{mark}  {describe(run)}"
    elapsed = [done[run]["elapsed"] for run in runs if run in done]
    left = len(runs) - len(elapsed)
    pace = f", some {left * sum(elapsed) / len(elapsed) / 60:.0f} minutes" if elapsed else ""
    yield f"{len(elapsed)} of {len(runs)} runs are done, {left} left{pace}"
    if tuned_rates(grid.store.settings, done, grid.tuning) is None:
        yield "the tables' runs follow when all tuning runs are done"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proof", description=__doc__)
    parser.add_argument(
        "--field", choices=FIELDS, action="append", help="on these puzzles alone (repeatable)"
    )
    parser.add_argument(
        "--only",
        choices=PARTS,
        action="append",
        help="this part alone (repeatable); tuning comes first anyway",
    )
    parser.add_argument(
        "--seeds", type=int, default=len(SEEDS), choices=range(1, len(SEEDS) + 1), help="seeds a row"
    )
    parser.add_argument("--minutes", type=float, help="begin no run after so many minutes")
    parser.add_argument("--list", action="store_true", help="tell what is done and what is left, and stop")
    parser.add_argument(
        "--report", action="store_true", help=f"write {DOCUMENT} from the stored results, and stop"
    )
    parser.add_argument("--results", type=Path, default=GRID, help="file of results")
    given = parser.parse_args(arguments)
    until = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    for name in () if given.report else given.field or FIELDS:
        field = FIELDS[name]
        store = Store(given.results, field.settings, fingerprint(field.settings))
        parts = [part for part in given.only or PARTS if part in field.parts]
        grid = Grid(store, field.tuning, parts, given.seeds)
        if given.list:
            print(f"{name}:")
            print("\n".join(listing(grid)))
        elif any(run not in store.load() for run in grid.runs()):
            from benchmarks.proof.laboratory import Laboratory

            laboratory = Laboratory(field.settings)
            grid.work(laboratory.run, lambda line: print(line, file=sys.stderr, flush=True), until)
    if given.list:
        return
    write_report(Results(grid=given.results))


if __name__ == "__main__":
    main()
