from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.data.kit import conversation
from vlsi_cli.engine.data.records import BadRecord, Record
from vlsi_cli.engine.data.report import EXAMPLES, DataReport
from vlsi_cli.engine.data.schedule import EndOfSource, RecordSource
from vlsi_cli.engine.data.stream import RecordStream
from vlsi_cli.errors import DataError

T = TypeVar("T")


class Numbers:
    """Records named a0, a1, ...; those in ``bad`` cannot be used. ``ends`` is a length the stream is not told of."""

    def __init__(
        self, name: str, size: int | None, *, bad: frozenset[int] = frozenset(), ends: int | None = None
    ) -> None:
        self.name, self.size, self.bad, self.ends = name, size, bad, ends
        self.shuffles_itself = size is None
        self.streamed = ends is not None

    def read(self, index: int, epoch: int = 0) -> Record:
        if self.ends is not None and index >= self.ends:
            raise EndOfSource(self.name)
        assert self.size is None or 0 <= index < self.size
        if index in self.bad:
            raise BadRecord(
                "too-long", "9 tokens", record=f"{self.name}{index}", where=f"{self.name}:{index}"
            )
        return conversation("Q", "A", id=f"{self.name}{index}")


def stream(*sources: tuple[RecordSource, float], **settings: object) -> RecordStream[str, list[str]]:
    return RecordStream(sources, lambda record: record.id, list, **{"seed": 0, **settings})  # type: ignore[arg-type]


def take(source: RecordStream[str, list[str]], number: int) -> list[str]:
    return [source.next_batch(1)[0] for _ in range(number)]


