"""Shards of a teacher cache: a safetensors file of some hundred MiB with its own index and a checksum a record.

Tensors of a shard of n records and R response tokens, L stored layers (the target layers, then the last one):

    states  [R, L, H]               what enters the head; or, for top-k,
    indices [R, L, k] int32, log_probs [R, L, k] fp16, tail [R, L] fp32
    digests [n, 32] uint8           ``data.digests.record_digest`` of each record
    lengths [n] int64               its response tokens, in the order of the records
    crcs    [n] int64               CRC-32 of its rows

A record's rows are one run of bytes, so that reading one is one piece of the disk, and its checksum is compared
each time it is read: a whole file's hash would have to read the whole cache before the first step.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlsi_cli.engine.data.digests import HALF
from vlsi_cli.engine.files import file_sha256, new_file
from vlsi_cli.engine.teachers.manifest import SHARDS, CacheManifest, ShardEntry
from vlsi_cli.errors import CheckpointError

_INDEX = ("digests", "lengths", "crcs")
#: One metadata key only: safetensors writes several in an order that differs from run to run.
_META = "vlsi"


class ShardBuffer:
    """Records gathered for one shard.

    Args:
        identity: digest of the cache's identity.
        start: draw of the data that the shard begins at.
    """

    def __init__(self, identity: str, start: int) -> None:
        self._identity = identity
        self.start = start
        self._digests: list[bytes] = []
        self._lengths: list[int] = []
        self._crcs: list[int] = []
        self._rows: list[dict[str, Tensor]] = []
        self._skipped: dict[str, int] = {}
        self.bytes = 0

    @property
    def tokens(self) -> int:
        """Response tokens gathered."""
        return sum(self._lengths)

    @property
    def records(self) -> int:
        """Records gathered."""
        return len(self._lengths)

    def skip(self, reason: str) -> None:
        """Note a draw that could not be used."""
        self._skipped[reason] = self._skipped.get(reason, 0) + 1

    def add(self, digest: bytes, rows: Mapping[str, Tensor]) -> None:
        """Add a record: its digest, and its rows ``[tokens, L, ...]`` by tensor name, on the host."""
        held = {name: tensor.contiguous() for name, tensor in rows.items()}
        self._digests.append(digest)
        self._lengths.append(len(next(iter(held.values()))))
        self._crcs.append(_crc(held))
        self._rows.append(held)
        self.bytes += sum(tensor.nbytes for tensor in held.values())

    def write(self, folder: Path, number: int, stop: int, empty: Mapping[str, Tensor]) -> ShardEntry:
        """Write the shard, whole or not at all.

        Args:
            folder: the cache.
            number: of the shard.
            stop: draw of the data behind its last one.
            empty: the tensors of no rows, for a shard of no records.

        Raises:
            OutputError: it cannot be written.
        """
        rows = self._rows or [dict(empty)]
        tensors = {name: torch.cat([each[name] for each in rows]) for name in rows[0]}
        tensors["digests"] = torch.frombuffer(
            bytearray(b"".join(self._digests)) or bytearray(1), dtype=torch.uint8
        )[: 2 * HALF * self.records].reshape(self.records, 2 * HALF)
        tensors["lengths"] = torch.tensor(self._lengths, dtype=torch.int64)
        tensors["crcs"] = torch.tensor(self._crcs, dtype=torch.int64)
        about = {"cache": self._identity, "start": self.start, "stop": stop}
        target = folder / SHARDS / f"{number:05d}.safetensors"
        with new_file(target) as part:
            save_file(tensors, part, metadata={_META: json.dumps(about)})
        return ShardEntry(
            file=target.name,
            start=self.start,
            stop=stop,
            records=self.records,
            tokens=self.tokens,
            bytes=target.stat().st_size,
            sha256=file_sha256(target),
            skipped=self._skipped,
        )


class Shard:
    """One shard, opened: its index in memory, its rows on the disk.

    Raises:
        CheckpointError: it is missing, truncated, unreadable, or belongs to another cache.
    """

    def __init__(self, folder: Path, manifest: CacheManifest, number: int) -> None:
        entry = manifest.shards[number]
        self.path = folder / SHARDS / entry.file
        if trouble := misfit(folder, entry):
            raise CheckpointError(trouble, hint=_REBUILD)
        try:
            with safe_open(self.path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[_META])
                self.digests, self.lengths, self._crcs = (file.get_tensor(name) for name in _INDEX)
                self._names = tuple(sorted(set(file.keys()) - set(_INDEX)))
            self.offsets = self.lengths.cumsum(0) - self.lengths
            sound = (
                about == {"cache": manifest.identity.digest, "start": entry.start, "stop": entry.stop}
                and len(self.digests) == len(self.lengths) == len(self._crcs) == entry.records
                and int(self.lengths.sum()) == entry.tokens
            )
        except (
            OSError,
            ValueError,
            RecursionError,
            KeyError,
            TypeError,
            RuntimeError,
            SafetensorError,
        ) as error:
            raise CheckpointError(f"the shard {self.path} cannot be read: {error}", hint=_REBUILD) from error
        if not sound:
            raise CheckpointError(
                f"the shard {self.path} is not of this cache: what it says of itself is not what the manifest says",
                hint="a file of another cache, or an edited manifest; build the cache anew",
            )

    def read(self, place: int) -> dict[str, Tensor]:
        """The rows of the record at a place of the index, by tensor name, checked.

        Raises:
            CheckpointError: they cannot be read, or are not what was written.
        """
        first, length = int(self.offsets[place]), int(self.lengths[place])
        try:
            with safe_open(self.path, framework="pt") as file:
                rows = {name: file.get_slice(name)[first : first + length] for name in self._names}
        except (OSError, ValueError, RecursionError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"the shard {self.path} cannot be read: {error}", hint=_REBUILD) from error
        if _crc(rows) != int(self._crcs[place]):
            raise CheckpointError(
                f"the shard {self.path} is damaged: the values of its record {place} are not those that were written",
                hint=_REBUILD,
            )
        return rows


def misfit(folder: Path, entry: ShardEntry, *, content: bool = False) -> str | None:
    """What is wrong with a shard's file beside its entry, None when nothing is.

    Args:
        content: compare the hash of the file too, which reads all of it.
    """
    path = folder / SHARDS / entry.file
    if not path.is_file():
        return f"the shard {path} is missing"
    size = path.stat().st_size
    if size != entry.bytes:
        how = "truncated" if size < entry.bytes else "not what was written"
        return f"the shard {path} is {how}: {size:,} bytes, the manifest says {entry.bytes:,}"
    if content and (digest := file_sha256(path)) != entry.sha256:
        return f"the shard {path} is damaged: its SHA-256 is {digest[:12]}, the manifest says {entry.sha256[:12]}"
    return None


_REBUILD = (
    "remove that file and run the same `vlsi cache build` again: it makes the missing shard anew, and `vlsi cache "
    "verify` names every damaged one"
)


def _crc(rows: Mapping[str, Any]) -> int:
    """CRC-32 over the rows' bytes, tensors in the order of their names."""
    value = 0
    for name in sorted(rows):
        value = zlib.crc32(rows[name].contiguous().reshape(-1).view(torch.uint8).numpy(), value)
    return value
