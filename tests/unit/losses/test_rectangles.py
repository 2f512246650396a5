"""The rule that chooses rectangles: it covers everything, fits its budgets, and asks for nothing that varies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlsi_cli.engine.losses import rectangles
from vlsi_cli.engine.losses.rectangles import MIB, choose_tiling

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
F32 = torch.float32


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rectangles, "memory_of", lambda device: 64 * 1024 * MIB)


@given(
    tokens=st.integers(0, 3000),
    vocabulary=st.integers(1, 5000),
    buffers=st.integers(1, 40),
    kept=st.integers(0, 2),
    tile_tokens=st.none() | st.integers(1, 700),
    tile_words=st.none() | st.integers(1, 6000),
)
def test_every_cell_is_visited_once(tokens, vocabulary, buffers, kept, tile_tokens, tile_words) -> None:
    tiling = choose_tiling(
        tokens,
        vocabulary,
        buffers=buffers,
        device=CPU,
        dtype=F32,
        kept=kept,
        tile_tokens=tile_tokens,
        tile_words=tile_words,
    )
    area = 0
    for block in tiling.blocks(tokens):
        count = block.stop - block.start
        seen = set()
        for part, words in tiling.rectangles(count, vocabulary):
            assert 0 <= part.start < part.stop <= count
            assert 0 <= words.start < words.stop <= vocabulary
            seen.add((part.start, words.start))
            area += (part.stop - part.start) * (words.stop - words.start)
        assert len(seen) == sum(1 for _ in tiling.rectangles(count, vocabulary))
    assert area == tokens * vocabulary


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("tokens", [1, 37, 512, 600, 8192, 100_000])
@pytest.mark.parametrize("buffers", [2, 4, 28])
def test_rectangles_fit_their_budget_whatever_the_batch(device, tokens, buffers) -> None:
    tiling = choose_tiling(tokens, 151_936, buffers=buffers, device=device, dtype=F32)
    budget = rectangles.TILE_BYTES.get(device.type, rectangles.TILE_BYTES_ACCELERATOR)
    # 64 words of rounding, and never fewer words than a product needs.
    fits = buffers * tiling.tokens * (tiling.words - 64) * 4 <= budget
    assert fits or tiling.words == rectangles.FEWEST_WORDS
    assert tiling.tokens <= tiling.block <= max(tokens, 1)


@pytest.mark.parametrize("device", [CPU, GPU])
def test_kept_rows_fit_theirs_and_follow_the_memory(device, monkeypatch) -> None:
    tiling = choose_tiling(8192, 151_936, buffers=4, device=device, dtype=F32, kept=2)
    most = rectangles.KEPT_BYTES.get(device.type, rectangles.KEPT_BYTES_ACCELERATOR)
    assert most / 2 < 2 * tiling.block * 151_936 * 4 <= most
    monkeypatch.setattr(rectangles, "memory_of", lambda device: 32 * 16 * MIB)
    less = choose_tiling(8192, 151_936, buffers=4, device=device, dtype=F32, kept=2)
    assert 2 * less.block * 151_936 * 4 <= 16 * MIB
    assert choose_tiling(9, 10**9, buffers=4, device=device, dtype=F32, kept=2).block == 1


def test_lengths_are_evened_out() -> None:
    assert choose_tiling(600, 1000, buffers=2, device=CPU, dtype=F32).tokens == 300
    assert choose_tiling(1030, 1000, buffers=2, device=CPU, dtype=F32).block == 515


def test_free_memory_is_not_asked(monkeypatch) -> None:
    """The same shapes must give the same rounding in a resumed run, however busy the machine is then."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: pytest.fail("free memory was asked for"))
    choose_tiling(100, 1000, buffers=2, device=GPU, dtype=F32, kept=2)
