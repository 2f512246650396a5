"""Optimizer steps of one process and of several, with and without grouping by length."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.data.kit import Numbers, encoded, length_of, sources_of, stream
from vlsi_cli.engine.data.schedule import RecordSource
from vlsi_cli.engine.data.stream import RecordStream
from vlsi_cli.errors import DataError

T = TypeVar("T")


class Group:
    """Processes of one run as threads: each calls from its own, and they meet where they tell each other things."""

    def __init__(
        self, size: int, make: Callable[[int], list[tuple[RecordSource, float]]], **settings: object
    ) -> None:
        self._barrier, self._told = threading.Barrier(size, timeout=300), [[0]] * size
        self.streams = [
            stream(
                *make(rank), rank=rank, world_size=size, exchange=partial(self._exchange, rank), **settings
            )
            for rank in range(size)
        ]

    def _exchange(self, rank: int, numbers: list[int]) -> list[list[int]]:
        self._told[rank] = numbers
        self._barrier.wait()
        told = list(self._told)
        self._barrier.wait()
        return told

    def call(self, work: Callable[[RecordStream[str, list[str]]], T]) -> list[T]:
        with ThreadPoolExecutor(len(self.streams)) as pool:
            return list(pool.map(work, self.streams))


def interleaved(steps: list[list[list[str]]]) -> list[list[str]]:
    """Micro-batches of all processes, put together as one process would have had them."""
    return [[name for row in zip(*parts, strict=True) for name in row] for parts in zip(*steps, strict=True)]


@settings(max_examples=40)
@given(
    st.sampled_from(["finite", "endless"]),
    st.sampled_from([2, 3]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([0, 2]),
)
def test_processes_feed_the_micro_batches_of_one(
    kind: str, world: int, size: int, accumulation: int, by_length: int
) -> None:
    """Records are skipped as bad all along, and still micro-batch by micro-batch, count by count it is the same."""
    same = {"seed": 1, "group_steps": by_length, "encode": encoded}
    alone = stream(*sources_of(kind), **same)
    group = Group(world, lambda rank: sources_of(kind), **same)
    for _ in range(6):
        expected = alone.next_step(world * size, accumulation)
        assert interleaved(group.call(lambda each: each.next_step(size, accumulation))) == expected
    states = [each.state_dict() for each in group.streams]
    assert states == [alone.state_dict()] * world
    # Any number of processes goes on from there.
    more = stream(*sources_of(kind), **same)
    more.load_state_dict(json.loads(json.dumps(states[-1])))
    assert more.next_step(5, 2) == alone.next_step(5, 2)
    other = Group(2, lambda rank: sources_of(kind), **same)
    for each in other.streams:
        each.load_state_dict(alone.state_dict())
    assert interleaved(other.call(lambda each: each.next_step(2, 2))) == alone.next_step(4, 2)


def test_by_length_every_record_still_comes_once_an_epoch() -> None:
    """Windows of three steps of twelve: the records of each window are those without grouping, in other batches."""
    plain, grouped = (stream((Numbers("a", 90), 1.0), group_steps=steps) for steps in (0, 3))
    spread = [0, 0]
    first = []
    for _ in range(5):
        windows = [[each.next_step(4, 3) for _ in range(3)] for each in (plain, grouped)]
        batches = [list(chain.from_iterable(steps)) for steps in windows]
        assert sorted(chain.from_iterable(batches[0])) == sorted(chain.from_iterable(batches[1]))
        for which in (0, 1):
            for lengths in (sorted(map(length_of, batch)) for batch in batches[which]):
                spread[which] += lengths[-1] - lengths[0]
        first += [length_of(step[0][0]) for step in windows[1]]
    assert grouped.epoch == 2
    assert spread[1] < 0.3 * spread[0]
    assert first[::3] != sorted(first[::3])  # steps do not go from short to long
    assert max(first) - min(first) > 25


def test_a_window_of_one_step_keeps_its_records() -> None:
    plain, grouped = (stream((Numbers("a", 50), 1.0), group_steps=steps) for steps in (0, 1))
    for _ in range(9):
        ours, theirs = grouped.next_step(3, 4), plain.next_step(3, 4)
        ranked = sorted(map(length_of, chain.from_iterable(ours)))
        assert sorted(chain.from_iterable(ours)) == sorted(chain.from_iterable(theirs))
        assert sorted(sorted(map(length_of, batch)) for batch in ours) == [
            ranked[first : first + 3] for first in range(0, 12, 3)
        ]


def test_damaged_records_leave_windows_whole() -> None:
    """What shows only when pixels are decoded is replaced from the next window, which then completes the batch."""
    grouped = stream((Numbers("b", 12), 1.0), group_steps=1, encode=encoded, shuffle=False)
    seen = Counter(chain.from_iterable(chain.from_iterable(grouped.next_step(3, 4) for _ in range(7))))
    assert set(seen) == {f"b{number}" for number in range(12)} - {"b6", "b9"}
    assert sorted(set(seen.values())) == [8, 9]
    assert grouped.report.reasons == {"image-damaged": 2}


def test_a_step_is_so_many_batches() -> None:
    steps, batches = stream(*sources_of("finite")), stream(*sources_of("finite"))
    for _ in range(5):
        assert steps.next_step(3, 4) == [batches.next_batch(3) for _ in range(4)]
        assert steps.state_dict() == batches.state_dict()


def test_a_record_that_one_process_cannot_use_is_used_by_none() -> None:
    """A file that only one machine lacks: the processes stay in step, and the record is counted once."""
    bad = [frozenset[int](), frozenset({3})]
    group = Group(2, lambda rank: [(Numbers("a", 6, bad=bad[rank]), 1.0)], shuffle=False)
    steps = group.call(lambda each: each.next_step(2, 1))
    assert interleaved(steps) == [["a0", "a1", "a2", "a4"]]
    assert [each.report.reasons for each in group.streams] == [{"not-everywhere": 1}, {"too-long": 1}]


def test_all_processes_end_when_one_may_not_go_on() -> None:
    def take(each: RecordStream[str, list[str]]) -> str:
        with pytest.raises(DataError) as caught:
            each.next_step(2, 1)
        return caught.value.message

    bad = Group(2, lambda rank: [(Numbers("a", 6, bad=frozenset({3})), 1.0)], shuffle=False, policy="refuse")
    assert [message[:33] for message in bad.call(take)] == ["a:3: record 'a3' cannot be used: "] * 2
    none = Group(2, lambda rank: [(Numbers("a", 6, bad=frozenset(range(6))), 1.0)])
    assert [message[:33] for message in none.call(take)] == ["not one of 12 records in a row co"] * 2


@pytest.mark.parametrize("kind", ["finite", "endless"])
def test_a_pass_is_shared_between_processes(kind: str) -> None:
    limit = None if kind == "finite" else 12
    alone = stream(*sources_of(kind), shuffle=False)
    ranks = [stream(*sources_of(kind), shuffle=False, rank=rank, world_size=2) for rank in range(2)]
    shares = [list(rank.one_pass(limit)) for rank in ranks]
    if limit is None:
        assert sorted(shares[0] + shares[1]) == sorted(alone.one_pass())
    else:
        fresh = [{name for name in names if name.startswith("b")} for names in shares]
        assert fresh[0].isdisjoint(fresh[1])
