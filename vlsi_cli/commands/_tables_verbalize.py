"""What each layer would answer, as tables. Makes them; ``_output`` prints them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from vlsi_cli.engine.runs.verbalize import ModelReading, PictureReading, VerbalizeReport
    from vlsi_cli.engine.verbalizing.answers import Answers, LayerAnswer, Token

_AGREES, _DIFFERS = "bold green", "yellow"
_UNLIKE = "≠"
#: Columns that the figures of a model take beside its answer, those of the mark, and those an answer can be read in.
_FIGURES, _MARK, _ANSWER = 32, 3, 16


def report_parts(report: VerbalizeReport) -> Iterator[RenderableType]:
    """Every picture: its question, a line for each layer, and where the answer becomes the final one."""
    for picture in report.pictures:
        width, height = picture.size
        yield f"\n{picture.name}, {width} x {height}"
        yield f"question: {picture.prompt}"
        if picture.reference is not None:
            yield f"right answer: {picture.reference}"
        yield _Layers(report, picture)
        for model, answers in zip(report.models, picture.answers, strict=True):
            yield f"{model.model}: {model.settled(answers)}"
        if report.place is not None:
            for model, answers in zip(report.models, picture.answers, strict=True):
                yield from _candidates(model, answers, report.place)
    yield ""
    for model in report.models:
        yield model.sentence


class _Layers:
    """One model, or two side by side with the lines marked where they differ; in a narrow terminal below each other."""

    def __init__(self, report: VerbalizeReport, picture: PictureReading) -> None:
        self._names = [model.model for model in report.models]
        self._rows = [
            [
                picture.answers[side].layers[index] if index is not None else None
                for side, index in enumerate(row)
            ]
            for row in report.rows
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        beside = options.max_width - len(self._names) * _FIGURES - (len(self._names) - 1) * _MARK
        if len(self._names) == 1 or beside >= len(self._names) * _ANSWER:
            yield self._side_by_side()
            return
        yield ", ".join(f"{number}: {name}" for number, name in enumerate(self._names, 1))
        yield self._below_each_other()

    def _side_by_side(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for number, name in enumerate(self._names):
            if number:
                table.add_column("")  # the mark between the two
            _add_columns(table, name)
        for answers in self._rows:
            mark = _mark(answers)
            cells: list[Text] = []
            for side, answer in enumerate(answers):
                if side:
                    cells.append(mark)
                cells += _cells(answer, differ=mark.plain == _UNLIKE)
            table.add_row(*cells)
        return table

    def _below_each_other(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("")
        table.add_column("model", justify="right")
        _add_columns(table, "answer")
        for answers in self._rows:
            mark = _mark(answers)
            for number, answer in enumerate(answers, 1):
                if answer is not None:
                    table.add_row(mark, Text(str(number)), *_cells(answer, differ=mark.plain == _UNLIKE))
        return table


def _add_columns(table: Table, answer: str) -> None:
    table.add_column("layer", justify="right")
    table.add_column(answer, overflow="fold", ratio=1)
    table.add_column("log p", justify="right")
    table.add_column("entropy", justify="right")
    table.add_column("final")


def _mark(answers: Sequence[LayerAnswer | None]) -> Text:
    """Whether two answers differ; nothing for one alone."""
    both = [answer for answer in answers if answer is not None]
    if len(both) < 2:
        return Text("")
    return Text(_UNLIKE, style=_DIFFERS) if both[0].text != both[1].text else Text("=")


def _cells(answer: LayerAnswer | None, *, differ: bool) -> Sequence[Text]:
    if answer is None:
        return [Text("")] * 5
    shown = Text(printable(answer.text), style=_AGREES if answer.agrees else _DIFFERS if differ else "")
    if not answer.text:
        shown = Text("(nothing)", style="dim")
    if not answer.complete:
        shown.append(" …", style="dim")
    return [
        Text(str(answer.layer)),
        shown,
        Text(f"{answer.log_probability:.2f}"),
        Text(f"{answer.entropy:.2f}"),
        Text("yes" if answer.agrees else "", style=_AGREES),
    ]


def _candidates(model: ModelReading, answers: Answers, place: int) -> Iterator[RenderableType]:
    final = answers.layers[-1].tokens
    if not answers.candidates:
        yield f"\n{model.model}: its final answer has only {len(final)} tokens, so none at {place}"
        return
    before = "".join(token.text for token in final[: place - 1])
    after = f", after '{printable(before)}'" if before else ""
    yield f"\n{model.model}: likeliest tokens at place {place} of its final answer{after}"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column("layer", justify="right")
    for row in answers.candidates:
        shown = [
            Text.assemble(_quoted(token), (f" {_share(token.probability)}", "dim"))
            for token in row.candidates
        ]
        if row.candidates[0].id == final[place - 1].id:
            shown[0].stylize(_AGREES)
        table.add_row(Text(str(row.layer)), *shown)
    yield table


def _quoted(token: Token) -> str:
    return f"'{printable(token.text)}'"


def _share(probability: float) -> str:
    return f"{probability:.2f}" if probability >= 0.01 else "<.01"


def printable(text: str) -> str:
    """A model's text on one line: what would move the cursor is written as its escape."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
