from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.data.kit import Numbers, encoded, sources_of, stream, take
from vlsi_cli.engine.data.records import BadRecord
from vlsi_cli.engine.data.report import EXAMPLES, DataReport
from vlsi_cli.engine.data.stream import RecordStream
from vlsi_cli.errors import DataError


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


@given(st.lists(st.floats(0.1, 9.0), min_size=2, max_size=5))
def test_every_prefix_of_an_endless_mix_keeps_the_weights(weights: list[float]) -> None:
    """However far: no source is a whole draw ahead of its share, so none is more behind than there are others.

    Just before a draw the sources are one draw behind in sum, so the one that is drawn is at least 1/k behind.
    """
    mixed = stream(*((Numbers(name, None), weight) for name, weight in zip("abcde", weights, strict=False)))
    counts = Counter[str]()
    for number in range(1, 101):
        counts[mixed.next_batch(1)[0][0]] += 1
        for name, weight in zip("abcde", weights, strict=False):
            ahead = counts[name] - weight / sum(weights) * number
            assert 1 - len(weights) < ahead < 1


def test_fractional_weights_draw_every_record_alike() -> None:
    """A third of 30 records in each of 300 epochs: chi-squared of the counts is below its 99.9 % point (29 degrees)."""
    mixed = stream((Numbers("a", 30), 1 / 3), (Numbers("b", 5), 1.0))
    counts = Counter(take(mixed, 300 * 15))
    assert sum(counts[f"a{number}"] for number in range(30)) == 3000
    assert {counts[f"b{number}"] for number in range(5)} == {300}
    # Ten of 30 without replacement: the variance of a count is 100 * (1 - 1/3) in place of 100.
    chi = sum((counts[f"a{number}"] - 100) ** 2 for number in range(30)) / (100 * (1 - 1 / 3) * 30 / 29)
    assert chi < 58.3


def test_a_stream_of_unknown_length_starts_again() -> None:
    assert take(stream((Numbers("a", None, ends=3), 1.0)), 7) == ["a0", "a1", "a2", "a0", "a1", "a2", "a0"]
    with pytest.raises(DataError, match="a holds no record"):
        stream((Numbers("a", None, ends=0), 1.0)).next_batch(1)


@given(
    st.sampled_from(["finite", "endless"]),
    st.integers(0, 20),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from([0, 1, 3]),
)
def test_resumed_batches_are_those_of_an_unbroken_run(
    kind: str, before: int, size: int, seed: int, group: int
) -> None:
    """From any step on: inside a window by length too, and with records that turn out damaged there."""

    def open_stream() -> RecordStream[str, list[str]]:
        return stream(*sources_of(kind), seed=seed, group_steps=group, encode=encoded)

    whole = open_stream()
    for _ in range(before):
        whole.next_step(size, 2)
    state = json.loads(json.dumps(whole.state_dict()))
    expected = [whole.next_step(size, 2) for _ in range(6)]
    resumed = open_stream()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert [resumed.next_step(size, 2) for _ in range(6)] == expected
    assert resumed.state_dict() == whole.state_dict()


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
    with pytest.raises(DataError, match="no record could be used") as caught:
        list(hopeless.one_pass())
    assert "the last one: " in str(caught.value.hint)
    assert "cannot be used: more tokens" in str(caught.value.hint)
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
