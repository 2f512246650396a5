"""Where the processes of a run meet: at one store for as long as they live, however many runs they have."""

from __future__ import annotations

from datetime import timedelta
from itertools import count
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

_stores: list[tuple[Any, int, int]] = []  # one, once they have met
_runs = count()


def meeting_place(patience: timedelta) -> tuple[Any, int, int]:
    """The store that all processes of this run share, the number of this one, and how many there are.

    What was told in an earlier run of the same processes, by us and by torch, is still there, so that each run has a
    part of the store to itself. All processes have the same runs, in the same order.

    Args:
        patience: how long one waits for the process that keeps the store.

    Raises:
        ValueError, RuntimeError: torch's, where nobody keeps one or the environment does not say who.
    """
    if not _stores:
        _stores.append(next(rendezvous("env://", timeout=patience)))
    store, rank, size = _stores[0]
    return PrefixStore(f"vlsi/run/{next(_runs)}", store), rank, size
