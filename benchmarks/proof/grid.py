"""The whole comparison as a list of runs: tuning, the main table, and the paper's ablations d, e, c, f and b."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.proof.arms import ARMS, fine_tuning, untrained, vlsi
from benchmarks.proof.settings import Run, Settings


@dataclass(frozen=True)
class Tuning:
    """The budget that every arm gets for its learning rate, on the validation split.

    Attributes:
        rates: each tried once per seed.
        seeds: of the training data; none of them is a seed of the tables.
    """

    rates: tuple[float, ...]
    seeds: tuple[int, ...]


SEEDS = (1, 2, 3, 4, 5)
"""Seeds of the main table."""
ABLATION_SEEDS = SEEDS[:3]
"""Seeds of the ablations."""

Done = Mapping[Run, Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        label: as in the paper's table.
        run: what is run, without learning rate and seed.
        tuned_as: the arm of the main table whose tuned learning rate it takes.
    """

    label: str
    run: Run
    tuned_as: str


@dataclass(frozen=True)
class Table:
    """Rows that are compared with one of them.

    Attributes:
        key: name in ``paper.json``; its first letter (or ``main``) is what ``--only`` takes.
        title: heading in the report.
        against: label of the row that differences are taken from.
        rows: in the order of the paper's table.
    """

    key: str
    title: str
    against: str
    rows: tuple[Row, ...]

    @property
    def part(self) -> str:
        """The part of the grid that it belongs to."""
        return "d" if self.key == "d2" else self.key


def tables(settings: Settings) -> list[Table]:
    """Every table, in the order in which they are run."""
    whole = vlsi(settings)

    def changed(label: str, tuned_as: str = "VLsI", **changes: Any) -> Row:
        return Row(label, replace(whole, **changes), tuned_as)

    plain = {"search_range": False, "order_preservation": False, "adaptive_temperature": False}
    half, all_of_it = settings.reinforcement_steps // 2, settings.reinforcement_steps
    alone = fine_tuning(settings)
    return [
        Table("main", "Four ways of teaching", "SFT", tuple(Row(n, a(settings), n) for n, a in ARMS.items())),
        Table(
            "e",
            "Matching (Table 4e)",
            "+adaptive-temperature",
            (
                changed("random", strategy="random"),
                changed("uniform", strategy="uniform"),
                changed("bottom-1", strategy="bottom-k", k=1),
                changed("bottom-3", strategy="bottom-k", k=3),
                changed("multinomial", **plain),
                changed("+search-range", **{**plain, "search_range": True}),
                changed("+order-preservation", adaptive_temperature=False),
                changed("+adaptive-temperature"),
            ),
        ),
        Table(
            "d",
            "Losses, intermediate/last (Table 4d)",
            "KLD/KLD",
            tuple(
                changed(f"{words}/{last}", intermediate=words.lower(), last=last.lower())
                for words, last in (
                    ("CE", "none"),
                    ("CE", "CE"),
                    ("CE", "KLD"),
                    ("L2", "KLD"),
                    ("KLD", "none"),
                    ("KLD", "CE"),
                    ("KLD", "KLD"),
                    ("KLD", "L2"),
                )
            ),
        ),
        Table(
            "d2",
            "Without the verbalizers' heads, intermediate/last (Table 4d')",
            "KLD/KLD with head",
            (
                *(
                    changed(
                        f"{words}/{last}",
                        "feature L2",
                        intermediate=words.lower(),
                        last=last.lower(),
                        features=True,
                    )
                    for words, last in (("L2", "none"), ("L2", "KLD"), ("L2", "L2"), ("none", "L2"))
                ),
                changed("none/KLD", "last-layer KLD", intermediate="none"),
                changed("KLD/KLD with head"),
            ),
        ),
        Table(
            "b",
            "With and without reinforcement (Table 4b)",
            "base",
            (
                Row("base", untrained("small"), "SFT"),
                changed("without", reinforcement_steps=0),
                changed("with"),
            ),
        ),
        Table(
            "c",
            "Share of reinforcement (Table 4c)",
            "VLsI 100%",
            (
                Row("base 0", untrained("small"), "SFT"),
                Row("base 50%", replace(alone, reinforcement_steps=half), "SFT"),
                Row("base 100%", replace(alone, reinforcement_steps=all_of_it), "SFT"),
                changed("VLsI 0", reinforcement_steps=0),
                changed("VLsI 50%", reinforcement_steps=half),
                changed("VLsI 100%"),
            ),
        ),
        Table(
            "f",
            "Architecture of the verbalizers (Table 4f)",
            "verb-ffn",
            tuple(
                changed(name, architecture=name.replace(" ", "-"))
                for name in (
                    "decoder x2",
                    "decoder",
                    "ffn x2",
                    "ffn",
                    "verb-ffn x2",
                    "verb-ffn",
                    "mlp x2",
                    "mlp",
                )
            ),
        ),
    ]


PARTS = ("main", "e", "d", "b", "c", "f")


def tuning_runs(settings: Settings, tuning: Tuning) -> list[tuple[str, Run]]:
    """Arm and run of every tuning run: the same rates and seeds for all arms, on the validation split."""
    return [
        (arm, replace(make(settings), rate=rate, seed=seed, split="validation"))
        for seed in tuning.seeds
        for rate in tuning.rates
        for arm, make in ARMS.items()
    ]


def tuned_rates(settings: Settings, done: Done, tuning: Tuning) -> dict[str, float] | None:
    """The rate of the best mean validation accuracy of each arm; None before every tuning run is done.

    Of rates that are equally good the smaller one.
    """
    scores: dict[str, dict[float, float]] = {arm: dict.fromkeys(tuning.rates, 0.0) for arm in ARMS}
    for arm, run in tuning_runs(settings, tuning):
        if run not in done:
            return None
        scores[arm][run.rate] += done[run]["accuracy"] / len(tuning.seeds)
    return {
        arm: max(tuning.rates, key=lambda rate: (of_rate[rate], -rate)) for arm, of_rate in scores.items()
    }


def seeded(row: Row, rates: Mapping[str, float], seed: int) -> Run:
    """A row's run with its learning rate and a seed. An untrained model is the same for every seed."""
    return row.run if row.run.untrained else replace(row.run, rate=rates[row.tuned_as], seed=seed)


def final_runs(
    settings: Settings, rates: Mapping[str, float], parts: Iterable[str] = PARTS, seeds: int = len(SEEDS)
) -> Iterator[Run]:
    """The runs of the tables, each once, seed by seed: the main table, the ablations, and last the one of
    architectures, each of which needs verbalizers of its own."""
    wanted = [table for table in tables(settings) if table.part in parts]
    main = [table for table in wanted if table.part == "main"]
    ours = [table for table in wanted if table.part not in ("main", "f")]
    costly = [table for table in wanted if table.part == "f"]
    chosen = SEEDS[:seeds]
    order = [(table, seed) for seed in chosen for table in main]
    for group in (ours, costly):
        order += [(table, seed) for seed in chosen if seed in ABLATION_SEEDS for table in group]
    seen: set[Run] = set()
    if main:
        seen = {untrained("small"), untrained("large")}
        yield from (untrained("small"), untrained("large"))
    for table, seed in order:
        for row in table.rows:
            run = seeded(row, rates, seed)
            if run not in seen:
                seen.add(run)
                yield run
