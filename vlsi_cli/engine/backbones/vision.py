"""What a frozen vision tower says about a picture, computed once a run.

The tower and the projector behind it are frozen in every stage of the method (step 3 can be told otherwise), so their
features of a picture never change, and yet each step of each stage computes them again. A :class:`VisionMemory` keeps
them in host memory, found by a digest of the pixels, as far as a limit allows: from then on the tower does not run.

What does not fit is computed as ever, and a batch of which one record is not there is computed whole. Features come
from the batch that a record was first in; in batches of other sizes products are summed in another order, so they can
differ in their last bits. With one record at a time nothing does.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vlsi_cli.engine.backbones.ahead import picture_features
from vlsi_cli.engine.batch import Batch, sent
from vlsi_cli.errors import ConfigError


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
    def features(self, base: Any, batch: Batch, inputs: dict[str, Any], counts: list[int]) -> Any:
        """What ``base.get_image_features`` says of a batch, kept or computed.

        Args:
            base: the model without its head.
            batch: with digests, on the model's device, with pictures.
            inputs: of the batch, see :mod:`.ahead`.
            counts: image tokens of each record.
        """
        keys = [_of_pixels(digest) for digest in batch.digests]
        wanted = [key for key, count in zip(keys, counts, strict=True) if count]
        if all(key in self._kept for key in wanted):
            self.hits += 1
            features = sent(torch.cat([self._kept[key] for key in wanted]), inputs["input_ids"].device)
        else:
            self.misses += 1
            pooled = picture_features(base, inputs).pooler_output
            self._joined = isinstance(pooled, Tensor)  # one tensor of all tiles instead of one a picture
            features = torch.cat(tuple(pooled))
            if len(features) != sum(counts):
                raise ValueError(f"{len(features)} vision features for {sum(counts)} image tokens")
            for key, part in zip(keys, features.split(counts), strict=True):
                self._keep(key, part)
        return SimpleNamespace(pooler_output=features if self._joined else (features,))

    def _keep(self, key: bytes, part: Tensor) -> None:
        if part.nbytes and key not in self._kept and self.bytes + part.nbytes <= self.limit:
            self._kept[key] = part.cpu().clone()
            self.bytes += part.nbytes


def require_features(keeps_features: bool, shown: str) -> None:
    """Refuse a model whose features cannot be kept.

    Args:
        keeps_features: whether its family gives the decoder one feature an image token and nothing else.
        shown: what to call it in a message.

    Raises:
        ConfigError: another family.
    """
    if not keeps_features:
        raise ConfigError(
            f"the vision features of '{shown}' cannot be kept: its family gives its decoder more than one feature an "
            "image token, or nests them",
            hint="leave vision_memory out",
        )


def _of_pixels(digest: bytes) -> bytes:
    """The half of a record's digest that is of its pixels, so that a picture is found under other questions too."""
    return digest[len(digest) // 2 :]
