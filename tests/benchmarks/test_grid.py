"""The proof's grid: equal terms for every arm, restarts that repeat nothing, results that are never mixed up."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.proof import __main__ as command
from benchmarks.proof.fields import FIELDS
from benchmarks.proof.grid import (
    ABLATION_SEEDS,
    PARTS,
    SEEDS,
    Tuning,
    final_runs,
    seeded,
    tables,
    tuned_rates,
    tuning_runs,
)
from benchmarks.proof.results import Store, append, read
from benchmarks.proof.settings import Run, Settings, changed
from benchmarks.proof.tables import PAPER

ROOT = Path(__file__).parents[2]
SETTINGS, PAIR = Settings(), {"large": "aaaa", "small": "bbbb"}
TUNING = Tuning(rates=(1e-3, 2e-3, 3e-3), seeds=(901, 902))
ONE_RATE = dict.fromkeys(("SFT", "last-layer KLD", "feature L2", "VLsI"), 1e-3)


def stand_in(run: Run) -> dict[str, Any]:
    """A result that depends on the run: the second rate is the best one, for every arm."""
    return {
        "accuracy": 0.5 if run.rate == TUNING.rates[1] else 0.4,
        "loss": 1.0,
        "by_kind": {},
        "n": 10,
        "seconds": {},
    }


def test_every_arm_gets_the_same_steps_and_the_same_trials() -> None:
    runs = tuning_runs(SETTINGS, TUNING)
    steps = {run.interaction_steps + run.reinforcement_steps for _, run in runs}
    assert steps == {SETTINGS.interaction_steps + SETTINGS.reinforcement_steps}
    trials = {arm: sorted((r.rate, r.seed) for a, r in runs if a == arm) for arm in ONE_RATE}
    assert all(
        each == sorted((rate, seed) for rate in TUNING.rates for seed in TUNING.seeds)
        for each in trials.values()
    )


def test_tuning_never_sees_the_test_split_nor_a_seed_of_the_tables() -> None:
    assert {run.split for _, run in tuning_runs(SETTINGS, TUNING)} == {"validation"}
    assert {run.split for run in final_runs(SETTINGS, ONE_RATE)} == {"test"}
    for field in FIELDS.values():
        assert not set(field.tuning.seeds) & set(SEEDS)


def test_no_two_fields_share_a_test_puzzle_set_or_a_store() -> None:
    settings = [field.settings for field in FIELDS.values()]
    assert len({each.test_seed for each in settings}) == len(settings)
    assert len(set(settings)) == len(settings)


def test_every_row_stands_beside_a_row_of_the_paper() -> None:
    for table in tables(SETTINGS):
        labels = [row.label for row in table.rows]
        assert set(labels) == set(PAPER["tables"][table.key]["rows"])
        assert table.against in labels
        assert table.part in PARTS


def test_a_run_serves_every_table_that_shows_it_and_is_made_once() -> None:
    runs = list(final_runs(SETTINGS, ONE_RATE))
    assert len(runs) == len(set(runs))
    by_label = {(t.key, r.label): seeded(r, ONE_RATE, 1) for t in tables(SETTINGS) for r in t.rows}
    same = [
        ("main", "VLsI"),
        ("e", "+adaptive-temperature"),
        ("d", "KLD/KLD"),
        ("c", "VLsI 100%"),
        ("b", "with"),
    ]
    assert len({by_label[key] for key in (*same, ("f", "verb-ffn"), ("d2", "KLD/KLD with head"))}) == 1
    assert by_label["d2", "none/KLD"] == by_label["main", "last-layer KLD"]
    assert by_label["d2", "L2/L2"] == by_label["main", "feature L2"]
    assert by_label["b", "base"] == by_label["c", "base 0"]


def test_the_main_table_comes_first_seed_by_seed() -> None:
    runs = list(final_runs(SETTINGS, ONE_RATE))
    number = 2 + 4 * len(SEEDS)  # the two models as they are, then four arms a seed
    assert [run.seed for run in runs[2:number]] == [seed for seed in SEEDS for _ in range(4)]
    assert [run.model for run in runs[:2] if run.untrained] == ["small", "large"]
    assert set(final_runs(SETTINGS, ONE_RATE, ["main"])) == set(runs[:number])
    assert {run.seed for run in final_runs(SETTINGS, ONE_RATE, ["main"], seeds=2)} == {0, *SEEDS[:2]}


def test_every_ablation_has_a_seed_before_any_has_the_next() -> None:
    for parts in (["e", "d", "b", "c"], ["f"]):
        seeds = [run.seed for run in final_runs(SETTINGS, ONE_RATE, parts) if not run.untrained]
        assert seeds == sorted(seeds)
        assert set(seeds) == set(ABLATION_SEEDS)


def test_the_best_rate_on_validation_is_taken_and_the_smaller_of_equals() -> None:
    done = {run: stand_in(run) for _, run in tuning_runs(SETTINGS, TUNING)}
    assert tuned_rates(SETTINGS, done, TUNING) == dict.fromkeys(ONE_RATE, TUNING.rates[1])
    assert tuned_rates(SETTINGS, {run: {"accuracy": 0.5} for run in done}, TUNING) == dict.fromkeys(
        ONE_RATE, TUNING.rates[0]
    )
    del done[next(iter(done))]
    assert tuned_rates(SETTINGS, done, TUNING) is None


# ---------------------------------------------------------------- restarts


class Killed(Exception):
    """Stands for a kill between two runs."""


def test_a_stopped_grid_goes_on_with_the_rest_and_repeats_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "grid.jsonl", SETTINGS, PAIR)
    made: list[Run] = []

    def until(count: int) -> Any:
        def runner(run: Run) -> dict[str, Any]:
            if len(made) == count:
                raise Killed
            made.append(run)
            return stand_in(run)

        return runner

    grid = command.Grid(store, TUNING, ("main",), 2)
    with pytest.raises(Killed):
        grid.work(until(5), lambda line: None)
    assert list(store.load()) == made
    assert len(made) == 5
    with pytest.raises(Killed):  # in the tables this time: their rates come from the store
        grid.work(until(len(tuning_runs(SETTINGS, TUNING)) + 3), lambda line: None)
    grid.work(until(10_000), lambda line: None)
    assert len(made) == len(set(made)) == len(tuning_runs(SETTINGS, TUNING)) + 2 + 2 * 4
    assert set(made) == set(grid.runs()) == set(store.load())
    assert {run.rate for run in made[len(tuning_runs(SETTINGS, TUNING)) + 2 :]} == {TUNING.rates[1]}
    assert grid.work(until(10_000), lambda line: None) == 0


def test_a_killed_process_leaves_whole_lines_and_the_next_does_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "grid.jsonl"
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from benchmarks.proof.__main__ import Grid\n"
        "from benchmarks.proof.grid import Tuning\n"
        "from benchmarks.proof.results import Store\n"
        "from benchmarks.proof.settings import Settings\n"
        "store = Store(Path(sys.argv[1]), Settings(), {'large': 'aaaa', 'small': 'bbbb'})\n"
        "made = []\n"
        "def runner(run):\n"
        "    if len(made) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    made.append(run)\n"
        "    return {'accuracy': 0.5}\n"
        "tuning = Tuning(rates=(1e-3, 2e-3, 3e-3), seeds=(901, 902))\n"
        "Grid(store, tuning).work(runner, lambda line: None)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(file)], cwd=ROOT, check=False)
    assert ended.returncode == -9
    with file.open("a") as handle:
        handle.write('{"half a li')
    store = Store(file, SETTINGS, PAIR)
    assert len(store.load()) == 3
    extra = replace(Run(), seed=77)
    store.add(extra, {"accuracy": 0.1})
    assert len(read(file)) == 4
    assert store.load()[extra] == {"accuracy": 0.1}
    assert len(list(command.Grid(store, TUNING).runs())) == len(tuning_runs(SETTINGS, TUNING))
    left = next(command.Grid(store, TUNING).left())
    assert left == tuning_runs(SETTINGS, TUNING)[3][1]


def test_processes_share_a_grid_and_none_waits_for_a_dead_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "grid.jsonl", SETTINGS, PAIR)
    first, second = (run for _, run in tuning_runs(SETTINGS, TUNING)[:2])
    script = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from benchmarks.proof.claims import Claims\n"
        "from benchmarks.proof.settings import Run\n"
        "claims = Claims(Path(sys.argv[1]))\n"
        "print(claims.take(Run(**json.loads(sys.argv[2]))), flush=True)\n"
        "sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "grid.lock"), json.dumps(first.to_json())],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert next(command.Grid(store, TUNING).left()) == second
    finally:
        other.kill()
        other.communicate()
    assert next(command.Grid(store, TUNING).left()) == first


def test_no_runs_begin_after_the_time_is_up(tmp_path: Path) -> None:
    store = Store(tmp_path / "grid.jsonl", SETTINGS, PAIR)
    assert command.Grid(store, TUNING).work(stand_in, lambda line: None, until=0.0) == 0


def test_values_on_the_command_line_are_numbers_words_and_lists() -> None:
    given = ["records=64", "verbalization_rate=2e-3", "large=demo/other", 'kinds=["what"]', "last=ce"]
    settings, of_run = changed(SETTINGS, [*given, "reinforcement_rate=2e-3"])
    assert (settings.records, settings.verbalization_rate, settings.large) == (64, 2e-3, "demo/other")
    assert settings.kinds == ("what",)
    assert of_run == {"last": "ce", "reinforcement_rate": 2e-3}
    assert changed(settings, ["records=null"])[0].records is None


def test_results_of_other_weights_or_settings_are_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "grid.jsonl"
    Store(file, SETTINGS, {**PAIR, "large": "cccc"}).add(Run(), {"accuracy": 0.9})
    Store(file, replace(SETTINGS, batch_size=3), PAIR).add(Run(), {"accuracy": 0.8})
    Store(file, replace(SETTINGS, records=64), PAIR).add(Run(), {"accuracy": 0.8})
    assert Store(file, SETTINGS, PAIR).load() == {}
    Store(file, SETTINGS, PAIR).add(Run(), {"accuracy": 0.7})
    Store(file, SETTINGS, PAIR).add(
        Run(), {"accuracy": 0.6}
    )  # a second process was as quick: the first counts
    assert Store(file, SETTINGS, PAIR).load() == {Run(): {"accuracy": 0.7}}


def test_lines_are_plain_json_in_one_piece(tmp_path: Path) -> None:
    file = tmp_path / "new" / "lines.jsonl"
    append(file, {"b": 1})
    append(file, {"a": [2]})
    assert [json.loads(line) for line in file.read_text("utf-8").splitlines()] == [{"b": 1}, {"a": [2]}]
    assert read(tmp_path / "nothing.jsonl") == []


def test_the_list_tells_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "grid.jsonl"
    monkeypatch.setattr(command, "fingerprint", lambda settings: PAIR)
    few = FIELDS["few"]
    runs = [run for _, run in tuning_runs(few.settings, few.tuning)]
    for run in runs[:2]:
        Store(file, few.settings, PAIR).add(run, stand_in(run) | {"elapsed": 60.0})
    command.main(["--list", "--field", "few", "--results", str(file)])
    told = capsys.readouterr().out
    number = len(runs)
    assert f"2 of {number} runs are done, {number - 2} left, some {number - 2} minutes" in told
    assert told.count("left ") >= number - 2
    assert "endless" not in told
