"""What the looks inside the interaction step saw, as a section of the report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.proof.text import table_lines

Line = Mapping[str, Any]
WORDS = """\
### Inside the interaction step

One VLsI run of each of the first three fields, looked at before its first step, after a third and after its last, on
its next batches (`python -m benchmarks.proof.diagnosis`, stored like the rest). First the draws, one row a small target
layer: the divergences (nats a token) of the nearest and the farthest large layer in its window, the probability of the
likeliest one under the adaptive temperature, and the entropy of the draw over that of an even one, where 1 means that
all are equally likely. Means over batches; a window that the draw before it left with one layer does not count."""
#: What a term is called where it has another name than in the stored lines.
_TERMS = {"right answers": "answers in the data"}
GRADIENTS = """\
And the gradients on the small model's decoder layers: the sum of the three intermediate terms, the term of the last
layer, and, for comparison, cross-entropy on the answers in the data of the same batches, which is what SFT follows: on
right ones but for the third field. The cosine is with the gradient of the loss on the right answers to held-out
(validation) puzzles: 1 where a step down the term is the steepest step down there."""

KNOWN = """\
### What the large model says where the data are wrong

Of the third field's training puzzles of one seed, at the response tokens where a wrong answer differs from the right
one (`python -m benchmarks.proof.known`): the mean probability of the right token and of the one in the data, and how
often the right one is the likeliest of all. Rows are the last layer and the target layers through their verbalizers,
which learnt from such data too. Before such a token the large model has read the picture, the question and the data's
answer so far, wrong ones included."""


def known_section(lines: Sequence[Line]) -> Iterator[str]:
    """Probabilities on wrongly answered questions, of the last line stored."""
    if not lines:
        return
    seen = lines[-1]["seen"]
    yield KNOWN
    rows = [
        [
            name if name == "last" else f"target layer {name}",
            *(_number(row[what], 2) for what in ("right", "data")),
            _number(100 * row["first"], 0),
        ]
        for name, row in seen["layers"].items()
    ]
    yield table_lines(["large model", "right token", "token in the data", "right one first, %"], rows)
    yield f"Means over {seen['wrong']} wrong tokens of {seen['tokens']:,}."


def seen_sections(lines: Sequence[Line]) -> Iterator[str]:
    """Draws and gradients at every look."""
    if not lines:
        return
    yield WORDS
    rows = [
        [_which(line), str(line["seen"]["step"]), f"{place + 1} of {len(line['seen']['rows'])}"]
        + [_number(row[name], 3) for name in ("nearest", "farthest")]
        + [_number(row[name], 2) for name in ("likeliest", "evenness")]
        for line in lines
        for place, row in enumerate(line["seen"]["rows"])
    ]
    head = ["puzzles", "steps done", "small layer", "nearest", "farthest", "likeliest", "evenness"]
    yield table_lines(head, rows)
    yield GRADIENTS
    rows = [
        [
            _which(line),
            str(line["seen"]["step"]),
            _TERMS.get(name, name),
            f"{line['seen']['losses'][name]:.3f}",
        ]
        + [f"{line['seen'][what][name]:.2f}" for what in ("norms", "cosines")]
        for line in lines
        for name in line["seen"]["norms"]
    ]
    yield table_lines(["puzzles", "steps done", "term", "loss", "norm", "cosine"], rows)


def _which(line: Line) -> str:
    records = line["settings"]["records"]
    if line["settings"].get("wrong"):
        return "wrong answers"
    return "endless" if records is None else str(records)


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
