"""The output of `vlsi data answer`: FILE.jsonl, and FILE.work with every answer as it came and how it was made."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlsi_cli.config.answering import AnsweringConfig
from vlsi_cli.config.data import DataConfig
from vlsi_cli.config.run import DistillConfig, ModelConfig
from vlsi_cli.engine.backbones.fingerprint import weights_fingerprint
from vlsi_cli.engine.data.writing import pictures_folder
from vlsi_cli.engine.evaluation.identity import file_digests
from vlsi_cli.engine.files import is_half, only_process, write_json, writing
from vlsi_cli.engine.places import require_writable
from vlsi_cli.engine.runs.identity import stored_dtype
from vlsi_cli.errors import OutputError

SETTINGS = "settings.json"
#: Characters of a fingerprint that are shown.
SHORT = 16

#: What an answer depends on besides its question, and what to call it.
_MADE_BY = {
    "weights": "other weights",
    "files": "another configuration or processor of the model",
    "processor": "another image processor",
    "precision": "precision {}",
    "quantization": "quantization {}",
    "pixels": "data.min_pixels and max_pixels {}",
    "temperature": "temperature {}",
    "seed": "seed {}",
    "think": "think {}",
}
#: What else the file depends on.
_MADE_FROM = {"replace": "replace {}", "data": "the data {}"}


def settings_of(
    config: DistillConfig, model: ModelConfig, asked: AnsweringConfig, folder: Path, processor: Any
) -> dict[str, Any]:
    """How answers are made, as it stands in ``settings.json`` and in the report.

    Args:
        folder: of the model, with its weights.
        processor: the model's.
    """
    facts: dict[str, Any] = {
        "weights": weights_fingerprint(folder),
        "files": file_digests(folder),
        "processor": type(processor.image_processor).__name__,
        "precision": stored_dtype(config, model),
        "quantization": model.quantization,
        "pixels": [config.data.min_pixels, config.data.max_pixels],
        "temperature": asked.temperature,
        "seed": config.seed if asked.temperature else None,
        "think": asked.think,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return {
        "identity": digest,
        "model": model.id,
        "revision": model.revision,
        **facts,
        "max_new_tokens": asked.max_new_tokens,
        "replace": asked.replace,
        "data": _data(config.data, asked.output),
    }


def made_by(settings: dict[str, Any], turns: list[int]) -> dict[str, Any]:
    """What a record says of who answered it.

    Args:
        turns: which of its turns, from 1.
    """
    by = {"model": settings["model"], "revision": settings["revision"]}
    by |= {"weights": settings["weights"][:SHORT], "temperature": settings["temperature"]}
    by |= {"seed": settings["seed"], "think": settings["think"] or None}
    return {name: value for name, value in by.items() if value is not None} | {"turns": turns}


def work_folder(output: Path) -> Path:
    """Where answers are kept as they come."""
    return output.with_name(f"{output.stem}.work")


def own_paths(output: Path) -> tuple[Path, ...]:
    """What an answering writes: the file, and what it keeps beside it."""
    return output, work_folder(output), pictures_folder(output)


@contextmanager
def held(output: Path, settings: dict[str, Any], *, overwrite: bool) -> Iterator[None]:
    """Hold the work folder of an output that these settings may go on with; sweep what a kill left beside it.

    Raises:
        OutputError: it cannot be written, another command works on it, or it was made otherwise.
    """
    require_writable(output)
    work = work_folder(output)
    if not overwrite:
        _require_ours(output, settings)  # before anything is made
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
    with only_process(work, str(output)):
        if not overwrite:
            _require_ours(output, settings)  # another command may just have ended
        known = _known(work)
        with writing(work):
            if known is None or known["identity"] != settings["identity"]:
                for left in work.glob("answers*.jsonl"):
                    left.unlink()
            halves = [*output.parent.glob(f".{glob.escape(output.stem)}-*"), *work.iterdir()]
            for left in (left for left in halves if is_half(left.name) and left.is_file()):
                left.unlink()
        if known != settings:
            write_json(work / SETTINGS, settings)
        yield


def is_other(output: Path, settings: dict[str, Any]) -> bool:
    """Whether there is an output that was made otherwise."""
    return _problem(output, settings) is not None


def _problem(output: Path, settings: dict[str, Any]) -> str | None:
    known = _known(work_folder(output))
    return _difference(output, known, settings) if known else _stranger(output)


def _require_ours(output: Path, settings: dict[str, Any]) -> None:
    """Refuse an output that was made otherwise."""
    if (problem := _problem(output, settings)) is not None:
        raise OutputError(f"{output} {problem}", hint="give another --output, or replace it with --overwrite")


def _known(work: Path) -> dict[str, Any] | None:
    try:
        known = json.loads((work / SETTINGS).read_text(encoding="utf-8"))
        return known if isinstance(known, dict) and "identity" in known else None
    except (OSError, ValueError, RecursionError):
        return None


def _stranger(output: Path) -> str | None:
    """Why a file or folder without settings is not ours to write, or None where there is none."""
    work = work_folder(output)
    if output.exists():
        return f"exists, and there is no {work.name}/{SETTINGS} that says how it was made"
    if any(work.glob("answers*.jsonl")):
        return f"would be gone on with from {work.name}, whose {SETTINGS} is missing or damaged"
    return None


def _difference(output: Path, known: dict[str, Any], settings: dict[str, Any]) -> str | None:
    """In what an output was made otherwise, or None where it was not, or where there is nothing of it yet."""
    work = work_folder(output)
    if not output.exists() and not any(file.stat().st_size for file in work.glob("answers*.jsonl")):
        return None
    for name, words in (_MADE_BY | _MADE_FROM).items():
        if known.get(name) != settings[name]:
            if name == "weights":
                there, here = (
                    f"{each.get('model')} (weights {str(each.get(name))[:SHORT]})"
                    for each in (known, settings)
                )
                return f"was made by {there}, and this command has {here}"
            there, here = (_said(words, each.get(name)) for each in (known, settings))
            return f"was made with {there}" + (f", and this command has {here}" if "{}" in words else "")
    return None


def _said(words: str, value: Any) -> str:
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        return words.format(", ".join(map(_named, value)))
    return words.format(json.dumps(value))


def _named(source: dict[str, Any]) -> str:
    name = str(source.get("path") or source.get("id") or source["kind"])
    return f"{name} (asked {source['prompt']!r})" if "prompt" in source else name


def _data(data: DataConfig, output: Path) -> list[dict[str, Any]]:
    """The sources, files by their place beside the output: the whole may move."""
    found = []
    for source in data.located_sources():
        about = source.model_dump(mode="json", exclude={"weight", "records", "size", "streaming"})
        for key in ("path", "image_root", "id"):
            if about.get(key) and Path(about[key]).exists():
                try:
                    near = os.path.relpath(Path(about[key]).resolve(), output.absolute().parent.resolve())
                    about[key] = Path(near).as_posix()
                except ValueError:  # another drive
                    pass
        found.append({name: value for name, value in about.items() if value is not None})
    return found
