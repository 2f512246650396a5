"""``vlsi distill --reproduce``: one failed step again, and where in it the trouble is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from vlsi_cli.commands import _output, _progress
from vlsi_cli.errors import ConfigError

if TYPE_CHECKING:
    from vlsi_cli.engine.runs.reproduce import Reproduction

_SHOWN = 8  # names in a list that may have hundreds


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
    if found.terms:
        _output.data(_terms(found))
    _output.data(_micro_batches(found))
    for line in _sentences(found):
        _output.data(line)


def _terms(found: Reproduction) -> Table:
    table = Table(title=f"step {found.step} of {found.stage}, learning rate {found.learning_rate:.3g}")
    for name in ("loss of layer", "then", "now"):
        table.add_column(name, justify="right")
    for name, value in found.terms.items():
        then = found.terms_then.get(name, math.nan)
        table.add_row(name, _number(then), _number(value))
    table.add_row("gradient norm", _number(found.grad_norm_then), _number(found.grad_norm))
    return table


def _micro_batches(found: Reproduction) -> Table:
    table = Table(title=f"step {found.step} of {found.stage}: mean loss of each layer per response token")
    table.add_column("micro-batch", justify="right")
    names = list(found.micro_batches[0].terms)
    for name in (*names, "tokens"):
        table.add_column(name, justify="right")
    table.add_column("records", overflow="fold")
    for number, each in enumerate(found.micro_batches, start=1):
        cells = [_number(each.terms[name]) if name in each.terms else Text("-") for name in names]
        table.add_row(str(number), *cells, str(each.response_tokens), ", ".join(each.records))
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
