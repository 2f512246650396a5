"""Questions about a puzzle picture and their answers, which follow from its content and never from the pixels.

A question kind is a function `(content, rng, used) -> Question | None`. `used` is the set of cells (or bars) that an
earlier turn of the same record has already told the answer about: kinds that read single cells avoid them, so that no
turn can be answered from the text of another one, and `None` says that this picture has no such question left.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from vlsi_cli.engine.data.patterns_draw import CELLS, COLOURS, MAX_HEIGHT, SHAPES, Chart, Content, Item, Row

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
RELATIONS = ("both", "colour", "shape", "nothing")


@dataclass(frozen=True)
class Question:
    """One turn: what is asked, the only right answer (lower-case words), and the kind for tables of results."""

    text: str
    answer: str
    kind: str


def normalise_answer(text: str) -> str:
    """Lower case, single spaces, no full stop at the end: the form in which answers are compared."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


def exact_match(prediction: str, answer: str) -> bool:
    """Whether a prediction is the answer, word for word, after `normalise_answer` on both."""
    return normalise_answer(prediction) == normalise_answer(answer)


def relation(left: Item, right: Item) -> str:
    """What two items share: "both", "colour", "shape" or "nothing"."""
    same_colour, same_shape = left.colour == right.colour, left.shape == right.shape
    if same_colour and same_shape:
        return "both"
    return "colour" if same_colour else "shape" if same_shape else "nothing"


def count_of(row: Row, word: str) -> int:
    """How many visible items have this colour or this shape."""
    return sum(word in (row.items[i].colour, row.items[i].shape) for i in row.visible)


def _fresh(row: Row, used: set[int]) -> list[int]:
    return [i for i in row.visible if i not in used]


def missing(row: Row, rng: random.Random, used: set[int]) -> Question | None:
    """The hidden item, which the rule of the row determines."""
    if row.missing is None:
        return None
    text = rng.choice(("Which picture is missing?", "What completes the row?"))
    return Question(text, str(row.items[row.missing]), "missing")


def what(row: Row, rng: random.Random, used: set[int]) -> Question | None:
    """The item in a numbered cell."""
    fresh = _fresh(row, used)
    if not fresh:
        return None
    cell = rng.choice(fresh)
    used.add(cell)
    number = NUMBERS[cell + 1]
    text = rng.choice((f"What is in cell {number}?", f"Which picture is in cell {number}?"))
    return Question(text, str(row.items[cell]), "what")


def where(row: Row, rng: random.Random, used: set[int]) -> Question | None:
    """The number of the one cell that holds a given item."""
    shown = [row.items[i] for i in row.visible]
    unique = [i for i in _fresh(row, used) if shown.count(row.items[i]) == 1]
    if not unique:
        return None
    cell = rng.choice(unique)
    used.add(cell)
    item = row.items[cell]
    text = rng.choice((f"Where is the {item}?", f"Which cell has the {item}?"))
    return Question(text, NUMBERS[cell + 1], "where")


def how_many(row: Row, rng: random.Random, used: set[int]) -> Question | None:
    """How often a colour or a shape is seen. The count is drawn first, so that rare counts are asked as often."""
    by_count: dict[int, list[str]] = {}
    for word in (*COLOURS, *SHAPES):
        by_count.setdefault(count_of(row, word), []).append(word)
    count = rng.choice(sorted(by_count))
    word = rng.choice(by_count[count])
    noun = f"{word} pictures" if word in COLOURS else "crosses" if word == "cross" else f"{word}s"
    text = rng.choice((f"How many {noun} are there?", f"Count the {noun}."))
    return Question(text, NUMBERS[count], "how-many")


def tally(row: Row, rng: random.Random, used: set[int]) -> Question | None:
    """How often every colour, or every shape, is seen: `how-many` for all words at once."""
    what, words = rng.choice((("colour", tuple(COLOURS)), ("shape", SHAPES)))
    answer = ", ".join(f"{word} {NUMBERS[count_of(row, word)]}" for word in words)
    return Question(f"Count every {what}.", answer, "tally")


