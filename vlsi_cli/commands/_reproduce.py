"""``vlsi distill --reproduce``: one failed step again, and where in it the trouble is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vlsi_cli.commands import _output, _progress
from vlsi_cli.commands._tables import new_table
from vlsi_cli.errors import ConfigError

if TYPE_CHECKING:
    from vlsi_cli.engine.runs.reproduce import Reproduction

_SHOWN = 8  # names in a list that may have hundreds
_BESIDE = 5  # micro-batches side by side, within 80 columns


def show(folder: Path, *, others: Mapping[str, Any], json: bool) -> None:
    """Run the step of a folder again and print what it gives.

    Args:
        folder: in ``failures/`` of a run folder.
        others: options that make no sense beside it, by name.

    Raises:
        ConfigError: one of them was given.
    """
    extra = [f"--{name}" for name, value in others.items() if value not in (None, False, [])]
    if extra:
        raise ConfigError(
            f"--reproduce runs one step with the configuration of its run, but {', '.join(extra)} was given too",
            hint="leave it out",
        )
    from vlsi_cli.engine.runs import reproduce as engine  # here, so that --help imports no torch

    with _progress.RunView() as view:
        found = engine.run(folder, events=view)
    if json:
        _output.document(found.to_json())
        return
    for part in report_parts(found):
        _output.data(part)


def report_parts(found: Reproduction) -> Iterator[RenderableType]:
    """The step then and now, its micro-batches, and what is not finite; no part is wider than 80 columns."""
    # headings are lines of their own: a table as narrow as these would fold its title
    if found.terms:
        yield f"step {found.step} of {found.stage}, learning rate {found.learning_rate:.3g}"
        yield _terms(found)
    yield "mean loss per response token, by micro-batch"
    for first in range(0, len(found.micro_batches), _BESIDE):
        yield _micro_batches(found, first)
    for number, each in enumerate(found.micro_batches, start=1):
        yield f"records of micro-batch {number}: {', '.join(each.records)}"
    yield from _sentences(found)


def _terms(found: Reproduction) -> Table:
    table = new_table("", "loss of layer", "then", "now")
    for name, value in found.terms.items():
        then = found.terms_then.get(name, math.nan)
        table.add_row(name, _number(then), _number(value))
    table.add_row("gradient norm", _number(found.grad_norm_then), _number(found.grad_norm))
    return table


def _micro_batches(found: Reproduction, first: int) -> Table:
    """The mean loss of each layer per response token in some micro-batches, from number ``first`` on."""
    some = found.micro_batches[first : first + _BESIDE]
    numbers = [str(number) for number in range(first + 1, first + 1 + len(some))]
    table = new_table("", "loss of layer", *numbers)
    for name in found.micro_batches[0].terms:
        table.add_row(
            name, *(_number(each.terms[name]) if name in each.terms else Text("-") for each in some)
        )
    table.add_row("response tokens", *(str(each.response_tokens) for each in some))
    return table


def _sentences(found: Reproduction) -> list[str]:
    lines = [f"then: {found.message_then}"]
    if found.message is not None:
        reached = sum(bool(each.terms) for each in found.micro_batches)
        lines.append(f"now, in micro-batch {reached + 1}: {found.message}")
    lines.append("the step gives what it gave" if found.same else "the step does not give what it gave")
    if found.parameters:
        lines.append(f"not finite before the step: {_some(found.parameters, 'parameter')}")
    else:
        lines.append(
            f"all trained parameters are finite before the step; the largest magnitude is {found.largest:.3g}"
        )
    if found.gradients:
        lines.append(f"gradient not finite: {_some(found.gradients, 'parameter')}")
    return lines


def _some(names: tuple[str, ...], what: str) -> str:
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} {what}{'s' * (len(names) > 1)} ({shown})"


def _number(value: float) -> Text:
    return Text(
        f"{value:.4f}" if abs(value) < 1e6 else f"{value:.3g}", style="" if math.isfinite(value) else "red"
    )
