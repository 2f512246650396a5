"""What ``vlsi cache`` hands back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CacheSize:
    """How large a cache will be.

    Attributes:
        draws: records of the data; ``sampled`` of them were read for the estimate.
        tokens: response tokens, exact when every record was read.
        token_bytes: bytes a response token, over all stored layers.
        head_bytes: the stored head.
        bytes: everything.
    """

    draws: int
    sampled: int
    tokens: int
    token_bytes: int
    head_bytes: int
    bytes: int


@dataclass(frozen=True)
class CacheReport:
    """A cache: what it is of, how far it is, and how large.

    Attributes:
        path: its folder.
        complete: whether it is built to its end.
        about: the identity, as in the manifest.
        versions: packages that made it.
        draws: records of the data, those included that could not be used.
        records: that are in it.
        tokens: response tokens that are in it.
        shards: files that hold them.
        skipped: records that could not be used, by reason.
        bytes: of shards and head.
        seconds: wall-clock time of this build; 0 from ``info``.
        size: the estimate made before the build; None from ``info``.
    """

    path: Path
    complete: bool
    about: Mapping[str, Any]
    versions: Mapping[str, str]
    draws: int
    records: int
    tokens: int
    shards: int
    bytes: int
    skipped: Mapping[str, int]
    seconds: float = 0.0
    size: CacheSize | None = None


@dataclass(frozen=True)
class VerifyReport:
    """Whether every byte of a cache is what was written.

    Attributes:
        path: its folder.
        shards, bytes: what was read.
        problems: what is damaged or missing, a sentence each; empty when nothing is.
    """

    path: Path
    shards: int
    bytes: int
    problems: tuple[str, ...]
