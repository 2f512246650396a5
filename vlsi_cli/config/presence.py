"""Which inputs of a run are on this machine: folders, and the hub's cache read by its paths alone.

No library is asked, so that a plan costs nothing; the layout of the cache is the one that ``huggingface_hub``
documents (``models--owner--name/refs``, ``snapshots``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlsi_cli.config.data import DataConfig, HubSource, ImagesSource, LlavaSource, MessagesSource
from vlsi_cli.config.models import ModelConfig
from vlsi_cli.config.repos import TWICE, looks_local

_PATTERNS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Need:
    """Something that a run reads.

    Attributes:
        what: its part in the run, e.g. ``teacher`` or ``data.sources.0``.
        kind: ``model``, ``data``, ``verbalizers`` or ``cache``.
        where: the hub id or path.
        present: whether all of it is on this machine.
        fetch: the command that would fetch it from the hub; None for a local path.
    """

    what: str
    kind: Literal["model", "data", "verbalizers", "cache"]
    where: str
    present: bool
    fetch: str | None


def hub_cache() -> Path:
    """The hub's cache folder, by the environment variables that ``huggingface_hub`` reads."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(variable):
            return Path(value).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or str(Path(base) / "huggingface")
    return Path(home).expanduser() / "hub"


def cached_snapshot(repo: str, revision: str | None = None, *, kind: str = "models") -> Path | None:
    """The folder of a repository's revision in the hub's cache, complete or not; None when there is none."""
    folder = hub_cache() / f"{kind}--{repo.replace('/', '--')}"
    revision = revision or "main"
    try:
        commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError, RecursionError):
        commit = revision
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def model_is_present(model: ModelConfig) -> bool:
    """Whether configuration and (for `init: pretrained`) every shard of the weights can be read offline."""
    if model.id in ("demo/large", "demo/small"):
        return True
    folder = Path(model.id) if Path(model.id).is_dir() else cached_snapshot(model.id, model.revision)
    if folder is None or not (folder / "config.json").is_file():
        return False
    return model.init == "random" or has_weights(folder)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, by name."""
    return sorted(set(folder.glob("*.safetensors")) - set(folder.glob(TWICE)))


def has_weights(folder: Path) -> bool:
    """Whether a checkpoint folder holds weights, and all the shards that its index names."""
    for index in folder.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, RecursionError, KeyError, AttributeError):
            return False
        return all((folder / shard).is_file() for shard in shards)
    return any(next(folder.glob(pattern), None) is not None for pattern in _PATTERNS)


def data_needs(what: str, data: DataConfig) -> Iterable[Need]:
    """The needs of a mix of sources, in their order; built-in puzzles need nothing."""
    for number, source in enumerate(data.located_sources()):
        place = f"{what}.sources.{number}"
        if isinstance(source, LlavaSource | MessagesSource):
            yield Need(place, "data", str(source.path), source.path.is_file(), None)
        elif isinstance(source, ImagesSource):
            yield Need(place, "data", str(source.path), source.path.is_dir(), None)
        elif isinstance(source, HubSource):
            path = Path(source.id)
            if path.exists() or looks_local(source.id):
                yield Need(place, "data", source.id, path.exists(), None)
            else:
                revision = f" --revision {source.revision}" if source.revision else ""
                cached = cached_snapshot(source.id, source.revision, kind="datasets") is not None
                fetch = f"hf download --repo-type dataset {source.id}{revision}"
                yield Need(place, "data", source.id, cached, fetch)
        if isinstance(source, LlavaSource | MessagesSource | HubSource) and (root := source.image_root):
            yield Need(f"{place}.image_root", "data", str(root), root.is_dir(), None)
