"""``vlsi verbalize``: what each layer of a model would answer about a picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vlsi_cli.commands import _options as opt
from vlsi_cli.commands import _output, _progress, _tables_verbalize
from vlsi_cli.config import catalog, reading, words
from vlsi_cli.errors import ConfigError

_READ, _SHOW = "How layers are read", "What is shown"


def verbalize(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE", help="Pictures, folders of them, or - for standard input; none: a puzzle.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str,
        typer.Option("--prompt", "-p", help="The question; default: the puzzle's own, or what is shown.",
                     show_default=False),
    ] = "",
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL|RUN", help="Hub id, folder, or run folder (its student); default: the demo pair.",
                     show_default=False),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(metavar="MODEL|RUN", help="A second model, side by side with the first.", show_default=False),
    ] = None,
    puzzle: Annotated[int, typer.Option(min=0, help="Which built-in puzzle, when no picture is named.")] = 2,
    verbalizers: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR|RUN|ID", help="Trained verbalizers, a run folder with some, or the hub id of a model "
                     "pushed with some. Give it again for more.", show_default=False, rich_help_panel=_READ),
    ] = None,
    logit_lens: Annotated[
        bool, typer.Option("--logit-lens", help="Use no trained verbalizers.", rich_help_panel=_READ)
    ] = False,
    layers: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Layers to read, e.g. 2,6,10 or 2-26:4; default: those with a verbalizer, "
                     "or all.", show_default=False, rich_help_panel=_READ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer, in tokens.", rich_help_panel=_READ)
    ] = reading.MAX_NEW_TOKENS,
    device: opt.DeviceOption = None,
    precision: opt.PrecisionOption = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="PLACE", help="Also each layer's likeliest tokens at this token of the final "
                     "answer, counted from 1.", show_default=False, rich_help_panel=_SHOW),
    ] = None,
    top_k: Annotated[
        int, typer.Option(min=1, max=100, help="How many of them.", rich_help_panel=_SHOW)
    ] = reading.TOP_K,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a page with pictures and coloured tokens.", show_default=False,
                     rich_help_panel=_SHOW),
    ] = None,
    json: opt.JsonOption = False,
) -> None:  # fmt: skip
    """Show what each layer of a model would answer about a picture.

    Every layer answers by itself, word by word, through its trained verbalizer; without one through the
    model's own head (the logit lens). The last line is the model's own answer.

    Without arguments: a built-in puzzle, read by the two models of the demo pair.
    """
    _output.use_json(json)
    if verbalizers and logit_lens:
        raise ConfigError("--verbalizers and --logit-lens exclude each other", hint="leave one of them out")
    if html is not None and html.is_dir():
        raise ConfigError(
            f"--html {html} is a folder", hint=f"name a file in it: --html {html / 'page.html'}"
        )
    chosen = words.layers_from_word(layers) if layers is not None else None
    first = catalog.resolve_alias(model) if model is not None else "demo/large"
    second = catalog.resolve_alias(compare, first) if compare is not None else None

    from vlsi_cli.engine.runs import verbalize as engine  # here, so that --help imports no torch

    if html is not None:
        engine.require_html(html)
    with _progress.RunView() as view:
        report = engine.run(
            images or (),
            stdin=sys.stdin.buffer,
            model=first,
            compare=second if model is not None or second is not None else "demo/small",
            prompt=prompt,
            puzzle_index=puzzle,
            verbalizers=verbalizers or (),
            logit_lens=logit_lens,
            layers=chosen,
            place=tokens,
            top_k=top_k,
            max_new_tokens=max_new_tokens,
            device=device or "auto",
            precision=precision or "auto",
            events=view,
        )
    if html is not None:
        engine.write_html(html, report)
    if json:
        _output.document(report.to_json())
    else:
        for part in _tables_verbalize.report_parts(report):
            _output.data(part)
    if html is not None:
        _output.say(f"written: {html}")
