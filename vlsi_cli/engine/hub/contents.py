"""What a push sends: every file by its place in the repository, gathered from a model, a run and exported graphs.

config.json, *.safetensors, tokenizer, processor   the stock checkpoint, at the root: `from_pretrained` finds it
README.md, matched-layers.png                      the card and its picture
verbalizers/large, small, small-after              trained sets, when asked for
onnx/NAME/                                         exported graphs, each folder whole, when asked for
training/                                          the recipe; metrics, matched layers and versions when asked for
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlsi_cli.engine.files import file_sha256
from vlsi_cli.engine.hub.screening import header_length, is_absolute, is_text, reason_to_stay
from vlsi_cli.engine.verbalizing.manifest import MANIFEST_FILE, TENSOR_FILE, read_manifest
from vlsi_cli.errors import CheckpointError, HubError, ModelError

CARD, PICTURE, RECIPE = "README.md", "matched-layers.png", "training/recipe.yaml"
EXPORT_REPORT = "export_report.json"
_INDEX = "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model")
_METRICS = ("metrics.jsonl", "matches.jsonl", "progress.json", "environment.json")


@dataclass(frozen=True)
class Item:
    """One file of a push.

    Attributes:
        path: its place in the repository, with forward slashes.
        source: the file on this machine, or the content itself where it is made or cleaned for the push.
    """

    path: str
    source: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size


def model_items(folder: Path, shown: str) -> list[Item]:
    """The files of a stock checkpoint; hidden ones stay.

    Raises:
        ModelError: no model, an adapter without its model, no tokenizer, or weights that no reader would load.
    """
    adapters = sorted(path.name for path in folder.glob("adapter_*"))
    if adapters:
        raise ModelError(
            f"'{shown}' holds an adapter ({adapters[0]}), not a model that loads by itself",
            hint="merge it into its base first (peft: merge_and_unload), or push the student of a run, which is merged",
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"'{shown}' is neither a run nor a model: it has no config.yaml of a run and no config.json of a model",
            hint="give the folder that `vlsi distill` wrote, its student/, or another checkpoint's folder",
        )
    if (folder / EXPORT_REPORT).is_file():
        raise ModelError(
            f"'{shown}' holds exported graphs, not the checkpoint that they were made from",
            hint=f"push that, and these along with it: --with-onnx {shown}",
        )
    weights = {path.name for path in folder.glob("*.safetensors")}
    if not weights:
        raise ModelError(
            f"'{shown}' has no weights: no *.safetensors in it",
            hint="give the folder that `vlsi distill` wrote, or save the model with save_pretrained",
        )
    # without one, transformers makes up an empty tokenizer
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ModelError(
            f"'{shown}' has no tokenizer: none of {', '.join(_TOKENIZERS)}",
            hint="copy the tokenizer's files of its base into the folder",
        )
    extra = sorted(weights - _named_weights(folder, shown))
    if extra:
        raise ModelError(
            f"'{shown}' holds {extra[0]}, which belongs to no model that its readers would load",
            hint="a shard left over from another save, perhaps: take it away",
        )
    return _below(folder, "")


def verbalizer_items(run: Path) -> list[Item]:
    """Every trained set of a run, its manifest cleaned of this machine's paths.

    Raises:
        CheckpointError: the run has none, or one of them is damaged.
    """
    folders = sorted(path.parent for path in (run / "verbalizers").glob(f"*/{MANIFEST_FILE}"))
    if not folders:
        raise CheckpointError(f"the run {run} has no verbalizers to send: {run / 'verbalizers'} is empty")
    items = []
    for folder in folders:
        tensors = folder / TENSOR_FILE
        if not tensors.is_file() or file_sha256(tensors) != read_manifest(folder).tensors_sha256:
            raise CheckpointError(
                f"{tensors} is missing or damaged: its manifest has the SHA-256 of another file"
            )
        place = f"verbalizers/{folder.name}"
        items += [_cleaned(folder / MANIFEST_FILE, f"{place}/{MANIFEST_FILE}")]
        items += [Item(f"{place}/{TENSOR_FILE}", tensors)]
    return items


def onnx_items(folders: Sequence[Path]) -> list[Item]:
    """Exported graphs, each folder under ``onnx/`` and its own name.

    Raises:
        ModelError: a folder without the report of its export, or two of one name.
    """
    items: list[Item] = []
    names = [folder.resolve().name for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        if not (folder / EXPORT_REPORT).is_file():
            raise ModelError(
                f"'{folder}' holds no checked export: it has no {EXPORT_REPORT}",
                hint="give a folder that `vlsi export` wrote",
            )
        if names.count(name) > 1:
            raise ModelError(f"two exported folders are named '{name}': in the repository they would be one")
        for item in _below(folder, f"onnx/{name}/"):
            cleaned = item.path.endswith(f"/{EXPORT_REPORT}") and isinstance(item.source, Path)
            items.append(_cleaned(item.source, item.path) if cleaned else item)  # type: ignore[arg-type]
    return items


def metrics_items(run: Path) -> list[Item]:
    """What a run measured, step by step and at its end, and the versions that it ran with."""
    return [Item(f"training/{name}", run / name) for name in _METRICS if (run / name).is_file()]


def recipe_item(config: dict[str, Any], header: str) -> Item:
    """The run's configuration as a recipe, local folders reduced to their names.

    Args:
        config: the resolved configuration, JSON-ready.
        header: comment lines for its top, without their marks.
    """
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    text = yaml.safe_dump(portable(config), sort_keys=False, allow_unicode=True)
    return Item(RECIPE, (comment + text).encode())


def portable(value: Any) -> Any:
    """A JSON-ready value in which every absolute path is only its last part."""
    if isinstance(value, dict):
        return {key: portable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [portable(inner) for inner in value]
    if isinstance(value, str) and is_absolute(value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return value


def screen(items: Iterable[Item], secrets: tuple[str, ...] = ()) -> None:
    """Refuse a push that holds what must not travel.

    Raises:
        HubError: names every such file and why.
    """
    refused = []
    for item in items:
        head, content = _read(item)
        reason = reason_to_stay(item.path.rsplit("/", 1)[-1], head, content, secrets)
        if reason is not None:
            refused.append(f"{item.source if isinstance(item.source, Path) else item.path} {reason}")
    if len(refused) == 1:
        raise HubError(f"a file must not be sent: {refused[0]}", hint="take it (or that value) away")
    if refused:
        listed = "\n".join(f"  {line}" for line in refused)
        raise HubError(
            f"{len(refused)} files must not be sent:\n{listed}", hint="take them (or those values) away"
        )


def _named_weights(folder: Path, shown: str) -> set[str]:
    index = folder / _INDEX
    if not index.is_file():
        return {"model.safetensors"}
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, RecursionError, KeyError, AttributeError) as error:
        raise ModelError(f"{_INDEX} of '{shown}' cannot be read: {error}") from error


def _below(folder: Path, place: str) -> list[Item]:
    """Every file of a folder and its subfolders, but hidden ones."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    shown = [(path, path.relative_to(folder)) for path in files]
    return [
        Item(place + name.as_posix(), path)
        for path, name in shown
        if not any(part.startswith(".") for part in name.parts)
    ]


def _cleaned(file: Path, place: str) -> Item:
    """A JSON file without paths of this machine; one that has none goes as it is."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if portable(value) == value:
        return Item(place, file)
    return Item(place, (json.dumps(portable(value), indent=2) + "\n").encode())


def _read(item: Item) -> tuple[bytes, bytes | None]:
    """First bytes of a file, and what of it is to be searched."""
    if isinstance(item.source, bytes):
        return item.source[:16], item.source if is_text(item.path) else None
    with item.source.open("rb") as file:
        head = file.read(16)
        file.seek(0)
        if is_text(item.source.name):
            return head, file.read()
        length = header_length(head) if item.path.endswith(".safetensors") else None
        return head, file.read(length) if length is not None else None
