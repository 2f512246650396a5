"""What `vlsi distill --reproduce` shows, on a narrow screen and through a pipe."""

from __future__ import annotations

import io
import math

from rich.console import Console

from vlsi_cli.commands._reproduce import report_parts
from vlsi_cli.engine.runs.reproduce import MicroBatch, Reproduction

LAYERS = [*map(str, range(1, 28)), "last"]


def reproduction(micro_batches: int) -> Reproduction:
    """A step of a model of 28 layers, which overflows in the second micro-batch; the third is not reached."""
    rows = []
    for number in range(micro_batches):
        value = math.nan if number == 1 else 1234.5678
        terms = {} if number == 2 else dict.fromkeys(LAYERS, value)
        records = tuple(f"images/of/a/long/name/{number}-{record}.png" for record in range(4))
        rows.append(MicroBatch(records, 12_345, terms))
    return Reproduction(
        stage="interaction", step=12_345, learning_rate=1e-4, processes=1, message_then="the loss is not finite",
        message=None, terms_then=dict.fromkeys(LAYERS, math.nan), terms=dict.fromkeys(LAYERS, math.nan),
        grad_norm_then=math.inf, grad_norm=math.inf, same=True, micro_batches=tuple(rows), parameters=(),
        gradients=(), largest=3.0,
    )  # fmt: skip


def shown(found: Reproduction, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    for part in report_parts(found):
        console.print(part, soft_wrap=isinstance(part, str), markup=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_tables_fit_into_eighty_columns_whatever_the_screen() -> None:
    found = reproduction(16)
    narrow, wide = shown(found, 80), shown(found, 200)
    assert narrow == wide, "nothing is folded"
    tables = [line for line in wide.splitlines() if not line.startswith("records")]
    assert max(map(len, tables)) <= 80


def test_the_bad_micro_batch_is_found_in_its_column() -> None:
    lines = shown(reproduction(16), 200).splitlines()
    (head, *_), rows = ([i for i, line in enumerate(lines) if line.split()[-5:] == list("12345")], lines)
    assert rows[head + 1].split() == ["1", "1234.5678", "nan", "-", "1234.5678", "1234.5678"]
    assert rows[head + 29].split() == ["response", "tokens", *["12345"] * 5]
    assert sum("loss of layer" in line for line in lines) == 1 + 4  # the step, and 16 micro-batches by five
    assert (
        "records of micro-batch 2: images/of/a/long/name/1-0.png, images/of/a/long/name/1-1.png"
        in "\n".join(lines)
    )
