from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsi_cli.engine.matching import match, reachable
from vlsi_cli.errors import CompatibilityError, ConfigError, TrainingError


def literal(k, pick):
    """The method's pseudocode as it is written, in plain Python; ``pick(probabilities)`` draws."""
    n_small, n_large = len(k), len(k[0])
    trace = []
    start = 0
    for s in range(n_small - 1 + 1):
        window = []
        candidate = start
        while candidate <= n_large - n_small + s:
            window.append(candidate)
            candidate = candidate + 1
        high = max(k[s][candidate] for candidate in window)
        low = min(k[s][candidate] for candidate in window)
        temperature = 2 / (high - low + 1e-6)
        weights = [math.exp(-(k[s][candidate] - low) / temperature) for candidate in window]
        probabilities = [w / sum(weights) for w in weights]
        chosen = window[pick(probabilities)]
        trace.append((window, temperature, probabilities, chosen))
        start = chosen + 1
    return trace


@st.composite
def matrices(draw_from):
    n_small = draw_from(st.integers(1, 6))
    n_large = draw_from(st.integers(n_small, 12))
    value = st.floats(0, 30, allow_nan=False, width=32)
    rows = st.lists(value, min_size=n_large, max_size=n_large)
    return draw_from(st.lists(rows, min_size=n_small, max_size=n_small)), draw_from(st.integers(0, 2**31))


@settings(max_examples=150, deadline=None)
@given(matrices())
def test_it_is_the_pseudocode(case):
    k, seed = case
    matches = match(torch.tensor(k), generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)

    def pick(probabilities):
        return int(
            torch.multinomial(torch.tensor(probabilities, dtype=torch.float64), 1, generator=generator)
        )

    for s, (window, temperature, probabilities, chosen) in enumerate(literal(k, pick)):
        assert matches[s].small == s
        assert matches[s].window == (window[0], window[-1])
        assert matches[s].temperature == pytest.approx(temperature)
        assert matches[s].probabilities == pytest.approx(probabilities, abs=1e-9)
        assert matches[s].large == (chosen,)


@settings(max_examples=100, deadline=None)
@given(matrices(), st.booleans(), st.booleans())
def test_with_order_preservation_the_order_is_strict_and_every_layer_finds_a_place(
    case, search_range, adaptive
):
    k, seed = case
    matches = match(
        torch.tensor(k),
        search_range=search_range,
        adaptive_temperature=adaptive,
        generator=torch.Generator().manual_seed(seed),
    )
    places = [m.large[0] for m in matches]
    assert places == sorted(set(places))
    mask = reachable(len(k), len(k[0]), search_range=search_range)
    for m in matches:
        assert 0 <= m.window[0] <= m.large[0] <= m.window[1] < len(k[0])
        assert bool(mask[m.small, m.window[0] : m.window[1] + 1].all())


@settings(max_examples=50, deadline=None)
@given(matrices(), st.booleans())
def test_without_order_preservation_the_window_does_not_follow_the_previous_match(case, search_range):
    k, seed = case
    n_small, n_large = len(k), len(k[0])
    generator = torch.Generator().manual_seed(seed)
    flags = {"search_range": search_range, "order_preservation": False}
    mask = reachable(n_small, n_large, **flags)
    for s, m in enumerate(match(torch.tensor(k), generator=generator, **flags)):
        assert m.window == ((s, n_large - n_small + s) if search_range else (0, n_large - 1))
        assert mask[s].nonzero().flatten().tolist() == list(range(m.window[0], m.window[1] + 1))


def steer(n_small, n_large, places):
    """A matrix whose draw is certain to give ``places``."""
    k = torch.full((n_small, n_large), 1000.0)
    for s, place in enumerate(places):
        k[s, place] = 0.0
    return k


def test_the_worked_case_of_the_paper():
    # 4 small and 8 large, counted from 1: small 2 took large 4, so small 3 searches 5..7.
    matches = match(steer(4, 8, [1, 3, 4, 5]))
    assert matches[1].large == (3,)
    assert tuple(place + 1 for place in matches[2].window) == (5, 7)
    assert [tuple(place + 1 for place in m.window) for m in matches] == [(1, 5), (3, 6), (5, 7), (6, 8)]


def test_the_bounds_of_seven_and_twenty():
    mask = reachable(7, 20)
    for s in range(7):
        assert mask[s].nonzero().flatten().tolist() == list(range(s, 13 + s + 1))
    late = match(steer(7, 20, [13 + s for s in range(7)]))
    assert [m.large[0] for m in late] == [13 + s for s in range(7)]
    assert [m.window[1] for m in late] == [13 + s for s in range(7)]
    early = match(steer(7, 20, range(7)))
    assert [m.window for m in early] == [(s, 13 + s) for s in range(7)]


