"""What the looks inside the interaction step saw, as a section of the report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.proof.text import table_lines

Line = Mapping[str, Any]
WORDS = """\
### Inside the interaction step

One VLsI run of each field, looked at before its first step, after a third and after its last, on its next batches
(`python -m benchmarks.proof.diagnosis`, stored like the rest). First the draws, one row a small target layer: the
divergences (nats a token) of the nearest and the farthest large layer in its window, the probability of the likeliest
one under the adaptive temperature, and the entropy of the draw over that of an even one, where 1 means that all are
equally likely. Means over batches; a window that the draw before it left with one layer does not count."""
GRADIENTS = """\
And the gradients on the small model's decoder layers: the sum of the three intermediate terms, the term of the last
layer, and, for comparison, cross-entropy on the right answers of the same batches, which is what SFT follows. The
cosine is with the gradient of the loss on held-out (validation) puzzles: 1 where a step down the term is the steepest
step down there."""


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
        [_which(line), str(line["seen"]["step"]), name, f"{line['seen']['losses'][name]:.3f}"]
        + [f"{line['seen'][what][name]:.2f}" for what in ("norms", "cosines")]
        for line in lines
        for name in line["seen"]["norms"]
    ]
    yield table_lines(["puzzles", "steps done", "term", "loss", "norm", "cosine"], rows)


def _which(line: Line) -> str:
    records = line["settings"]["records"]
    return "endless" if records is None else str(records)


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
