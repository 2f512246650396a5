"""Runs of the proof on a tiny pair: the same terms for all, nothing of one run left for the next."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.proof.arms import ARMS, untrained, vlsi
from benchmarks.proof.diagnosis import diagnose
from benchmarks.proof.grid import tables
from benchmarks.proof.laboratory import Laboratory
from benchmarks.proof.settings import Settings
from benchmarks.proof.shared import KeptTeacher, Replay
from tests.pairs import tiny_pair
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.teachers import LiveTeacher
from vlsi_cli.engine.teachers.teacher import TeacherStates


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    large, small = tiny_pair(tmp_path_factory.mktemp("pair"))
    settings = Settings(
        records=None,
        large=str(large),
        small=str(small),
        stride=1,
        kinds=("what", "missing"),
        turns=2,
        batch_size=2,
        interaction_steps=2,
        reinforcement_steps=2,
        verbalization_steps=1,
        asked=3,
        asked_together=2,
        max_new_tokens=3,
    )
    return Laboratory(settings)


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_depends_on_nothing_that_ran_before_it(laboratory: Laboratory, arm: str) -> None:
    run = replace(ARMS[arm](laboratory.settings), seed=1)
    first = _lasting(laboratory.run(run))
    other = laboratory.run(replace(vlsi(laboratory.settings), seed=2, rate=1e-2))
    assert _lasting(laboratory.run(run)) == first
    assert other["loss"] != first["loss"]


@pytest.mark.parametrize(
    "row", ["e bottom-3", "d CE/none", "d L2/KLD", "d2 none/L2", "b without", "c base 50%", "f decoder"]
)
def test_rows_of_every_table_can_be_run(laboratory: Laboratory, row: str) -> None:
    key, _, label = row.partition(" ")
    table = next(table for table in tables(laboratory.settings) if table.key == key)
    result = laboratory.run(next(row.run for row in table.rows if row.label == label))
    assert 0.0 <= result["accuracy"] <= 1.0
    assert result["n"] == laboratory.settings.asked


def test_an_untrained_model_is_measured_as_it_is(laboratory: Laboratory) -> None:
    start = {side: laboratory.measure(model, "test").to_json() for side, model in laboratory.sides()}
    laboratory.run(vlsi(laboratory.settings))
    for model in ("small", "large"):
        result = laboratory.run(untrained(model))
        assert {name: result[name] for name in start[model]} == start[model]
        assert set(result["seconds"]) == {"measurement"}
    assert start["small"] != start["large"]


def test_every_arm_reads_the_same_puzzles_in_the_same_order(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, ...]] = []
    take = Replay.next_step

    def watched(self: Replay, batch_size: int, accumulation: int) -> list[Batch]:
        batches = take(self, batch_size, accumulation)
        read.extend(batch.records for batch in batches)
        return batches

    monkeypatch.setattr(Replay, "next_step", watched)
    seen = []
    for make in ARMS.values():
        read.clear()
        laboratory.run(replace(make(laboratory.settings), seed=3))
        seen.append(list(read))
    assert len(seen[0]) == 4
    assert len({record for batch in seen[0] for record in batch}) == 8
    assert all(each == seen[0] for each in seen)


def test_verbalizers_learn_from_the_puzzles_of_their_run_alone(laboratory: Laboratory) -> None:
    finite = Laboratory(replace(laboratory.settings, records=2))
    run = replace(vlsi(finite.settings), seed=1)
    result = finite.run(run)
    other = finite.run(replace(run, seed=2))
    assert set(result["verbalizers"]) == {"small", "large"}
    assert other["verbalizers"]["large"]["losses"] != result["verbalizers"]["large"]["losses"]
    assert {record for batch in finite.batches(1).made for record in batch.records} == {
        "patterns-train-1-0",
        "patterns-train-1-1",
    }
    # without an end: others than any run's, once for all
    assert laboratory.verbalizers("large", "verb-ffn", 1) is laboratory.verbalizers("large", "verb-ffn", 2)


def test_looking_changes_nothing_and_sees_gradients(laboratory: Laboratory) -> None:
    run = replace(vlsi(laboratory.settings), seed=1, split="validation")
    unseen = _lasting(laboratory.run(run))
    seen = diagnose(laboratory, run, (0, 2))
    assert _lasting(laboratory.run(run)) == unseen
    assert [look["step"] for look in seen] == [0, 2]
    for look in seen:
        assert len(look["rows"]) == 3
        assert set(look["norms"]) == set(look["cosines"]) == {"intermediate", "last", "right answers"}
        assert all(norm > 0 for norm in look["norms"].values())
        assert all(-1 <= cosine <= 1 for cosine in look["cosines"].values())
        assert look["rows"][0]["nearest"] <= look["rows"][0]["farthest"]
        assert 0 < look["rows"][0]["evenness"] <= 1
    assert seen[0]["losses"] != seen[1]["losses"]


def test_the_kept_teacher_says_what_a_live_one_says_and_is_asked_once(laboratory: Laboratory) -> None:
    batch = laboratory.batches(1).batch(0)
    said = laboratory.verbalizers("large", "verb-ffn", 1).verbalizers
    live = LiveTeacher(laboratory.large, said, (1, 2, 3, 4, 5))
    fresh = live.states(batch, live.targets)
    kept = KeptTeacher(live)
    _assert_same(kept.states(batch, (1,)), fresh)
    spent = kept.computed
    assert kept.states(batch, (1,)) is kept.states(batch, (2,))
    assert kept.computed == spent > 0
    assert kept.seconds == pytest.approx(3 * spent)


def _assert_same(ours: TeacherStates, theirs: TeacherStates) -> None:
    assert ours.layers.keys() == theirs.layers.keys()
    assert all(torch.equal(ours.layers[layer], theirs.layers[layer]) for layer in theirs.layers)
    assert torch.equal(ours.last, theirs.last)


def _lasting(result: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in result.items() if name not in ("seconds", "verbalizers")}
