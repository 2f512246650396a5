"""What a set of verbalizers says about itself: which base it belongs to and how it was made."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vlsi_cli import __version__
from vlsi_cli.engine.verbalizing.architectures import ARCHITECTURES, Architecture
from vlsi_cli.errors import CheckpointError

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
TENSOR_FILE = "verbalizers.safetensors"


@dataclass(frozen=True)
class Manifest:
    """The facts beside the tensors, all of them checked before the tensors are used.

    Attributes:
        format_version: of this layout.
        base_id: model id (or folder) of the backbone; for messages, since a folder can move.
        base_revision: its revision, when known.
        head_sha256: :func:`head_fingerprint` of its language head; what decides whether a base fits.
        hidden_size: H.
        intermediate_size: width of the backbone's own FFN.
        layers: target layers, counted from 1.
        architecture, init, residual, norm, initializer_range: as given to ``Verbalizers``.
        training: whatever the run wants to tell: steps, tokens, losses per layer, seed, data.
        versions: of vlsi, torch and transformers at the time of saving.
        tensors_sha256: of the tensor file's bytes.
    """

    format_version: int
    base_id: str
    base_revision: str | None
    head_sha256: str
    hidden_size: int
    intermediate_size: int
    layers: tuple[int, ...]
    architecture: Architecture
    init: Literal["zero", "random"]
    residual: bool
    norm: bool
    initializer_range: float
    training: Mapping[str, Any]
    versions: Mapping[str, str]
    tensors_sha256: str

    def to_json(self) -> str:
        """Indented JSON, a newline at its end."""
        return json.dumps(asdict(self), indent=2) + "\n"


def head_fingerprint(weight: Tensor) -> str:
    """SHA-256 of a language head: of its shape and of its values rounded to bf16.

    The rounding makes it the same for a checkpoint loaded as bf16 and as fp32. (Loaded as fp16 it can
    differ, where fp16 lacks a value.)

    Args:
        weight: ``[V, H]`` on any device; it is read in slices.
    """
    digest = hashlib.sha256(repr(tuple(weight.shape)).encode())
    for rows in weight.detach().split(8192):
        values = rows.to(torch.bfloat16).contiguous().cpu().view(torch.int16)
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def installed_versions() -> dict[str, str]:
    """Versions of what a set of verbalizers depends on."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {"vlsi": __version__, **versions}


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a set without touching its tensors.

    Args:
        path: the set's folder.

    Raises:
        CheckpointError: no such set, a pickle in its place, or a manifest that cannot be understood.
    """
    file = path / MANIFEST_FILE
    if not file.is_file():
        pickles = [path] if path.is_file() else sorted(path.glob("*")) if path.is_dir() else []
        pickle = next((p for p in pickles if is_pickle(p)), None)
        if pickle is not None:
            raise CheckpointError(
                f"{pickle} is a pickle, which can run code when it is read; verbalizers are read only from "
                f"a folder with {TENSOR_FILE} and {MANIFEST_FILE}"
            )
        raise CheckpointError(f"no verbalizers in {path}: {MANIFEST_FILE} is missing")
    try:
        raw = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    return _parse(raw, file)


def _parse(raw: Any, file: Path) -> Manifest:
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file} holds no JSON object")
    version = raw.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format version {version}; this vlsi ({__version__}) reads {FORMAT_VERSION}"
        )
    wanted = {field.name for field in fields(Manifest)}
    if wanted != raw.keys():
        odd = ", ".join(sorted(wanted ^ raw.keys()))
        raise CheckpointError(f"{file} is damaged: missing or unknown {odd}")
    good: dict[str, bool] = {
        "layers": _is_list_of_int(raw["layers"]),
        "hidden_size": type(raw["hidden_size"]) is int and raw["hidden_size"] > 0,
        "intermediate_size": type(raw["intermediate_size"]) is int and raw["intermediate_size"] > 0,
        "architecture": raw["architecture"] in ARCHITECTURES,
        "init": raw["init"] in ("zero", "random"),
        "initializer_range": isinstance(raw["initializer_range"], int | float),
        **{name: type(raw[name]) is bool for name in ("residual", "norm")},
        **{name: type(raw[name]) is str for name in ("base_id", "head_sha256", "tensors_sha256")},
        "base_revision": raw["base_revision"] is None or type(raw["base_revision"]) is str,
        **{name: type(raw[name]) is dict for name in ("training", "versions")},
    }
    bad = next((name for name, fine in good.items() if not fine), None)
    if bad is not None:
        raise CheckpointError(f"{file} is damaged: {bad} is {raw[bad]!r}")
    return Manifest(**{**raw, "layers": tuple(raw["layers"])})


def _is_list_of_int(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def is_pickle(path: Path) -> bool:
    """Whether a file looks like a pickle or a ``torch.save`` archive, by its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(9)
    # A safetensors file starts with eight bytes of header length, then "{".
    return head[8:] != b"{" and head.startswith((b"\x80", b"PK\x03\x04"))


def describe_layers(layers: Sequence[int]) -> str:
    """Layer numbers for a message."""
    return ", ".join(map(str, layers))
