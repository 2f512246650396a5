"""Verbalizers: their architectures, the module and its files."""

from __future__ import annotations

from vlsi_cli.engine.verbalizing.architectures import (
    ARCHITECTURES,
    Architecture,
    DecoderFactory,
    decoder_layers_like,
)
from vlsi_cli.engine.verbalizing.files import load_verbalizers, save_verbalizers
from vlsi_cli.engine.verbalizing.manifest import Manifest, head_fingerprint, read_manifest
from vlsi_cli.engine.verbalizing.verbalizer import Verbalizers

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "DecoderFactory",
    "Manifest",
    "Verbalizers",
    "decoder_layers_like",
    "head_fingerprint",
    "load_verbalizers",
    "read_manifest",
    "save_verbalizers",
]
