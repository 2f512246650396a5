"""What a frozen vision tower says about a picture, computed once a run.

The tower and the projector behind it are frozen in every stage of the method (step 3 can be told otherwise), so their
features of a picture never change, and yet each step of each stage computes them again. A :class:`VisionMemory` keeps
them in host memory, found by a digest of the pixels, as far as a limit allows: from then on the tower does not run.

What does not fit is computed as ever, and a batch of which one record is not there is computed whole. Features come
from the batch that a record was first in; in batches of other sizes products are summed in another order, so they can
differ in their last bits. With one record at a time nothing does.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vlsi_cli.engine.batch import Batch
from vlsi_cli.errors import ConfigError

#: What of a record's inputs only the tower reads.
_PIXELS = ("pixel_values",)


class VisionMemory:
    """Features of the records seen so far.

    Args:
        limit: bytes of host memory; features that would pass it are not kept.

    Attributes:
        bytes: kept so far.
        hits, misses: batches that were found whole, and those that were computed.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = self.hits = self.misses = 0
        self._kept: dict[bytes, Tensor] = {}
        self._joined = False

    def clear(self) -> None:
        """Forget everything: the tower has changed."""
        self._kept.clear()
        self.bytes = 0

    @torch.no_grad()
    def inputs(self, base: Any, batch: Batch, counts: list[int]) -> dict[str, Any]:
        """The batch's inputs with features in the place of pixels.

        Args:
            base: the model without its head.
            batch: with digests, on the model's device, with pictures.
            counts: image tokens of each record.
        """
        keys = [_of_pixels(digest) for digest in batch.digests]
        rest = {name: value for name, value in batch.inputs.items() if name not in _PIXELS}
        wanted = [key for key, count in zip(keys, counts, strict=True) if count]
        if all(key in self._kept for key in wanted):
            self.hits += 1
            device = batch.inputs["input_ids"].device
            features = torch.cat([self._kept[key] for key in wanted]).to(device, non_blocking=True)
        else:
            self.misses += 1
            features = self._compute(base, batch)
            if len(features) != sum(counts):
                raise ValueError(f"{len(features)} vision features for {sum(counts)} image tokens")
            for key, part in zip(keys, features.split(counts), strict=True):
                self._keep(key, part)
        pooled = features if self._joined else (features,)
        return {**rest, "mm_encoder_outputs": {"image": SimpleNamespace(pooler_output=pooled)}}

    def _compute(self, base: Any, batch: Batch) -> Tensor:
        known = inspect.signature(base.get_image_features).parameters
        given = {name: value for name, value in batch.inputs.items() if name in known}
        pooled = base.get_image_features(**given, return_dict=True).pooler_output
        self._joined = isinstance(
            pooled, Tensor
        )  # most families give a tensor a picture, some one of all tiles
        return torch.cat(tuple(pooled))

    def _keep(self, key: bytes, part: Tensor) -> None:
        if part.nbytes and key not in self._kept and self.bytes + part.nbytes <= self.limit:
            self._kept[key] = part.cpu().clone()
            self.bytes += part.nbytes


def require_features(base: Any, keeps_features: bool, shown: str) -> None:
    """Refuse a model whose features cannot be kept.

    Args:
        base: the model without its head.
        keeps_features: whether its family gives the decoder one feature an image token and nothing else.
        shown: what to call it in a message.

    Raises:
        ConfigError: another family, or a transformers without the way in.
    """
    if not keeps_features:
        raise ConfigError(
            f"the vision features of '{shown}' cannot be kept: its family gives its decoder more than one feature an "
            "image token, or nests them",
            hint="leave vision_memory out",
        )
    if "mm_encoder_outputs" not in inspect.signature(type(base).forward).parameters:
        raise ConfigError(
            "this version of transformers takes no vision features from outside",
            hint="pip install --upgrade transformers, or leave vision_memory out",
        )


def _of_pixels(digest: bytes) -> bytes:
    """The half of a record's digest that is of its pixels, so that a picture is found under other questions too."""
    return digest[len(digest) // 2 :]
