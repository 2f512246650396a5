"""Wrong answers in training puzzles: as many as asked for, the same ones always, and none where a score is taken."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from benchmarks.proof.fields import FIELDS, NOISY
from benchmarks.proof.known import known
from benchmarks.proof.laboratory import Laboratory
from benchmarks.proof.noise import NoisyPuzzles, with_wrong_answers
from vlsi_cli.engine.data.patterns import PatternRecord, pattern_record
from vlsi_cli.engine.data.sources import PatternsSource

SHARE, NUMBER = 0.3, 500
KINDS = NOISY.settings.kinds


@pytest.fixture(scope="module")
def clean() -> list[PatternRecord]:
    return [pattern_record("train", i, seed=7, questions=KINDS, turns=2) for i in range(NUMBER)]


@pytest.fixture(scope="module")
def noisy(clean: list[PatternRecord]) -> list[PatternRecord]:
    return [with_wrong_answers(record, SHARE) for record in clean]


def test_as_many_answers_are_wrong_as_asked_for_and_nothing_else_changes(
    clean: list[PatternRecord], noisy: list[PatternRecord]
) -> None:
    pairs = [pair for a, b in zip(clean, noisy, strict=True) for pair in zip(a.turns, b.turns, strict=True)]
    assert all((right.text, right.kind) == (given.text, given.kind) for right, given in pairs)
    assert [record.key for record in clean] == [record.key for record in noisy]
    for kind in KINDS or ():
        of_kind = [right.answer != given.answer for right, given in pairs if right.kind == kind]
        spread = math.sqrt(SHARE * (1 - SHARE) / len(of_kind))
        assert abs(sum(of_kind) / len(of_kind) - SHARE) < 4 * spread


def test_an_answer_that_is_drawn_as_wrong_is_never_the_right_one(clean: list[PatternRecord]) -> None:
    for record in clean[:100]:
        wrong = with_wrong_answers(record, 1.0)
        assert all(a.answer != b.answer for a, b in zip(record.turns, wrong.turns, strict=True))
        # in the form of a right one: the same words around other values
        assert all(
            len(a.answer.split()) == len(b.answer.split())
            for a, b in zip(record.turns, wrong.turns, strict=True)
        )


def test_the_seed_and_the_index_decide_and_a_larger_share_adds_to_a_smaller_one(
    clean: list[PatternRecord], noisy: list[PatternRecord]
) -> None:
    for index in (499, 3, 3, 0):  # in any order, as often as one likes
        fresh = pattern_record("train", index, seed=7, questions=KINDS, turns=2)
        assert with_wrong_answers(fresh, SHARE).turns == noisy[index].turns
    assert [with_wrong_answers(record, 0.0).turns for record in clean] == [record.turns for record in clean]
    for few, more, right in zip(noisy, (with_wrong_answers(r, 0.4) for r in clean), clean, strict=True):
        for a, b, c in zip(few.turns, more.turns, right.turns, strict=True):
            assert a.answer in (b.answer, c.answer)
    changed = [a.turns != b.turns for a, b in zip(clean, noisy, strict=True)]
    other = [pattern_record("train", i, seed=8, questions=KINDS, turns=2) for i in range(NUMBER)]
    assert changed != [with_wrong_answers(record, SHARE).turns != record.turns for record in other]


def test_a_source_with_wrong_answers_reads_like_one_without() -> None:
    noisy = NoisyPuzzles(1.0, questions=KINDS, turns=2, seed=7).read(3)
    clean = PatternsSource("train", questions=KINDS, turns=2, seed=7).read(3)
    assert (noisy.id, noisy.kind, noisy.turns) == (clean.id, clean.kind, clean.turns)
    for ours, theirs in zip(noisy.messages, clean.messages, strict=True):
        assert (ours == theirs) == (ours.role == "user")


def test_all_learn_from_the_same_wrong_answers_and_are_asked_for_right_ones() -> None:
    settings = replace(NOISY.settings, batch_size=4, verbalization_steps=1, asked=8, wrong=0.0)
    clean, noisy = Laboratory(settings), Laboratory(replace(settings, wrong=1.0))
    ours, theirs = noisy.batches(1).batch(0), clean.batches(1).batch(0)
    assert ours.records == theirs.records
    assert not ours.targets.equal(theirs.targets)
    losses = [each.verbalizers("large", "mlp", 1).losses for each in (noisy, clean)]
    assert losses[0] != losses[1]
    seen = known(noisy, clean, 1, batches=2)
    assert seen["tokens"] >= seen["wrong"] > 0  # words between the values are right in wrong answers too
    assert list(seen["layers"]) == ["1", "3", "5", "7", "9", "last"]
    assert seen["layers"]["last"]["first"] == 1.0  # the large model is right whatever the data say
    assert all(0 < row["right"] + row["data"] <= 1 for row in seen["layers"].values())
    for split in ("validation", "test"):
        pairs = zip(noisy.held_out.batches(split), clean.held_out.batches(split), strict=True)
        assert all(a.targets.equal(b.targets) for a, b in pairs)


def test_no_other_field_has_wrong_answers() -> None:
    shares = {name: field.settings.wrong for name, field in FIELDS.items() if field.settings.wrong}
    assert shares == dict.fromkeys(("noisy", "unreinforced"), NOISY.settings.wrong)


def test_every_field_gives_the_student_the_same_steps() -> None:
    fields = [field.settings for field in FIELDS.values()]
    assert len({each.interaction_steps + each.reinforcement_steps for each in fields}) == 1
