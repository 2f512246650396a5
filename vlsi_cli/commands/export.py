"""``vlsi export``: a model in the form that another runtime loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vlsi_cli.commands import _options as opt
from vlsi_cli.commands import _output, _tables_export
from vlsi_cli.config import catalog, folders
from vlsi_cli.errors import ConfigError
from vlsi_cli.events import Event, Note

LayoutName = Literal["transformers.js", "ort-genai"]


def _tell(event: Event) -> None:
    if isinstance(event, Note):
        _output.say(event.text)


def export(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A run folder, a checkpoint folder, a hub id, or demo/small.", show_default=False
        ),
    ] = None,
    to: Annotated[Literal["onnx"], typer.Option("--to", help="The form to export to.")] = "onnx",
    layout: Annotated[
        LayoutName,
        typer.Option(help="Files as transformers.js or as onnxruntime-genai loads them; Python can use either."),
    ] = "transformers.js",
    dtype: Annotated[Literal["fp32", "fp16"], typer.Option(help="Of weights and computation.")] = "fp32",
    quantize: Annotated[
        Literal["int8", "int4"] | None,
        typer.Option(help="Weights in fewer bits, by onnxruntime's quantizers.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", show_default=False,
                     help="Folder to write; default: exports/NAME in the run folder, or exports/MODEL-NAME here."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export that is there.")] = False,
    check: Annotated[
        Path | None,
        typer.Option(metavar="DIR", show_default=False,
                     help="Export nothing: compare this export with its model once more."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub model.", show_default=False)
    ] = None,
    separate_head: Annotated[
        bool,
        typer.Option("--separate-head", help="Write a tied head into the decoder's own file too, as browsers need it."),
    ] = False,
    agreement: Annotated[
        float | None,
        typer.Option(min=0, max=1, show_default=False,
                     help="Smallest share of equal greedy tokens that passes; default by precision."),
    ] = None,
    questions: Annotated[
        int, typer.Option(min=0, help="Built-in puzzles asked before and after quantization.")
    ] = 100,
    json: opt.JsonOption = False,
) -> None:  # fmt: skip
    """Export a model to ONNX graphs, and compare them with the model before the folder gets its name.

    The graphs read the same prompts as the model and continue them with their cache; logits, tokens and (quantized)
    answers are compared. What is found stands in `export_report.json`; a difference beyond the limits is an error.
    """
    _output.use_json(json)
    asked = None if model is None else catalog.resolve_alias(folders.model_of_run(model))
    if check is None and (model is None or asked is None):
        raise ConfigError("no MODEL is given", hint="e.g. vlsi export demo/small, or vlsi export runs/demo-1")
    if check is not None:
        changing = {"--output": output, "--quantize": quantize, "--overwrite": overwrite or None}
        given = [name for name, value in changing.items() if value is not None]
        if given:
            raise ConfigError(
                f"--check exports nothing, but {', '.join(given)} was given too", hint="leave it out"
            )

        from vlsi_cli.engine.runs import export as engine

        report = engine.recheck(check, model=asked, agreement=agreement, questions=questions, events=_tell)
    else:
        precision = quantize or dtype
        form = "onnx" if layout == "transformers.js" else "ort-genai"
        assert model is not None
        assert asked is not None
        target = folders.for_export(output, model, f"{form}-{precision}", overwrite=overwrite)

        from vlsi_cli.engine.runs import export as engine

        report = engine.export(
            asked,
            target,
            layout=layout,
            dtype=dtype,
            quantize=quantize,
            revision=revision,
            separate_head=separate_head,
            agreement=agreement,
            questions=questions,
            events=_tell,
        )
    if json:
        _output.document(report)
    else:
        for part in _tables_export.export_parts(report, what="exported" if check is None else "checked"):
            _output.data(part)
