"""Modules divided among the processes of the group that there is now."""

from __future__ import annotations

from torch import distributed, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from vlsi_cli.engine import sharding


def test_a_second_group_in_one_process_divides_by_its_own_size() -> None:
    """A process that leaves one run and joins another must not divide by the first one's processes.

    The fake backend is torch's own for tests: a group of any size in one process, which exchanges nothing.
    """
    rows = []
    for size in (1, 2, 4):
        distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
        try:
            model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8))
            sharding.shard(model, [model[0]])
            rows.append([value.to_local().shape[0] for value in model.parameters()])  # type: ignore[attr-defined]
        finally:
            distributed.destroy_process_group()
    assert rows == [[8] * 4, [4] * 4, [2] * 4]
