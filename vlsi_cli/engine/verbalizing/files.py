"""Verbalizers on disk: a folder of ``verbalizers.safetensors`` and ``manifest.json``, apart from any backbone.

The teacher's set is trained once and used for every student, so it must never end up behind another
model: loading compares the head it was trained through with the head it would now feed, and refuses with
both sides named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vlsi_cli.engine.files import file_sha256, new_folder
from vlsi_cli.engine.verbalizing.architectures import DecoderFactory
from vlsi_cli.engine.verbalizing.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    TENSOR_FILE,
    Manifest,
    describe_layers,
    installed_versions,
    is_pickle,
    read_manifest,
)
from vlsi_cli.engine.verbalizing.verbalizer import Verbalizers
from vlsi_cli.errors import CheckpointError, OutputError


def save_verbalizers(
    path: Path,
    verbalizers: Verbalizers,
    *,
    base_id: str,
    base_revision: str | None,
    head_sha256: str,
    training: Mapping[str, Any],
    overwrite: bool = False,
) -> Manifest:
    """Write a set of verbalizers, whole or not at all: a folder beside ``path`` is filled, then renamed.

    Args:
        path: the folder to make; its parents are made too.
        verbalizers: the set.
        base_id: model id or folder of the backbone it was trained on.
        base_revision: its revision, when known.
        head_sha256: :func:`vlsi_cli.engine.verbalizing.head_fingerprint` of its head.
        training: JSON-ready facts about how the set was trained.
        overwrite: replace an existing set at ``path`` (anything else there is never replaced).

    Returns:
        The manifest as written.

    Raises:
        OutputError: ``path`` exists, cannot be written, or the disk is full.
    """
    if path.exists() and not (overwrite and (path / MANIFEST_FILE).is_file()):
        raise OutputError(f"{path} exists already", hint="choose another folder, or remove this one")
    with new_folder(path) as partial:
        tensors = {name: tensor.detach().contiguous() for name, tensor in verbalizers.state_dict().items()}
        save_file(tensors, partial / TENSOR_FILE, metadata={"format": "pt"})
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            base_id=base_id,
            base_revision=base_revision,
            head_sha256=head_sha256,
            hidden_size=verbalizers.hidden_size,
            intermediate_size=verbalizers.intermediate_size,
            layers=verbalizers.targets,
            architecture=verbalizers.architecture,
            init=verbalizers.init,
            residual=verbalizers.residual,
            norm=verbalizers.normed,
            initializer_range=verbalizers.initializer_range,
            training=dict(training),
            versions=installed_versions(),
            tensors_sha256=file_sha256(partial / TENSOR_FILE),
        )
        (partial / MANIFEST_FILE).write_text(manifest.to_json(), "utf-8")
    return manifest


def load_verbalizers(
    path: Path,
    *,
    base_id: str,
    head_sha256: str,
    hidden_size: int,
    layers: Sequence[int] | None = None,
    norm: nn.Module | None = None,
    decoder_factory: DecoderFactory | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Verbalizers, Manifest]:
    """Read a set of verbalizers for a base, or refuse it.

    Args:
        path: the set's folder.
        base_id: model id or folder of the base at hand, for messages.
        head_sha256: :func:`vlsi_cli.engine.verbalizing.head_fingerprint` of its head.
        hidden_size: its width.
        layers: the target layers that are wanted; None takes those of the set.
        norm: its final norm; used when the set was trained with one.
        decoder_factory: for sets of decoder layers.
        device: where to put the set.

    Raises:
        CheckpointError: no set there, a damaged or foreign one, or a pickle.
    """
    manifest = read_manifest(path)
    _check_base(path, manifest, base_id, head_sha256, hidden_size, layers)
    tensors = _read_tensors(path / TENSOR_FILE, manifest)
    if manifest.norm and norm is None:
        raise ValueError("these verbalizers were trained before a final norm: pass the base's")
    # Decoder layers are built for real, since they may hold more than their saved tensors; the rest only
    # on paper.
    verbalizers = Verbalizers(
        manifest.layers,
        manifest.hidden_size,
        manifest.intermediate_size,
        manifest.architecture,
        init=manifest.init,
        residual=manifest.residual,
        norm=norm if manifest.norm else None,
        initializer_range=manifest.initializer_range,
        decoder_factory=decoder_factory,
        device="cpu" if manifest.architecture.startswith("decoder") else "meta",
    )
    try:
        verbalizers.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise CheckpointError(
            f"the tensors in {path} are not what its manifest describes: {detail}"
        ) from error
    return verbalizers.requires_grad_(True).to(device), manifest


def _check_base(
    path: Path,
    manifest: Manifest,
    base_id: str,
    head_sha256: str,
    hidden_size: int,
    layers: Sequence[int] | None,
) -> None:
    theirs = manifest.base_id + (f" at {manifest.base_revision}" if manifest.base_revision else "")
    trained = f"the verbalizers in {path} were trained on {theirs}"
    if manifest.hidden_size != hidden_size:
        raise CheckpointError(
            f"{trained}, which is {manifest.hidden_size} wide; {base_id} is {hidden_size} wide"
        )
    if manifest.head_sha256 != head_sha256:
        raise CheckpointError(
            f"{trained} through the head {manifest.head_sha256[:12]}; the head of {base_id} is {head_sha256[:12]}",
            hint="train verbalizers for this model, or name the model they were trained on",
        )
    if layers is not None and tuple(layers) != manifest.layers:
        raise CheckpointError(
            f"{trained} for layers {describe_layers(manifest.layers)}; "
            f"this run wants layers {describe_layers(layers)} of {base_id}"
        )


def _read_tensors(file: Path, manifest: Manifest) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing")
    if is_pickle(file):
        raise CheckpointError(
            f"{file} is a pickle, which can run code when it is read; only safetensors are read"
        )
    digest = file_sha256(file)
    if digest != manifest.tensors_sha256:
        raise CheckpointError(
            f"{file} is damaged: its SHA-256 is {digest[:12]}, the manifest says {manifest.tensors_sha256[:12]}"
        )
    try:
        tensors: dict[str, torch.Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    odd = next((name for name, tensor in tensors.items() if tensor.dtype != torch.float32), None)
    if odd is not None:
        raise CheckpointError(f"{file} is damaged: {odd} is {tensors[odd].dtype}, not fp32")
    return tensors