def compare(row: Row, rng: random.Random, used: set[int]) -> Question | None:
    """What two cells share. The relation is drawn first, for the same reason as in `how_many`."""
    fresh = _fresh(row, used)
    pairs: dict[str, list[tuple[int, int]]] = {}
    for i in fresh:
        for j in fresh:
            if i < j:
                pairs.setdefault(relation(row.items[i], row.items[j]), []).append((i, j))
    if not pairs:
        return None
    answer = rng.choice(sorted(pairs))
    i, j = rng.choice(pairs[answer])
    used.update((i, j))
    first, second = NUMBERS[i + 1], NUMBERS[j + 1]
    text = rng.choice((f"What do cells {first} and {second} share?", f"Compare cells {first} and {second}."))
    return Question(text, answer, "compare")


def describe(row: Row, rng: random.Random, used: set[int]) -> Question | None:
    """Every cell, in an order that the question gives: the densest supervision a row can give.

    In reading order a model can count its words instead of looking for a cell's number; in any other it cannot.
    """
    order = rng.sample(range(CELLS), CELLS)
    numbers = [NUMBERS[i + 1] for i in order]
    cells = ("missing" if i == row.missing else str(row.items[i]) for i in order)
    answer = ", ".join(f"{number} {cell}" for number, cell in zip(numbers, cells, strict=True))
    return Question(f"{rng.choice(('Describe', 'Name'))} cells {', '.join(numbers)}.", answer, "describe")


def chart_height(chart: Chart, rng: random.Random, used: set[int]) -> Question | None:
    """The height, in blocks, of the bar of a given colour."""
    fresh = [i for i in range(CELLS) if i not in used]
    if not fresh:
        return None
    bar = rng.choice(fresh)
    used.add(bar)
    colour, height = chart.bars[bar]
    text = rng.choice((f"How tall is the {colour} bar?", f"What is the value of {colour}?"))
    return Question(text, NUMBERS[height], "chart-height")


def chart_most(chart: Chart, rng: random.Random, used: set[int]) -> Question | None:
    """The colour of the tallest bar, when one bar is."""
    return _extreme(
        chart, rng, max, ("Which bar is the tallest?", "Which value is the largest?"), "chart-most"
    )


def chart_least(chart: Chart, rng: random.Random, used: set[int]) -> Question | None:
    """The colour of the shortest bar, when one bar is."""
    return _extreme(
        chart, rng, min, ("Which bar is the shortest?", "Which value is the smallest?"), "chart-least"
    )


def _extreme(
    chart: Chart, rng: random.Random, pick: Callable[[list[int]], int], texts: tuple[str, ...], kind: str
) -> Question | None:
    heights = [height for _, height in chart.bars]
    if heights.count(pick(heights)) != 1:
        return None
    return Question(rng.choice(texts), chart.bars[heights.index(pick(heights))][0], kind)


def chart_describe(chart: Chart, rng: random.Random, used: set[int]) -> Question | None:
    """Every bar with its height, in an order that the question gives (as in `describe`)."""
    bars = rng.sample(chart.bars, CELLS)
    answer = ", ".join(f"{colour} {NUMBERS[height]}" for colour, height in bars)
    verb = rng.choice(("Describe", "Name"))
    return Question(f"{verb} bars {', '.join(colour for colour, _ in bars)}.", answer, "chart-describe")


ROW_KINDS: dict[str, Callable[[Row, random.Random, set[int]], Question | None]] = {
    "missing": missing,
    "what": what,
    "where": where,
    "how-many": how_many,
    "tally": tally,
    "compare": compare,
    "describe": describe,
}
CHART_KINDS: dict[str, Callable[[Chart, random.Random, set[int]], Question | None]] = {
    "chart-height": chart_height,
    "chart-most": chart_most,
    "chart-least": chart_least,
    "chart-describe": chart_describe,
}
KINDS: tuple[str, ...] = (*ROW_KINDS, *CHART_KINDS)
"""Every question kind, in the order in which tables show them."""
DESCRIBING = frozenset({"tally", "describe", "chart-describe"})
"""Kinds that answer several other questions at once: nothing is asked after them."""

assert len(NUMBERS) == MAX_HEIGHT + 1


def ask(kind: str, content: Content, rng: random.Random, used: set[int]) -> Question | None:
    """A question of this kind about this picture, or None where the picture allows none (see the module's text)."""
    if isinstance(content, Row):
        return ROW_KINDS[kind](content, rng, used) if kind in ROW_KINDS else None
    return CHART_KINDS[kind](content, rng, used) if kind in CHART_KINDS else None
