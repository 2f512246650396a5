"""The report is what the stored results say, byte for byte, and says what is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.proof.arms import ARMS, vlsi
from benchmarks.proof.grid import RATES, TUNING_SEEDS, final_runs, tuned_rates, tuning_runs
from benchmarks.proof.report import DOCUMENT, report
from benchmarks.proof.results import Store, append
from benchmarks.proof.settings import Run, Settings

ROOT = Path(__file__).parents[2]
SETTINGS = Settings()
PAIR = {"large": "0123456789ab", "small": "ba9876543210"}


def test_the_page_is_up_to_date() -> None:
    """After a change of results or words: ``python -m benchmarks.proof --report``."""
    assert (ROOT / DOCUMENT).read_text("utf-8") == report()


def test_without_results_every_row_is_said_to_be_missing(tmp_path: Path) -> None:
    text = report(tmp_path / "none.jsonl", tmp_path / "none-either.jsonl")
    assert "| VLsI | not run yet |" in text
    assert "0 of " in text
    assert "VLsI minus" not in text


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """A whole tuning and two seeds of the main table, with scores that are easy to check."""
    store = Store(tmp_path / "grid.jsonl", SETTINGS, PAIR)
    for _, run in tuning_runs(SETTINGS):
        store.add(run, _result(run, 0.3 + run.rate))
    rates = tuned_rates(SETTINGS, store.load())
    assert rates == dict.fromkeys(ARMS, RATES[-1])
    shares = {"SFT": 0.50, "last-layer KLD": 0.56, "feature L2": 0.48, "VLsI": 0.60}
    for run in final_runs(SETTINGS, rates, ["main"], seeds=2):
        if run.untrained:
            store.add(run, _result(run, 0.95 if run.model == "large" else 0.2))
            continue
        arm = next(
            a for a, make in ARMS.items() if replace(make(SETTINGS), rate=run.rate, seed=run.seed) == run
        )
        luck = 0.02 * (run.seed - 1) if arm == "VLsI" else 0.0
        store.add(run, _result(run, shares[arm] + luck))
    return store.file


def _result(run: Run, accuracy: float) -> dict[str, object]:
    seconds = {"reinforcement": 10.0, "measurement": 5.0}
    if run.interacts:
        seconds |= {"large": 2.0, "interaction": 8.0}
    told = {"accuracy": accuracy, "loss": 0.5, "by_kind": {"what": accuracy}, "n": 100}
    return told | {"seconds": seconds, "elapsed": 36.0, "verbalizers": {}}


def test_means_differences_and_intervals_are_those_of_the_results(grid: Path, tmp_path: Path) -> None:
    text = report(grid, tmp_path / "none.jsonl")
    assert "| SFT | 50.0 |  | 2 | 10 | 59.5 |" in text
    # VLsI minus SFT: 10 and 12 points; s = sqrt 2, so the half width is 12.706 x sqrt 2 / sqrt 2
    assert "| VLsI | 61.0 | +11.0 ± 12.7 | 2 | 20 | 72.5 |" in text
    assert "VLsI minus SFT: +11.0 points, 95 % interval [-1.7, +23.7] - **undecided" in text
    # ours: L2 < SFT < KLD < VLsI; paper: L2 59.15 < SFT 59.45 < KLD < VLsI
    assert "Rank correlation with it (Spearman, all 4 rows): +1.00" in text
    assert "**30.4**" in text
    assert "Chosen at the edge of the grid" in text
    assert "The small model before any training: 20.0 %." in text
    assert "The large model: 95.0 %." in text
    assert "| random | not run yet |" in text
    assert PAIR["large"] in text


def test_losses_are_told_like_wins(grid: Path, tmp_path: Path) -> None:
    worse = tmp_path / "worse.jsonl"
    worse.write_text(grid.read_text("utf-8").replace('"accuracy": 0.5,', '"accuracy": 0.9,'), "utf-8")
    text = report(worse, tmp_path / "none.jsonl")
    assert "VLsI minus SFT: -29.0 points, 95 % interval [-41.7, -16.3] - **VLsI is behind**." in text


def test_a_trial_stands_beside_sft_on_its_own_terms(grid: Path, tmp_path: Path) -> None:
    seed = TUNING_SEEDS[0]
    trial = replace(vlsi(SETTINGS), rate=1e-3, seed=seed, split="validation")
    shorter = replace(trial, interaction_steps=1)  # no SFT run has so few steps
    for run in (trial, shorter, replace(trial, last="ce")):
        line = {"question": "Why?", "arm": "VLsI", "settings": SETTINGS.to_json(), "pair": PAIR}
        known = {"before": {"small": _result(run, 0.2), "large": _result(run, 1.0)}}
        append(tmp_path / "trials.jsonl", line | known | {"run": run.to_json(), "result": _result(run, 0.35)})
    text = report(grid, tmp_path / "trials.jsonl")
    assert "### Why?" in text
    beside = 100 * (0.3 + RATES[-1])  # the best of SFT's tuning runs
    row = f"| {{}}large 012345 | 0.001 | {seed} | 20.0 | 100.0 | 35.0 | {{}} | what 35 |"
    assert row.format("", f"{beside:.1f}") in text
    assert row.format("", "") in text
    assert row.format("last ce; ", f"{beside:.1f}") in text
