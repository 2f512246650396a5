"""Records of like length put into one micro-batch, so that less of it is padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def group_by_length(lengths: Sequence[int], size: int, *, lead: int = 0, seed: int = 0) -> list[int]:
    """An order in which every ``size`` neighbours are of like length.

    The records are sorted by length and cut into groups, and the groups, each of them whole, are put into a random
    order: an order by length would let the length of a step's records follow the step.

    Args:
        lengths: of each record.
        size: records of a group.
        lead: records of a first, smaller group, where one has been begun before.
        seed: decides the order of the groups.

    Returns:
        The numbers of the records. What is left over, fewer than a group, comes last.
    """
    ranked = sorted(range(len(lengths)), key=lambda number: (lengths[number], number))
    first, rest = ranked[:lead], ranked[lead:]
    whole = len(rest) // size
    order = torch.randperm(whole, generator=torch.Generator().manual_seed(seed)).tolist()
    groups = [rest[place * size : (place + 1) * size] for place in order]
    return [*first, *(number for group in groups for number in group), *rest[whole * size :]]
