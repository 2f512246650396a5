"""Statistics of the proof against values computed by hand or printed in tables."""

from __future__ import annotations

import math

import pytest

from benchmarks.proof.estimates import (
    binomial_error,
    paired,
    ranks,
    spearman,
    t_distribution,
    t_interval,
    t_quantile,
)


@pytest.mark.parametrize(
    ("freedom", "printed"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)]
)
def test_the_quantiles_are_those_of_every_table_of_students_t(freedom: int, printed: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(printed, abs=5e-4)


def test_the_distribution_where_it_has_a_closed_form() -> None:
    for t in (0.0, 0.3, 1.0, 5.0):
        assert t_distribution(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi)  # Cauchy's
        assert t_distribution(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)))


def test_an_interval_by_hand() -> None:
    found = t_interval([1.0, 2.0, 3.0])  # s = 1, n = 3: 4.30265 / sqrt(3)
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half == pytest.approx(2.48414, abs=1e-4)
    assert found.low == pytest.approx(-0.48414, abs=1e-4)
    assert found.high == pytest.approx(4.48414, abs=1e-4)


def test_one_value_has_no_interval() -> None:
    found = t_interval([0.5])
    assert (found.mean, found.half, found.low, found.high) == (0.5, None, -math.inf, math.inf)


def test_a_difference_is_paired_by_seed() -> None:
    ours, theirs = {1: 10.0, 2: 30.0, 3: 99.0}, {2: 27.0, 1: 9.0, 7: 0.0}
    found = paired(ours, theirs)
    assert found is not None
    assert (found.mean, found.n) == (2.0, 2)  # of 10 - 9 and 30 - 27
    assert found.half == pytest.approx(12.7062 * math.sqrt(2) / math.sqrt(2), abs=1e-3)
    assert paired({1: 1.0}, {2: 1.0}) is None


def test_the_binomial_error_by_hand() -> None:
    assert binomial_error(0.2, 400) == pytest.approx(0.02)


def test_ranks_share_their_places_when_equal() -> None:
    assert ranks([3.0, 9.0, 3.0, 1.0]) == [2.5, 1.0, 2.5, 4.0]


def test_rank_correlation_by_hand() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # Without ties 1 - 6 sum d^2 / (n (n^2 - 1)): d = 1, 1, 1, 1 gives 1 - 24 / 60.
    assert spearman([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)
    # Ranks 4, 2.5, 2.5, 1 and 4, 3, 2, 1: 4.5 / sqrt(4.5 * 5).
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman([1, 1, 1], [1, 2, 3]) is None