def test_as_many_large_as_small_layers_leaves_one_choice():
    matches = match(torch.rand(5, 5))
    assert [m.large for m in matches] == [(0,), (1,), (2,), (3,), (4,)]
    assert all(m.probabilities == (1.0,) for m in matches)


def test_the_adaptive_temperature_by_hand():
    first = match(torch.tensor([[1.0, 2.0, 5.0]]))[0]
    assert first.temperature == pytest.approx(2 / (4 + 1e-6))
    weights = [math.exp(0), math.exp(-1 / 0.5), math.exp(-4 / 0.5)]
    assert first.probabilities == pytest.approx([w / sum(weights) for w in weights], abs=1e-5)
    plain = match(torch.tensor([[1.0, 2.0, 5.0]]), adaptive_temperature=False)[0]
    assert plain.temperature == 1.0
    assert plain.probabilities[0] / plain.probabilities[1] == pytest.approx(math.e)


@pytest.mark.parametrize("adaptive", [True, False])
def test_draws_come_with_the_stated_probabilities(adaptive):
    k = torch.tensor([[0.3, 0.9, 0.5, 1.4, 0.7]])
    generator = torch.Generator().manual_seed(11)
    draws = 4000
    seen = Counter()
    for _ in range(draws):
        drawn = match(k, adaptive_temperature=adaptive, generator=generator)[0]
        seen[drawn.large[0]] += 1
    expected = [draws * p for p in drawn.probabilities]
    chi_square = sum((seen[i] - e) ** 2 / e for i, e in enumerate(expected))
    assert chi_square < 18.5  # 4 degrees of freedom: exceeded by chance once in a thousand seeds


def test_every_window_of_a_chain_is_drawn_with_its_own_probabilities():
    k = torch.rand(3, 6, generator=torch.Generator().manual_seed(2)) * 2
    generator = torch.Generator().manual_seed(5)
    second = {}
    for _ in range(3000):
        matches = match(k, generator=generator)
        second.setdefault(matches[0].large[0], []).append(matches[1])
    for drawn in second.values():
        if len(drawn) < 300:
            continue
        counts = Counter(m.large[0] for m in drawn)
        first, last = drawn[0].window
        for place in range(first, last + 1):
            p = drawn[0].probabilities[place - first]
            deviation = math.sqrt(p * (1 - p) / len(drawn))
            assert abs(counts[place] / len(drawn) - p) <= 4 * deviation + 1e-12


def test_the_same_seed_gives_the_same_matches():
    k = torch.rand(7, 20, generator=torch.Generator().manual_seed(1))
    for strategy in ("random", "multinomial"):
        first = match(k, strategy=strategy, generator=torch.Generator().manual_seed(3))
        assert match(k, strategy=strategy, generator=torch.Generator().manual_seed(3)) == first


def test_uniform_and_bottom_k_and_random():
    k = torch.rand(7, 20, generator=torch.Generator().manual_seed(1))
    assert [m.large for m in match(k, strategy="uniform")] == [(0,), (2,), (4,), (6,), (8,), (10,), (12,)]
    for m, row in zip(match(k, strategy="bottom-k", k=3), k, strict=True):
        assert list(m.large) == row.argsort()[:3].tolist()
        assert m.window == (0, 19)
    assert match(torch.zeros(1, 4), strategy="bottom-k", k=2)[0].large == (0, 1)
    generator = torch.Generator().manual_seed(0)
    counts = Counter(m.large[0] for _ in range(400) for m in match(k, strategy="random", generator=generator))
    assert set(counts) == set(range(20))
    assert max(counts.values()) < 2 * min(counts.values())


def test_strategies_that_do_not_look_need_no_matrix():
    nothing = torch.full((3, 9), torch.nan)
    for strategy in ("random", "uniform"):
        assert not bool(reachable(3, 9, strategy=strategy).any())
        assert len(match(nothing, strategy=strategy)) == 3
    assert bool(reachable(3, 9, strategy="bottom-k").all())


def test_cells_outside_the_window_are_never_read():
    k = torch.rand(7, 20).masked_fill(~reachable(7, 20), torch.nan)
    assert len(match(k)) == 7


def test_refusals():
    with pytest.raises(CompatibilityError, match="5 target layers and the large one only 4"):
        match(torch.rand(5, 4))
    with pytest.raises(CompatibilityError):
        reachable(5, 4)
    with pytest.raises(ConfigError, match="from 1 to the 4"):
        match(torch.rand(2, 4), strategy="bottom-k", k=5)
    with pytest.raises(ConfigError, match="no matching strategy"):
        match(torch.rand(2, 4), strategy="nearest")
    with pytest.raises(TrainingError, match="small target layer 2 from large target layer 3 is nan"):
        match(torch.tensor([[0.0, 9.0, 9.0], [1.0, 1.0, math.nan]]))
