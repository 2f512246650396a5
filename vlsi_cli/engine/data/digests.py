"""What tells one encoded record from every other: a digest of exactly what a model is fed."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch

from vlsi_cli.engine.data.template import Encoded

#: Bytes of each half of a record's digest.
HALF = 16


def record_digest(record: Encoded) -> bytes:
    """32 bytes: 16 of the token ids with their response mask, then 16 of the image tensors.

    Two records with one digest give a model the same input and the same response positions. The halves are apart
    so that a message can tell other text from other pixels.
    """
    return _of(record.input_ids, record.trained) + _of(
        *(record.tensors[name] for name in sorted(record.tensors))
    )


def with_digest(record: Encoded) -> Encoded:
    """The record with its digest noted, where that costs no time: in a worker."""
    return replace(record, digest=record_digest(record))


def _of(*tensors: torch.Tensor) -> bytes:
    digest = hashlib.blake2b(digest_size=HALF)
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