def test_an_epoch_is_every_record_once() -> None:
    mixed = stream((Numbers("a", 7), 1.0), (Numbers("b", 4), 1.0))
    assert mixed.records_per_epoch == 11
    epochs = [take(mixed, 11) for _ in range(3)]
    assert all(sorted(e) == sorted([f"a{i}" for i in range(7)] + [f"b{i}" for i in range(4)]) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert mixed.epoch == 3


def test_order_is_made_from_the_seed() -> None:
    def first(seed: int) -> list[str]:
        return take(stream((Numbers("a", 50), 1.0), seed=seed), 50)

    assert first(1) == first(1) != first(2)


def test_unshuffled_order_is_that_of_the_sources() -> None:
    plain = stream((Numbers("a", 2), 1.0), (Numbers("b", 3), 1.0), shuffle=False)
    assert take(plain, 7) == ["a0", "a1", "b0", "b1", "b2", "a0", "a1"]


def test_weights_repeat_and_thin_out() -> None:
    mixed = stream((Numbers("a", 10), 2.5), (Numbers("b", 10), 0.3))
    assert mixed.records_per_epoch == 28
    first, second = Counter(take(mixed, 28)), Counter(take(mixed, 28))
    for epoch in (first, second):
        assert sum(n for name, n in epoch.items() if name.startswith("a")) == 25
        assert {n for name, n in epoch.items() if name.startswith("a")} == {2, 3}
        assert [n for name, n in epoch.items() if name.startswith("b")] == [1, 1, 1]
    assert {n for n in first if n.startswith("b")} != {n for n in second if n.startswith("b")}


def test_endless_sources_are_mixed_by_weight() -> None:
    mixed = stream((Numbers("a", None), 3.0), (Numbers("b", 2), 1.0))
    assert mixed.records_per_epoch is None
    drawn = take(mixed, 16)
    assert [n for n in drawn if n.startswith("a")] == [f"a{i}" for i in range(12)]  # fresh, none twice
    assert Counter(n for n in drawn if n.startswith("b")) == {"b0": 2, "b1": 2}
    # at no time is a source more than one draw off its share
    for k in range(1, 17):
        assert abs(sum(n.startswith("a") for n in drawn[:k]) - 0.75 * k) <= 1


def test_a_stream_of_unknown_length_starts_again() -> None:
    assert take(stream((Numbers("a", None, ends=3), 1.0)), 7) == ["a0", "a1", "a2", "a0", "a1", "a2", "a0"]
    with pytest.raises(DataError, match="a holds no record"):
        stream((Numbers("a", None, ends=0), 1.0)).next_batch(1)


def sources_of(kind: str) -> list[tuple[RecordSource, float]]:
    if kind == "finite":
        return [(Numbers("a", 7, bad=frozenset({2, 5})), 1.5), (Numbers("b", 4), 0.5)]
    return [
        (Numbers("a", 5, bad=frozenset({1})), 1.0),
        (Numbers("b", None), 2.0),
        (Numbers("c", None, ends=3), 0.7),
    ]


@given(st.sampled_from(["finite", "endless"]), st.integers(0, 40), st.integers(1, 4), st.integers(0, 3))
def test_resumed_batches_are_those_of_an_unbroken_run(kind: str, before: int, size: int, seed: int) -> None:
    whole = stream(*sources_of(kind), seed=seed)
    for _ in range(before):
        whole.next_batch(size)
    state = json.loads(json.dumps(whole.state_dict()))
    expected = [whole.next_batch(size) for _ in range(10)]
    resumed = stream(*sources_of(kind), seed=seed)
    resumed.load_state_dict(state)
    assert [resumed.next_batch(size) for _ in range(10)] == expected
    assert resumed.report.to_dict() == whole.report.to_dict()


class Group:
    """Processes of one run as threads: each calls from its own, and they meet where they tell each other things."""

    def __init__(
        self, size: int, make: Callable[[int], list[tuple[RecordSource, float]]], **settings: object
    ) -> None:
        self._barrier, self._told = threading.Barrier(size, timeout=20), [[0]] * size
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
@given(st.sampled_from(["finite", "endless"]), st.sampled_from([2, 3]), st.integers(1, 3), st.integers(1, 3))
def test_processes_feed_the_micro_batches_of_one(kind: str, world: int, size: int, accumulation: int) -> None:
    """Records are skipped as bad all along, and still micro-batch by micro-batch, count by count it is the same."""
    alone = stream(*sources_of(kind), seed=1)
    group = Group(world, lambda rank: sources_of(kind), seed=1)
    for _ in range(6):
        expected = alone.next_step(world * size, accumulation)
        assert interleaved(group.call(lambda each: each.next_step(size, accumulation))) == expected
    states = [each.state_dict() for each in group.streams]
    assert states == [alone.state_dict()] * world
    # Any number of processes goes on from there.
    more = stream(*sources_of(kind), seed=1)
    more.load_state_dict(json.loads(json.dumps(states[-1])))
    assert more.next_step(5, 2) == alone.next_step(5, 2)
    other = Group(2, lambda rank: sources_of(kind), seed=1)
    for each in other.streams:
        each.load_state_dict(alone.state_dict())
    assert interleaved(other.call(lambda each: each.next_step(2, 2))) == alone.next_step(4, 2)


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


def test_other_data_are_not_resumed() -> None:
    state = stream((Numbers("a", 7), 1.0)).state_dict()
    for other in (
        stream((Numbers("a", 8), 1.0)),
        stream((Numbers("a", 7), 2.0)),
        stream((Numbers("a", 7), 1.0), seed=1),
    ):
        with pytest.raises(DataError, match="not those that the run was started with"):
            other.load_state_dict(state)


def test_skipped_records_are_counted_once_and_named() -> None:
    mixed = stream((Numbers("a", 30, bad=frozenset(range(12))), 1.0))
    take(mixed, 50)
    report = mixed.report.to_dict()
    assert (report["used"], report["skipped"]) == (50, 12)
    told = report["reasons"]["too-long"]
    assert (told["count"], len(told["examples"])) == (12, EXAMPLES)
    assert set(told["examples"][0]) == {"record", "where", "detail"}
    assert mixed.report.summary() == "50 records used, 12 skipped (too-long 12)"
    assert json.loads(json.dumps(report)) == report


def test_refusing() -> None:
    strict = stream((Numbers("a", 3, bad=frozenset({1})), 1.0), shuffle=False, policy="refuse")
    assert strict.next_batch(1)[0] == "a0"
    with pytest.raises(BadRecord, match=r"^a:1: record 'a1' cannot be used: more tokens"):
        strict.next_batch(1)


@pytest.mark.parametrize("size", [1, 5])
def test_nothing_usable_ends_the_run(size: int) -> None:
    hopeless = stream((Numbers("a", size, bad=frozenset(range(size))), 1.0))
    with pytest.raises(DataError, match=f"not one of {2 * size} records in a row could be used") as caught:
        hopeless.next_batch(1)
    assert "too-long" in str(caught.value)
    with pytest.raises(DataError, match="no record could be used"):
        list(hopeless.one_pass())
    endless = stream((Numbers("a", None, bad=frozenset(range(20_000))), 1.0))
    with pytest.raises(DataError, match="not one of 10000 records"):
        endless.next_batch(1)


def test_one_usable_record_is_found_across_the_end_of_an_epoch() -> None:
    """In the worst order it stands first in one epoch and last in the next: 2 (n - 1) bad ones lie between."""
    almost = stream((Numbers("a", 6, bad=frozenset(range(1, 6))), 1.0))
    assert [almost.next_batch(1)[0] for _ in range(50)] == ["a0"] * 50


def test_empty_data() -> None:
    with pytest.raises(DataError, match="a holds no record"):
        stream((Numbers("a", 0), 1.0))
    with pytest.raises(DataError, match="no data source"):
        stream()


def test_one_pass_leaves_the_cursor_alone() -> None:
    mixed = stream((Numbers("a", 6, bad=frozenset({3})), 1.0))
    assert sorted(mixed.one_pass()) == ["a0", "a1", "a2", "a4", "a5"]
    assert list(mixed.one_pass(2)) == list(mixed.one_pass())[:2]
    assert mixed.cursor == 0
    endless = stream((Numbers("a", None), 1.0))
    assert list(endless.one_pass(3)) == ["a0", "a1", "a2"]
    with pytest.raises(DataError, match="needs a number of records"):
        next(endless.one_pass())


def test_report_without_faults() -> None:
    report = DataReport()
    report.use()
    assert report.summary() == "1 records used, none skipped"
