"""`vlsi export`: a model as ONNX graphs in a folder that a runtime loads, checked against torch before it is there."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from vlsi_cli import __version__
from vlsi_cli.config.folders import EXPORT_REPORT
from vlsi_cli.engine.backbones.folders import resolve_folder
from vlsi_cli.engine.backbones.load import describe, load_backbone
from vlsi_cli.engine.exporting import graphs
from vlsi_cli.engine.exporting.check import TOKENS, Check, check
from vlsi_cli.engine.exporting.layouts import MROPE, TILED, LayoutName, layout_for
from vlsi_cli.engine.exporting.runtime import OnnxModel
from vlsi_cli.engine.exporting.writing import half_precision, trace_all, write_export
from vlsi_cli.engine.files import new_folder, write_json
from vlsi_cli.engine.places import require_writable
from vlsi_cli.errors import CheckpointError, ConfigError, ModelError
from vlsi_cli.events import Events, Note, ignore

_EXTRA = ("onnx", "onnxruntime", "onnxscript")
_PACKAGES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class ExportReport:
    """What was exported and what the check found; ``export_report.json`` holds the same.

    Attributes:
        folder: the exported folder.
        model: what the user called the model.
        source: the model's folder from the exported one, or its name on the hub (then with ``revision``).
        family: its ``model_type``.
        layout: ``transformers.js`` or ``ort-genai``.
        precision: ``fp32``, ``fp16``, ``int8`` or ``int4``.
        opset: operator set of the graphs.
        files: name -> bytes of every file with weights.
        shared_head: whether a tied head lies in the embedding's file only.
        check: the comparison with torch.
        versions: packages that made it.
        seconds: wall-clock time of the export and its check.
    """

    folder: Path
    model: str
    source: str
    revision: str | None
    family: str
    layout: str
    precision: str
    opset: int
    files: Mapping[str, int]
    shared_head: bool
    check: Check
    versions: Mapping[str, str]
    seconds: float


def export(
    model: str,
    target: Path,
    *,
    layout: LayoutName = "transformers.js",
    dtype: Literal["fp32", "fp16"] = "fp32",
    quantize: Literal["int8", "int4"] | None = None,
    revision: str | None = None,
    separate_head: bool = False,
    agreement: float | None = None,
    questions: int = 100,
    largest_file: int | None = None,
    events: Events = ignore,
) -> ExportReport:
    """Export, check, and only then give the folder its name.

    Args:
        model: demo id, folder of a checkpoint, or hub id.
        target: the folder to make; one that exists is replaced.
        layout: which runtime's folder.
        dtype: of weights and computation.
        quantize: weights in fewer bits; computation stays in fp32.
        revision: of a hub model.
        separate_head: write a tied head into the decoder's own file too.
        agreement: smallest share of equal greedy tokens that passes; None for the precision's own.
        questions: built-in puzzles asked before and after quantization.
        largest_file: bytes of weights that may lie inside one graph file; None for protobuf's limit.

    Raises:
        ConfigError: the extra ``onnx`` is not installed, or a quantized fp16 graph is asked for.
        ModelError: no such model, a family without graphs, or a layout that does not know it.
        CheckpointError: the graphs do not say what the model says; nothing is left behind.
        OutputError: the folder cannot be written.
    """
    began = time.monotonic()
    require_packages()
    precision = precision_of(dtype, quantize)
    _refuse_unknown(model, revision, layout)
    require_writable(target / EXPORT_REPORT)  # before the minutes that a large model takes
    backbone = load_backbone(model, revision=revision)
    chosen = layout_for(layout, backbone.family.name)
    if backbone.family.name in TILED:
        events(
            Note(f"transformers.js has no {backbone.family.title}: the folder is for onnxruntime from Python")
        )
    with new_folder(target) as partial:
        with half_precision(backbone) if precision == "fp16" else nullcontext():
            traced = trace_all(backbone, chosen, events=events)
            events(Note(f"quantizing to {quantize} and writing" if quantize else "writing"))
            shared = write_export(
                traced,
                backbone,
                partial,
                chosen,
                precision,
                separate_head=separate_head,
                largest_file=largest_file,
            )
            del traced  # as large as the model; the check needs room
        events(Note(f"checking: {TOKENS} tokens of four prompts through onnxruntime and torch"))
        found = check(
            OnnxModel(partial),
            backbone,
            precision,
            agreement=agreement,
            questions=questions if quantize else 0,
        )
        refuse_faults(found, model)
        report = ExportReport(
            folder=target,
            model=_shown(model),
            source=_source(model, target),
            revision=revision,
            family=backbone.family.name,
            layout=layout,
            precision=precision,
            opset=graphs.OPSET,
            files=_weights(partial),
            shared_head=shared,
            check=found,
            versions={"vlsi": __version__} | {name: metadata.version(name) for name in _PACKAGES},
            seconds=time.monotonic() - began,
        )
        write_json(partial / EXPORT_REPORT, _document(report))
    return report


def recheck(
    folder: Path,
    *,
    model: str | None = None,
    agreement: float | None = None,
    questions: int = 100,
    events: Events = ignore,
) -> ExportReport:
    """Compare an exported folder with its model once more, and renew what its report says of that.

    Args:
        model: where the model is now; None for where the report says.

    Raises:
        CheckpointError: no export, a damaged graph or report, or graphs that do not say what the model says.
        ModelError: the model is not where it was.
    """
    began = time.monotonic()
    require_packages()
    saved = _read_report(folder)
    source, revision = model or _resolve_source(saved["source"], folder), saved["revision"]
    exported = OnnxModel(folder)
    backbone = load_backbone(source, revision=revision if model is None else None)
    if backbone.family.name != saved["family"]:
        raise CheckpointError(
            f"{folder} was made from a {saved['family']} model, and '{source}' is {backbone.family.name}"
        )
    precision = saved["precision"]
    events(Note(f"checking: {TOKENS} tokens of four prompts through onnxruntime and torch"))
    asked = questions if precision in ("int8", "int4") else 0
    limit = saved["check"]["agreement"] if agreement is None else agreement
    found = check(exported, backbone, precision, agreement=limit, questions=asked)
    refuse_faults(found, source)
    kept = {key: saved[key] for key in saved if key not in ("check", "seconds", "format")}
    report = ExportReport(folder=folder, **kept, check=found, seconds=time.monotonic() - began)
    write_json(folder / EXPORT_REPORT, _document(report))
    return report


def require_packages() -> None:
    """Refuse early where the packages of the extra ``onnx`` are missing.

    Raises:
        ConfigError: one is.
    """
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"exporting to ONNX needs the package {missing[0]}, which is not installed",
            hint="pip install 'vlsi-cli[onnx]'",
        )


def precision_of(dtype: Literal["fp32", "fp16"], quantize: Literal["int8", "int4"] | None) -> str:
    """One word for what the graphs hold.

    Raises:
        ConfigError: both are asked for.
    """
    if quantize and dtype != "fp32":
        raise ConfigError(
            f"--quantize {quantize} and --dtype {dtype} exclude each other: quantized graphs compute in fp32",
            hint="leave one of them out",
        )
    return quantize or dtype


def refuse_faults(found: Check, model: str) -> None:
    """Raise what a check found wrong.

    Raises:
        CheckpointError: anything.
    """
    if found.faults:
        more = f" (and {len(found.faults) - 1} more)" if len(found.faults) > 1 else ""
        raise CheckpointError(
            f"the exported graphs do not say what '{model}' says: {found.faults[0]}{more}",
            hint="a smaller share of equal tokens can be allowed with --agreement"
            if found.tolerance is None
            else None,
        )


def _refuse_unknown(model: str, revision: str | None, layout: LayoutName) -> None:
    """What the config alone can tell, before any weights are read."""
    folder = resolve_folder(model, revision, weights=False)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ModelError(
            f"'{model}' holds adapters without the model they belong to, and graphs need the whole model",
            hint="merge them first: the student/ folder of a run of vlsi distill is merged",
        )
    if (folder / EXPORT_REPORT).is_file():
        raise ModelError(
            f"'{model}' holds exported graphs already, not a checkpoint",
            hint=f"export the checkpoint they were made from, or compare them with it: vlsi export --check {model}",
        )
    known = describe(model, revision=revision)
    family = known.family
    graphs.require_exportable(known.config, family.title, model)
    if layout == "ort-genai" and family.name not in MROPE:
        raise ModelError(
            f"'{model}' is a {family.title} model, which onnxruntime-genai does not know",
            hint="use --layout transformers.js",
        )


def _weights(folder: Path) -> dict[str, int]:
    files = (p for p in sorted(folder.rglob("*")) if p.suffix in (".onnx", ".onnx_data"))
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _shown(model: str) -> str:
    """A model's name without the folders of this machine: reports travel."""
    return Path(model).resolve().name if Path(model).expanduser().is_dir() else model


def _source(model: str, target: Path) -> str:
    path = Path(model).expanduser()
    if model.startswith("demo/") or not path.is_dir():
        return model
    return os.path.relpath(path.resolve(), target.resolve()).replace(os.sep, "/")


def _resolve_source(source: str, folder: Path) -> str:
    if not source.startswith("."):
        return source
    path = (folder.resolve() / source).resolve()
    if not path.is_dir():
        raise ModelError(
            f"the model that {folder} was made from is no longer at {source} beside it",
            hint=f"say where it is: vlsi export MODEL --check {folder}",
        )
    return str(path)


def _document(report: ExportReport) -> dict[str, Any]:
    return {"format": 1} | {key: value for key, value in asdict(report).items() if key != "folder"}


def _read_report(folder: Path) -> dict[str, Any]:
    try:
        saved = json.loads((folder / EXPORT_REPORT).read_text(encoding="utf-8"))
        if saved["format"] != 1:
            raise ValueError(f"format {saved['format']}")
        for key in ("source", "revision", "family", "precision", "check"):
            saved[key]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} has no readable {EXPORT_REPORT}, so it is not an export of this program ({error})",
            hint="export one: vlsi export MODEL --output DIR",
        ) from error
    return dict(saved)
