"""A large model that is read from a cache on disk: no forward pass, no backbone, at most its head."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.data.digests import HALF
from vlsi_cli.engine.files import file_sha256, new_file
from vlsi_cli.engine.losses import LogitRule, TopK
from vlsi_cli.engine.teachers.manifest import HEAD_FILE, CacheManifest, read_cache_manifest
from vlsi_cli.engine.teachers.shards import Shard
from vlsi_cli.engine.teachers.teacher import TeacherStates, TopKStates
from vlsi_cli.errors import CheckpointError


class CachedTeacher:
    """The answers of a large model, looked up by what each record feeds a model.

    A record is found by the digest of its token ids, response mask and pixels, so a cache serves any order, any
    batches and any student that reads the same. The head is part of a cache of states: beside it nothing of the
    large model is needed.

    Args:
        folder: the cache.
        device: where states are put.

    Raises:
        CheckpointError: no cache, an unfinished, truncated or edited one, or a shard of another cache.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self.folder, self.device = folder, torch.device(device)
        self.manifest = read_cache_manifest(folder)
        if not self.manifest.complete:
            raise CheckpointError(
                f"the teacher cache {folder} is not complete: it has {self.manifest.records:,} records of "
                f"{self.manifest.draws:,}",
                hint="run the same `vlsi cache build` again: it goes on where it was stopped",
            )
        self._shards = [Shard(folder, self.manifest, n) for n in range(len(self.manifest.shards))]
        digests = torch.cat([shard.digests for shard in self._shards]).numpy()
        #: Four numbers a record; sorted by the first, which is all but unique.
        self._words = digests.view(np.uint64).reshape(len(digests), -1)
        self._order = np.argsort(self._words[:, 0], kind="stable")
        self._first = self._words[self._order, 0]
        self._starts = np.cumsum([0, *(len(shard.lengths) for shard in self._shards)])
        self._head: Tensor | None = None

    @property
    def name(self) -> str:
        """The large model's id."""
        return self.manifest.identity.model

    @property
    def targets(self) -> tuple[int, ...]:
        """The target layers that are stored."""
        return self.manifest.identity.targets

    @property
    def hidden_size(self) -> int:
        """H_t."""
        return self.manifest.identity.hidden_size

    @property
    def head(self) -> Tensor:
        """Weight of the large model's head, read when it is first asked for; a top-k cache needs and has none."""
        if self._head is None:
            if self.manifest.head is None:
                raise ValueError("a top-k cache has no head")
            self._head = _read_head(self.folder, self.manifest).to(self.device)
        return self._head

    @property
    def rule(self) -> LogitRule:
        """What the large model does to its logits behind its head; in stored log-probabilities it is done."""
        return LogitRule(self.manifest.identity.logit_scale, self.manifest.identity.logit_softcap)

    def states(self, batch: Batch, layers: Collection[int]) -> TeacherStates:
        """The stored states of a batch's records, in the batch's order.

        Raises:
            CheckpointError: a record that is not in the cache, named; or a damaged one.
        """
        if len(batch.digests) != len(batch.records):
            raise ValueError("a cached teacher needs batches with digests")
        rows = [self._read(name, digest) for name, digest in zip(batch.records, batch.digests, strict=True)]
        with torch.autocast("cpu", enabled=False):  # which joins no fp16 while it computes in bf16
            joined = {key: torch.cat([each[key] for each in rows]) for key in rows[0]}
        found = len(next(iter(joined.values())))
        if found != batch.num_tokens:
            raise ValueError(f"{found} cached states for {batch.num_tokens} response tokens")
        held = {key: value.to(self.device, non_blocking=True) for key, value in joined.items()}
        places = {layer: place for place, layer in enumerate(self.targets) if layer in layers}
        end = len(self.targets)
        if "states" in held:
            states = {layer: held["states"][:, place].contiguous() for layer, place in places.items()}
            return TeacherStates(states, held["states"][:, end].contiguous(), self.rule)
        known = {layer: _top_k(held, place) for layer, place in places.items()}
        nothing = torch.empty(0, self.hidden_size, device=self.device)
        return TeacherStates({}, nothing, top_k=TopKStates(known, _top_k(held, end)))

    def _read(self, name: str, digest: bytes) -> dict[str, Tensor]:
        words = np.frombuffer(digest, dtype=np.uint64)
        same_text = False
        for place in range(int(np.searchsorted(self._first, words[0])), len(self._order)):
            record = int(self._order[place])
            if self._first[place] != words[0]:
                break
            if np.array_equal(self._words[record], words):
                number = int(np.searchsorted(self._starts, record, side="right")) - 1
                return self._shards[number].read(record - int(self._starts[number]))
            half = HALF // 8
            same_text = same_text or np.array_equal(self._words[record, :half], words[:half])
        why = (
            "one with its tokens is, but with other pixels (an edited picture, or another image processor: with and "
            "without torchvision they round differently)"
            if same_text
            else "none there has its tokens"
        )
        raise CheckpointError(
            f"record {name!r} is not in the teacher cache {self.folder}: {why}",
            hint="run with the data that the cache was built from (`vlsi cache info` lists them), or build another",
        )


def _top_k(rows: dict[str, Tensor], place: int) -> TopK:
    return TopK(rows["indices"][:, place], rows["log_probs"][:, place], rows["tail"][:, place])


def write_head(folder: Path, weight: Tensor) -> dict[str, int | str]:
    """Store a head beside the shards; its size and hash for the manifest."""
    target = folder / HEAD_FILE
    with new_file(target) as part:
        save_file({"weight": weight.detach().cpu().contiguous()}, part)
    return {"bytes": target.stat().st_size, "sha256": file_sha256(target)}


def _read_head(folder: Path, manifest: CacheManifest) -> Tensor:
    path = folder / HEAD_FILE
    assert manifest.head is not None
    if trouble := head_misfit(folder, manifest):
        raise CheckpointError(trouble, hint="run the same `vlsi cache build` again after removing that file")
    try:
        weight: Tensor = load_file(path)["weight"]
    except (OSError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return weight


def head_misfit(folder: Path, manifest: CacheManifest) -> str | None:
    """What is wrong with the stored head, None when nothing is or none belongs there."""
    if manifest.head is None:
        return None
    path = folder / HEAD_FILE
    if not path.is_file():
        return f"{path} is missing"
    if (digest := file_sha256(path)) != manifest.head["sha256"]:
        return f"{path} is damaged: its SHA-256 is {digest[:12]}, the manifest says {manifest.head['sha256'][:12]}"
    return None
