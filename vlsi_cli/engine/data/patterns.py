"""`patterns`: picture puzzles made from a seed, with answers that are right by construction.

A record is one picture and one or more questions about it. `pattern_record(split, index)` is a pure function of its
arguments: any record can be made at any time, in any order, on any machine, and there is no end to them, so a training
run need never see a record twice.

The three splits never share a picture: the content decides the split (`split_of`), and a drawn content that belongs
elsewhere is drawn again. `docs/patterns.md` shows examples.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from vlsi_cli.engine.data.patterns_draw import (
    CELLS,
    COLOURS,
    MAX_HEIGHT,
    SHAPES,
    Chart,
    Content,
    Item,
    Row,
    draw,
    split_of,
)
from vlsi_cli.engine.data.patterns_questions import (
    CHART_KINDS,
    DESCRIBING,
    KINDS,
    NUMBERS,
    RELATIONS,
    ROW_KINDS,
    Question,
    ask,
    exact_match,
    normalise_answer,
)
from vlsi_cli.errors import ConfigError, did_you_mean

__all__ = [
    "KINDS",
    "SPLITS",
    "PatternRecord",
    "Question",
    "exact_match",
    "normalise_answer",
    "pattern_record",
    "pattern_texts",
]

SPLITS = ("train", "validation", "test")

RULES: tuple[tuple[int, ...], ...] = ((0, 0, 0, 0), (0, 1, 0, 1), (0, 0, 1, 1), (0, 1, 1, 0), (0, 1, 2, 0))
"""What colour or shape each cell repeats: all alike, ABAB, AABB, ABBA, and the cycle of three ABCA.

In the first four every value is seen an even number of times, so three cells determine the fourth wherever it is; a
cycle of three determines its first and its last cell only, and only those are hidden then.
"""
CYCLE = RULES[-1]
BALANCED: dict[str, tuple[str, ...]] = {"how-many": NUMBERS[: CELLS + 1], "compare": RELATIONS}
"""Kinds whose answers would be uneven on random rows: as a first question each answer is made equally likely."""


@dataclass(frozen=True)
class PatternRecord:
    """One picture and the questions asked about it, in order."""

    id: str
    split: str
    content: Content
    turns: tuple[Question, ...]

    @property
    def key(self) -> str:
        """The picture's content as text; equal keys never appear in two splits."""
        return self.content.key

    @cached_property
    def image(self) -> Image.Image:
        """The picture, RGB: 32 x 8 pixels for a row, 32 x 32 for a chart."""
        return draw(self.content)


def pattern_record(
    split: str, index: int, *, seed: int = 0, questions: Sequence[str] | None = None, turns: int = 1
) -> PatternRecord:
    """Record `index` of a split.

    The first question's kind is drawn uniformly from `questions`, and a picture that suits it is made; further turns
    (as many as the picture has unanswered questions, at most `turns`) take the other kinds in random order. A
    describing question gives everything away, so it comes last: where it is drawn first it stays alone.

    Args:
        split: "train", "validation" or "test".
        index: any integer >= 0; there is no last one.
        seed: another seed gives other records, of the same split.
        questions: kinds to ask, from `KINDS`; None means all of them.
        turns: the most questions asked about the picture.

    Raises:
        ConfigError: an unknown split or question kind, or fewer than one turn.
    """
    if split not in SPLITS:
        raise ConfigError(f"patterns has no split '{split}'", hint=f"one of: {', '.join(SPLITS)}")
    if turns < 1 or index < 0:
        raise ConfigError(f"patterns needs turns >= 1 and index >= 0, not turns={turns}, index={index}")
    kinds = KINDS if questions is None else tuple(questions)
    for kind in kinds or ("",):
        if kind not in KINDS:
            hint = did_you_mean(kind, KINDS) or f"one of: {', '.join(KINDS)}"
            raise ConfigError(f"patterns has no question kind '{kind}'", hint=hint)
    rng = random.Random(f"patterns {split} {seed} {index}")
    lead = rng.choice(kinds)
    wanted = rng.choice(BALANCED[lead]) if lead in BALANCED else None
    while True:
        content = _content_for(lead, rng)
        used: set[int] = set()
        first = ask(lead, content, rng, used)
        if first is not None and wanted in (None, first.answer) and split_of(content) == split:
            break
    asked = [first]
    if lead not in DESCRIBING:
        asked += _further(content, [k for k in kinds if k != lead], lead, turns - 1, rng, used)
    return PatternRecord(f"patterns-{split}-{seed}-{index}", split, content, tuple(asked))


def _further(
    content: Content, others: list[str], lead: str, number: int, rng: random.Random, used: set[int]
) -> list[Question]:
    """Up to `number` more questions: the other kinds once each in random order, then kinds that can be asked again."""
    rng.shuffle(others)
    last = [k for k in others if k in DESCRIBING]
    order = [k for k in others if k not in DESCRIBING]
    again = [k for k in ("what", "where", "chart-height") if k == lead or k in order]
    # A describing question takes the last turn, as often as any other kind would have got a turn.
    suits = [k for k in others if k in (ROW_KINDS if isinstance(content, Row) else CHART_KINDS)]
    closing = next((k for k in last if k in suits[:number]), None)
    questions: list[Question] = []
    for kind in (*order, *again, *again):
        if len(questions) == number - (closing is not None):
            break
        question = ask(kind, content, rng, used)
        if question is not None:
            questions.append(question)
    closed = ask(closing, content, rng, used) if closing else None
    return questions + ([closed] if closed else [])


def _content_for(kind: str, rng: random.Random) -> Content:
    """A picture that may suit a question of this kind."""
    if kind in CHART_KINDS:
        return _chart(rng)
    if kind == "missing":
        return _ruled_row(rng, hide=True)
    return _ruled_row(rng, hide=rng.random() < 0.7) if rng.random() < 0.4 else _free_row(rng)


def _item(rng: random.Random) -> Item:
    return Item(rng.choice(tuple(COLOURS)), rng.choice(SHAPES))


def _free_row(rng: random.Random) -> Row:
    """Four items drawn independently."""
    return Row(tuple(_item(rng) for _ in range(CELLS)))


def _ruled_row(rng: random.Random, *, hide: bool) -> Row:
    """Colours follow one rule and shapes another (not both "all alike"); one cell may be hidden."""
    while True:
        by_colour, by_shape = rng.choice(RULES), rng.choice(RULES)
        if by_colour != RULES[0] or by_shape != RULES[0]:
            break
    colours, shapes = rng.sample(tuple(COLOURS), 3), rng.sample(SHAPES, 3)
    items = tuple(Item(colours[c], shapes[s]) for c, s in zip(by_colour, by_shape, strict=True))
    hidden = rng.choice((0, CELLS - 1) if CYCLE in (by_colour, by_shape) else range(CELLS))
    return Row(items, hidden if hide else None)


def _chart(rng: random.Random) -> Chart:
    """Every colour once, in a drawn order, each bar one to seven blocks tall."""
    return Chart(tuple((colour, rng.randint(1, MAX_HEIGHT)) for colour in rng.sample(tuple(COLOURS), CELLS)))


def pattern_texts(records: int = 4000) -> Iterator[str]:
    """Roles, questions and answers of the first training records, turn by turn: text to build a tokenizer on."""
    for index in range(records):
        for turn in pattern_record("train", index, turns=4).turns:
            yield from ("user", turn.text, "assistant", turn.answer)
