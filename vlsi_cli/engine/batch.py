"""What a training step consumes: model inputs, and which positions predict which response token.

Names of dimensions: B records, S tokens of the longest record, R response tokens of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A right-padded batch of records.

    Labels are shifted once, where this object is built: ``hidden[rows, cols]`` is the state *before* each
    response token and ``targets`` is that token, so no loss ever shifts anything.

    Attributes:
        inputs: what the model's base forward takes: ``input_ids`` [B, S], ``attention_mask`` [B, S], and with
            images
            the family's own tensors (``pixel_values``, ``image_grid_thw``, ``mm_token_type_ids``, ...).
        rows: [R] record of each response token.
        cols: [R] position whose hidden state predicts it (its own position minus one).
        targets: [R] the token.
        records: the B record ids, for messages.
        digests: the B digests of what the records feed a model, where they were asked for (see
            ``data.digests``); else empty.
        host: the inputs but for pixels as they were in host memory, of a batch that was moved (:meth:`to`): asking the
            host for them makes nobody wait for a device.
    """

    inputs: dict[str, Tensor]
    rows: Tensor
    cols: Tensor
    targets: Tensor
    records: tuple[str, ...]
    digests: tuple[bytes, ...] = ()
    host: dict[str, Tensor] = field(default_factory=dict)

    @property
    def on_host(self) -> dict[str, Tensor]:
        """The inputs but for pixels, in host memory; empty for a batch that was put together on a device."""
        return self.host or {
            name: value
            for name, value in self.inputs.items()
            if value.device.type == "cpu" and not name.startswith("pixel_")
        }

    @property
    def num_tokens(self) -> int:
        """R, the number of response tokens: what sums of per-token losses are divided by."""
        return int(self.targets.numel())

    @property
    def num_input_tokens(self) -> int:
        """Tokens that are not padding, image tokens included."""
        return int(self.inputs["attention_mask"].sum())

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        return type(self)(
            inputs={name: sent(value, device) for name, value in self.inputs.items()},
            rows=sent(self.rows, device),
            cols=sent(self.cols, device),
            targets=sent(self.targets, device),
            records=self.records,
            digests=self.digests,
            host=self.on_host,
        )


@dataclass(frozen=True)
class PromptBatch:
    """A left-padded batch of generation prompts, with the answers that the data give.

    Attributes:
        inputs: what ``generate`` takes, prompts ending in the generation prompt, [B, S] and the images'
            tensors.
        references: the B reference answers, as text.
        records: the B record ids.
    """

    inputs: dict[str, Tensor]
    references: tuple[str, ...]
    records: tuple[str, ...]

    def to(self, device: torch.device | str) -> Self:
        """The same prompts on another device."""
        inputs = {name: sent(value, device) for name, value in self.inputs.items()}
        return type(self)(inputs=inputs, references=self.references, records=self.records)


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on its way to a device; nobody waits for it to be there.

    A GPU fetches by itself only from memory that is locked in its place; from any other its driver copies first, and
    may do so after all the work that the GPU was given before.
    """
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu" and tensor.numel():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
