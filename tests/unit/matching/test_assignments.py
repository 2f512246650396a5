"""Exact probabilities and the best assignment, against listing every way and against drawing."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsi_cli.engine.matching import (
    best_matching,
    drawn_matching,
    expected_matching,
    match,
    reachable,
    widest_draws,
)
from vlsi_cli.errors import CompatibilityError, TrainingError


@st.composite
def matrices(draw_from):
    n_small = draw_from(st.integers(1, 4))
    n_large = draw_from(st.integers(n_small, 7))
    value = st.floats(0, 8, allow_nan=False, width=32)
    rows = st.lists(value, min_size=n_large, max_size=n_large)
    return torch.tensor(draw_from(st.lists(rows, min_size=n_small, max_size=n_small)))


def every_way(k: list[list[float]], adaptive: bool = True) -> dict[tuple[int, ...], float]:
    """All ways through the drawing procedure with their probabilities, one softmax after the other, in plain Python."""
    n_small, n_large = len(k), len(k[0])
    ways = {(): 1.0}
    for s in range(n_small):
        longer = {}
        for way, chance in ways.items():
            start = way[-1] + 1 if way else 0
            window = range(start, n_large - n_small + s + 1)
            values = [k[s][place] for place in window]
            temperature = 2 / (max(values) - min(values) + 1e-6) if adaptive else 1.0
            weights = [math.exp(-(value - min(values)) / temperature) for value in values]
            for place, weight in zip(window, weights, strict=True):
                longer[(*way, place)] = chance * weight / sum(weights)
        ways = longer
    return ways


@settings(max_examples=60, deadline=None)
@given(matrices(), st.booleans())
def test_expected_matches_are_the_sum_over_every_way(matrix: torch.Tensor, adaptive: bool) -> None:
    wanted = torch.zeros(matrix.shape, dtype=torch.float64)
    for way, chance in every_way(matrix.tolist(), adaptive).items():
        for s, place in enumerate(way):
            wanted[s, place] += chance
    got = expected_matching(matrix, adaptive_temperature=adaptive)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)  # both fp64, some hundred terms
    assert torch.allclose(got.sum(1), torch.ones(len(matrix), dtype=torch.float64))
    assert not got[~reachable(*matrix.shape)].any()


@settings(max_examples=60, deadline=None)
@given(matrices())
def test_the_best_assignment_is_the_least_of_all(matrix: torch.Tensor) -> None:
    n_small, n_large = matrix.shape
    k = matrix.double().tolist()

    def total(places: tuple[int, ...]) -> float:
        return sum(k[s][place] for s, place in enumerate(places))

    best = best_matching(matrix)
    assert list(best) == sorted(set(best))
    least = min(map(total, itertools.combinations(range(n_large), n_small)))
    assert total(best) == pytest.approx(least, abs=1e-12)


def test_the_best_assignment_is_not_the_nearest_of_each_row() -> None:
    # Row 0 alone would take column 2, and leave row 1 its worst.
    matrix = torch.tensor([[1.0, 0.9, 0.1, 9.0], [9.0, 0.2, 9.0, 5.0]])
    assert best_matching(matrix) == (0, 1)
    assert best_matching(torch.zeros(3, 6)) == (0, 1, 2)  # ties go to the lower places


def test_expected_matches_by_hand() -> None:
    # Two small, three large. Row 0 sees columns 0 and 1: spread ln 2, T = 2 / ln 2, weights 1 and 2^-(ln 2 / 2).
    ln2 = math.log(2.0)
    matrix = torch.tensor([[0.0, ln2, 50.0], [50.0, 0.0, ln2]], dtype=torch.float64)
    odd = math.exp(-ln2 * ln2 / 2)
    first, second = 1 / (1 + odd), odd / (1 + odd)
    # Row 1 after column 0 sees 1 and 2, by the same two numbers; after column 1 it has only 2.
    wanted = [[first, second, 0.0], [0.0, first * first, first * second + second]]
    got = expected_matching(matrix).tolist()
    assert got[0] == pytest.approx(wanted[0], abs=1e-6)  # the 1e-6 in the temperature
    assert got[1] == pytest.approx(wanted[1], abs=1e-6)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"adaptive_temperature": False},
        {"order_preservation": False},
        {"order_preservation": False, "search_range": False},
        {"strategy": "random"},
        {"strategy": "uniform"},
        {"strategy": "bottom-k", "k": 3},
    ],
)
def test_draws_of_one_batch_come_out_as_expected(flags: dict[str, object]) -> None:
    matrix = torch.rand(3, 7, generator=torch.Generator().manual_seed(4)) * 3
    draws = 600
    drawn = drawn_matching(matrix[None], draws=draws, generator=torch.Generator().manual_seed(9), **flags)
    expected = expected_matching(matrix, **flags)
    deviation = (expected * (1 - expected) / draws).sqrt()
    # 4.5 standard deviations of 21 cells: by chance once in some 7,000 seeds.
    assert bool(((drawn - expected).abs() <= 4.5 * deviation + 1e-9).all())


def test_batches_draw_by_their_own_divergences() -> None:
    generator = torch.Generator().manual_seed(1)
    batches = torch.rand(3, 2, 5, generator=generator) * torch.tensor([0.1, 2.0, 9.0])[:, None, None]
    drawn = drawn_matching(batches, draws=700, generator=generator)
    expected = torch.stack([expected_matching(matrix) for matrix in batches]).mean(0)
    assert float((drawn - expected).abs().max()) < 0.045  # 4 standard deviations of 2,100 draws
    assert float((expected_matching(batches.mean(0)) - expected).abs().max()) > 0.045, "and not by their mean"


def test_the_widest_windows_of_seven_and_twenty() -> None:
    matrix = torch.rand(7, 20, generator=torch.Generator().manual_seed(0))
    temperatures, found = widest_draws(matrix)
    assert torch.equal(found > 0, reachable(7, 20))
    first = match(matrix, generator=torch.Generator().manual_seed(0))[0]
    assert temperatures[0] == first.temperature
    assert found[0, :14].tolist() == pytest.approx(list(first.probabilities or ()))


def test_cells_that_no_draw_can_reach_are_never_read() -> None:
    matrix = torch.rand(4, 9).masked_fill(~reachable(4, 9), torch.nan)
    assert bool(torch.isfinite(expected_matching(matrix)).all())


def test_refusals() -> None:
    for function in (expected_matching, best_matching, widest_draws):
        with pytest.raises(CompatibilityError, match="3 target layers and the large one only 2"):
            function(torch.rand(3, 2))
    with pytest.raises(TrainingError, match="small target layer 1 from large target layer 2 is nan"):
        expected_matching(torch.tensor([[0.0, math.nan]]))
