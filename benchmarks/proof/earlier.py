"""The comparison as it was first made, on endless puzzles, from its stored lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.proof.arms import untrained
from benchmarks.proof.grid import Tuning, tables, tuned_rates
from benchmarks.proof.settings import Run, Settings
from benchmarks.proof.tables import rows_of, table_text, verdicts

Line = Mapping[str, Any]
TUNING = Tuning(rates=(5e-4, 1e-3, 2e-3, 4e-3), seeds=(901,))
WORDS = """\
### The same comparison on endless puzzles

Made first, with {runs} runs, before the losses summed in their present order; no training puzzle came twice, the other
settings were those above, and the test puzzles were others (`test_seed` 0). Learning rates were tuned likewise
({rates}; one seed). Its ablations were broken off when the puzzles changed; those that have every row are shown."""


def earlier_sections(lines: Sequence[Line]) -> Iterator[str]:
    """Main table, verdicts and whole ablations of a stored grid."""
    if not lines:
        return
    settings = Settings.from_json(lines[0]["settings"])
    done: dict[Run, Mapping[str, Any]] = {}
    for line in lines:
        done.setdefault(Run(**line["run"]), line["result"])
    rates = tuned_rates(settings, done, TUNING)
    tried = ", ".join(f"{rate:g}" for rate in TUNING.rates)
    yield WORDS.format(runs=len(done), rates=tried)
    for table in tables(settings):
        found = rows_of(table, done, rates)
        if not all(found.values()):
            continue
        if table.part != "main":
            yield f"{table.title}, endless puzzles:"
        yield from table_text(table, done, rates)
        if table.part == "main":
            small, large = (100 * done[untrained(model)]["accuracy"] for model in ("small", "large"))
            yield f"The small model before any training: {small:.1f} %; the large one: {large:.1f} %."
            yield "\n".join(verdicts(found))
