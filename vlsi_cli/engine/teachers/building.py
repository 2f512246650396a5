"""Filling a teacher cache: the large model over every record once, shard by shard, each of them whole or not there.

Shards are cut at batches, and a batch holds records that follow each other in the data. So what a shard holds
depends on the draw that it begins at and on nothing before: a build that goes on after a kill, or makes one lost
shard anew, writes the bytes that an unbroken build would have written (on one machine, with one batch size).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.data.collate import collate
from vlsi_cli.engine.data.records import BadRecord
from vlsi_cli.engine.data.stream import RecordStream
from vlsi_cli.engine.data.template import Encoded
from vlsi_cli.engine.losses import TopK, top_k_of
from vlsi_cli.engine.teachers.live import LiveTeacher
from vlsi_cli.engine.teachers.manifest import CacheManifest, ShardEntry
from vlsi_cli.engine.teachers.shards import ShardBuffer, misfit
from vlsi_cli.errors import DataError


def build_shards(
    folder: Path,
    manifest: CacheManifest,
    teacher: LiveTeacher,
    stream: RecordStream[Encoded, Batch],
    *,
    pad_id: int,
    batch_size: int,
    shard_bytes: int,
    on_batch: Callable[[int], None] = lambda draws: None,
) -> CacheManifest:
    """Make every shard that is not there, and write the manifest after each.

    Args:
        folder: the cache, its manifest (and head) written.
        manifest: what is there so far.
        teacher: the large model with its verbalizers.
        stream: the data in their order, without shuffling or weights.
        pad_id: what fills up a batch.
        batch_size: records that go through the model together.
        shard_bytes: a shard is closed by the batch that takes it to this size.
        on_batch: told after each batch how many draws of the data are done; it may raise to stop the build.

    Returns:
        The complete manifest.

    Raises:
        DataError: not one record could be used, or (with the policy ``refuse``) one could not.
        OutputError: a shard cannot be written.
    """
    fill = _Filler(folder, manifest, teacher, stream, pad_id, batch_size, on_batch)
    shards = list(manifest.shards)
    for number, entry in enumerate(shards):
        if misfit(folder, entry):
            shards[number] = fill(number, entry.start, entry.stop, math.inf)
            manifest = _note(folder, manifest, shards)
    while not shards or shards[-1].stop < manifest.draws:
        start = shards[-1].stop if shards else 0
        shards.append(fill(len(shards), start, manifest.draws, shard_bytes))
        manifest = _note(folder, manifest, shards)
    if not manifest.records:
        raise DataError(f"not one of {manifest.draws} records could be used: {stream.report.summary()}")
    manifest = replace(manifest, complete=True)
    manifest.write(folder)
    return manifest


def _note(folder: Path, manifest: CacheManifest, shards: Sequence[ShardEntry]) -> CacheManifest:
    manifest = replace(manifest, shards=tuple(shards), complete=False)
    manifest.write(folder)
    return manifest


class _Filler:
    """Makes one shard at a time."""

    def __init__(
        self,
        folder: Path,
        manifest: CacheManifest,
        teacher: LiveTeacher,
        stream: RecordStream[Encoded, Batch],
        pad_id: int,
        batch_size: int,
        on_batch: Callable[[int], None],
    ) -> None:
        self._folder, self._identity, self._teacher, self._stream = folder, manifest.identity, teacher, stream
        self._pad_id, self._batch_size, self._on_batch = pad_id, batch_size, on_batch

    def __call__(self, number: int, start: int, stop: int, limit: float) -> ShardEntry:
        """Write the shard of the draws from ``start`` to ``stop``, or of those before it that reach ``limit`` bytes."""
        buffer = ShardBuffer(self._identity.digest, start)
        group: list[Encoded] = []
        for draw, item in self._stream.numbered_pass(start):
            if isinstance(item, BadRecord):
                buffer.skip(item.reason)
            else:
                group.append(item)
            last = draw + 1 == stop
            if group and (last or len(group) == self._batch_size):
                self._answer(group, buffer)
                group = []
                self._on_batch(draw + 1)
                if buffer.bytes >= limit:
                    stop = draw + 1
                    break
            if last:
                break
        return buffer.write(self._folder, number, stop, self._rows(_nothing(self._teacher)))

    def _answer(self, group: list[Encoded], buffer: ShardBuffer) -> None:
        batch = collate(group, self._pad_id, digests=True)
        states = self._teacher.states(batch.to(self._teacher.backbone.device), self._identity.targets)
        rows = self._rows([*(states.layers[layer] for layer in self._identity.targets), states.last])
        lengths = torch.bincount(batch.rows, minlength=len(group)).tolist()
        parts = {name: tensor.split(lengths) for name, tensor in rows.items()}
        for place, digest in enumerate(batch.digests):
            buffer.add(digest, {name: part[place] for name, part in parts.items()})

    def _rows(self, states: Sequence[Tensor]) -> dict[str, Tensor]:
        """The tensors of a shard, ``[R, L, ...]`` on the host, from the layers' states ``[R, H]``."""
        identity = self._identity
        if identity.kind == "states":
            dtypes = {state.dtype for state in states}
            assert dtypes == {_DTYPES[identity.dtype]}, f"states in {dtypes}, not in {identity.dtype}"
            return {"states": torch.stack(list(states), 1).cpu()}
        found: list[TopK] = [
            top_k_of(
                state,
                self._teacher.head,
                vocabulary=identity.vocabulary,
                k=identity.k,
                rule=self._teacher.backbone.logit_rule,
            )
            for state in states
        ]
        return {
            "indices": torch.stack([each.indices for each in found], 1).cpu(),
            # fp16 has eight times the precision of bf16, and no log-probability worth keeping leaves its range
            "log_probs": torch.stack([each.log_probs for each in found], 1).half().cpu(),
            "tail": torch.stack([each.tail for each in found], 1).float().cpu(),
        }


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _nothing(teacher: LiveTeacher) -> list[Tensor]:
    """States of no tokens, for a shard of which no record could be used."""
    empty = torch.empty(0, teacher.hidden_size, dtype=teacher.head.dtype, device=teacher.head.device)
    return [empty] * (len(teacher.targets) + 1)
