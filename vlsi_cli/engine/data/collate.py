"""Records put together into one batch: padding, image tensors, and the single place where labels are shifted.

Image tensors come in two layouts. Most families list items (patches, images, tiles) along the first
dimension, over all records: those are concatenated. Idefics3 and SmolVLM nest them in records, [record, tile,
...]: those are stacked, padded with zeros that the model drops, with an all-zero row for a record without
images. Such a processor says so by returning a ``pixel_attention_mask``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from vlsi_cli.engine.batch import Batch, PromptBatch
from vlsi_cli.engine.data.digests import record_digest
from vlsi_cli.engine.data.template import Encoded, EncodedPrompt
from vlsi_cli.engine.data.tokens import TOKEN_TYPES
from vlsi_cli.errors import ModelError

Item = TypeVar("Item")

_NESTED_BY = "pixel_attention_mask"


def in_groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of ``size``; the last may be shorter. (``itertools.batched`` needs Python 3.12.)"""
    left = iter(items)
    while group := list(islice(left, size)):
        yield group


def collate(records: Sequence[Encoded], pad_id: int, *, digests: bool = False) -> Batch:
    """A right-padded batch.

    The state at position ``t - 1`` predicts token ``t``: for every trained token at ``t`` of record ``b`` the
    batch has one entry ``rows = b``, ``cols = t - 1``, ``targets = input_ids[b, t]``.

    Args:
        records: at least one.
        pad_id: what fills up the shorter ones.
        digests: take the records' digests too, by which a cache of the large model is looked up.
    """
    rows, cols, targets = [], [], []
    for number, record in enumerate(records):
        positions = record.trained.nonzero().squeeze(1)
        positions = positions[positions > 0]  # nothing comes before the first token that could predict it
        rows.append(torch.full_like(positions, number))
        cols.append(positions - 1)
        targets.append(record.input_ids[positions])
    return Batch(
        inputs=_inputs(records, pad_id, left=False),
        rows=torch.cat(rows),
        cols=torch.cat(cols),
        targets=torch.cat(targets),
        records=tuple(record.record for record in records),
        digests=tuple(record.digest or record_digest(record) for record in records) if digests else (),
    )


def merge(batches: Sequence[Batch]) -> Batch:
    """Batches put together into one, as if their records had been collated together.

    Args:
        batches: of one model; at least one. Padding is filled with the first token of the first record, which
            nobody looks at.
    """
    sizes = [len(batch.records) for batch in batches]
    length = max(batch.inputs["input_ids"].shape[1] for batch in batches)
    filler = int(batches[0].inputs["input_ids"][0, 0])
    inputs = {}
    for name in ("input_ids", "attention_mask", *TOKEN_TYPES):
        if name in batches[0].inputs:
            value = filler if name == "input_ids" else 0
            rows = [batch.inputs[name] for batch in batches]
            inputs[name] = torch.cat(
                [torch.nn.functional.pad(row, (0, length - row.shape[1]), value=value) for row in rows]
            )
    tensors = [{name: t for name, t in batch.inputs.items() if name not in inputs} for batch in batches]
    return Batch(
        inputs=inputs | _image_tensors(tensors, sizes),
        rows=torch.cat([batch.rows + sum(sizes[:number]) for number, batch in enumerate(batches)]),
        cols=torch.cat([batch.cols for batch in batches]),
        targets=torch.cat([batch.targets for batch in batches]),
        records=tuple(record for batch in batches for record in batch.records),
        digests=tuple(digest for batch in batches for digest in batch.digests),
    )


def collate_prompts(prompts: Sequence[EncodedPrompt], pad_id: int) -> PromptBatch:
    """A left-padded batch: generation continues from the last column of every row."""
    return PromptBatch(
        inputs=_inputs(prompts, pad_id, left=True),
        references=tuple(prompt.reference for prompt in prompts),
        records=tuple(prompt.record for prompt in prompts),
    )


def _inputs(
    records: Sequence[Encoded] | Sequence[EncodedPrompt], pad_id: int, *, left: bool
) -> dict[str, Tensor]:
    if not records:
        raise ValueError("a batch needs at least one record")
    length = max(len(record.input_ids) for record in records)

    def pad(row: Tensor, value: int) -> Tensor:
        fill = row.new_full((length - len(row),), value)
        return torch.cat([fill, row] if left else [row, fill])

    inputs = {
        "input_ids": torch.stack([pad(record.input_ids, pad_id) for record in records]),
        "attention_mask": torch.stack([pad(torch.ones_like(record.input_ids), 0) for record in records]),
    }
    types = [record.token_types for record in records if record.token_types is not None]
    if types:
        inputs[records[0].types_name] = torch.stack([pad(row, 0) for row in types])
    return inputs | _image_tensors([record.tensors for record in records])


def _image_tensors(
    per_record: Sequence[dict[str, Tensor]], sizes: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """``sizes``: how many records each entry stands for; None: one."""
    with_images = [tensors for tensors in per_record if tensors]
    if not with_images:
        return {}
    names = list(with_images[0])
    if any(set(tensors) != set(names) for tensors in with_images):
        raise ModelError(
            "the processor returns different tensors for different records; they cannot be batched"
        )
    nested = _NESTED_BY in names
    result = {}
    for name in names:
        values = [tensors[name] for tensors in with_images]
        if nested:
            empty = values[0].new_zeros((1, 0, *values[0].shape[2:]))
            counts = sizes or [1] * len(per_record)
            values = [
                tensors.get(name, empty.expand(count, *empty.shape[1:]))
                for tensors, count in zip(per_record, counts, strict=True)
            ]
        result[name] = torch.cat(_same_shape(name, values))
    return result


def _same_shape(name: str, values: list[Tensor]) -> list[Tensor]:
    """Pixel tensors filled up with zeros to equal shapes behind the first dimension."""
    shapes = {tuple(value.shape[1:]) for value in values}
    if len(shapes) == 1:
        return values
    if not name.startswith("pixel_") or len({len(shape) for shape in shapes}) != 1:
        raise ModelError(
            f"{name} differs in shape between records ({sorted(shapes)}); they cannot be batched"
        )
    target = [max(sizes) for sizes in zip(*shapes, strict=True)]
    padded = []
    for value in values:
        room = value.new_zeros((value.shape[0], *target))
        room[tuple(slice(0, size) for size in value.shape)] = value
        padded.append(room)
    return padded
