"""What an answer depends on besides its question."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from vlsi_cli.config.presence import weight_files
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.processors import PROCESSOR_FILES
from vlsi_cli.engine.devices import precision_name
from vlsi_cli.engine.files import file_sha256


def identity(backbone: Backbone, low: int | None, high: int | None) -> dict[str, Any]:
    """Digests of what an answer depends on besides its question: weights, configuration, processor, precision.

    A file that the hub's cache keeps under its SHA-256 is not read again for it.
    """
    weights = {path.name: _sha256(path) for path in weight_files(backbone.folder)}
    facts = {
        "weights": weights,
        "files": file_digests(backbone.folder),
        "pixels": [low, high],
        "precision": precision_name(backbone.dtype),
        "processor": type(backbone.processor.image_processor).__name__,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return {"identity": digest, **facts}


def file_digests(folder: Path) -> dict[str, str]:
    """Digests of a model's configuration and processor files."""
    names = ("config.json", "generation_config.json", *PROCESSOR_FILES)
    return {name: _sha256(folder / name) for name in names if (folder / name).is_file()}


def _sha256(path: Path) -> str:
    blob = path.resolve().name
    return blob if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob) else file_sha256(path)


def folder_name(id: str, digest: str) -> str:
    """A folder for a model, by its name and its identity."""
    name = "-".join(Path(id).parts[-2:])
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.') or 'model'}-{digest[:10]}"
