"""Puzzles some of whose answers are wrong: what a data set is like that was written by people or by programs.

Whether an answer is wrong, and which wrong one it is, follows from the record's split, seed and index and the place of
the question in it, and from nothing else: every run of a training seed reads the same wrong answers. A wrong answer is
the right one to the same question about another picture, so that nothing in its form gives it away. What a larger share
makes wrong holds all that a smaller one does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from vlsi_cli.config.run import DataConfig
from vlsi_cli.config.run import PatternsSource as PatternsConfig
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.data.collate import collate
from vlsi_cli.engine.data.patterns import PatternRecord, Question, pattern_record
from vlsi_cli.engine.data.sources import PatternsSource
from vlsi_cli.engine.data.stream import RecordStream
from vlsi_cli.engine.data.template import ChatEncoder, Encoded


class NoisyPuzzles(PatternsSource):
    """Training puzzles with wrong answers among the right ones; pictures, questions and their order are unchanged.

    Args:
        share: probability that the answer to a question is wrong, each on its own.
        size, questions, turns, seed: as in ``PatternsSource``.
    """

    def __init__(
        self,
        share: float,
        *,
        size: int | None = None,
        questions: Sequence[str] | None = None,
        turns: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__("train", size=size, questions=questions, turns=turns, seed=seed)
        self._make: Callable[[int], PatternRecord] = partial(_made_noisy, self._make, share)
        self.name += f" with {100 * share:g} % wrong answers"


def _made_noisy(make: Callable[[int], PatternRecord], share: float, index: int) -> PatternRecord:
    return with_wrong_answers(make(index), share)


def with_wrong_answers(record: PatternRecord, share: float) -> PatternRecord:
    """The record with each answer wrong at the given probability."""
    turns = []
    for place, question in enumerate(record.turns):
        rng = random.Random(f"wrong answers {record.id} {place}")
        turns.append(_wrongly_answered(question, rng) if rng.random() < share else question)
    return replace(record, turns=tuple(turns))


def _wrongly_answered(question: Question, rng: random.Random) -> Question:
    """The question with its answer for another picture, drawn until it is a different one."""
    while True:
        other = pattern_record("train", rng.randrange(2**32), questions=(question.kind,)).turns[0]
        if other.text == question.text and other.answer != question.answer:
            return other


def noisy_stream(
    data: DataConfig, encoder: ChatEncoder, share: float, *, seed: int
) -> RecordStream[Encoded, Batch]:
    """What ``training_stream`` gives of a configuration's training puzzles, in the same order, with wrong answers."""
    (puzzles,) = data.sources
    assert isinstance(puzzles, PatternsConfig)
    assert puzzles.split == "train"  # held-out puzzles stay as they are
    source = NoisyPuzzles(
        share, size=puzzles.size, questions=puzzles.questions, turns=puzzles.turns, seed=puzzles.seed
    )
    together = partial(collate, pad_id=encoder.pad_id)
    return RecordStream([(source, puzzles.weight)], encoder.encode, together, seed=seed, shuffle=data.shuffle)
