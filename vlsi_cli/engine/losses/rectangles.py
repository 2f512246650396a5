"""Which rectangles of tokens by words a loss walks over, from the shape and the memory of the device.

The rule, so that the same shapes on the same machine always give the same rectangles and so the same rounding (free
memory, which varies, is not asked; a resumed run must be equal bit for bit):

* tokens are taken in *blocks*, and each block sees the whole vocabulary before the next begins, so that what is kept
  for a block does not grow with the batch. A block is :data:`BLOCK_TOKENS` tokens; fewer where a loss keeps whole rows
  of logits for a block, which have to fit a budget: :data:`KEPT_BYTES`, at most 1/32 of the device's memory;
* within a block, *rectangles*: as many tokens as the block has up to the device's limit, and as many words as let all
  rectangles that a loss holds at once fit their budget. On a CPU that budget is a share of the cache, since what is
  read again from memory costs several times the arithmetic; on an accelerator rectangles are large, so that each
  product has enough to do;
* lengths are evened out: 600 tokens under a limit of 512 are two times 300, as a short remainder is a slow product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vlsi_cli.engine.gauges import machine_memory

MIB = 2**20
#: Tokens a block, where nothing else limits it.
BLOCK_TOKENS = {"cpu": 1024}
BLOCK_TOKENS_ACCELERATOR = 8192
#: Tokens a rectangle.
TILE_TOKENS = {"cpu": 512}
TILE_TOKENS_ACCELERATOR = 4096
#: Bytes of all rectangles of logits and of their like that are alive at once.
TILE_BYTES = {"cpu": 8 * MIB}
TILE_BYTES_ACCELERATOR = 512 * MIB
#: Bytes of rows of logits that are kept for a block.
KEPT_BYTES = {"cpu": 128 * MIB}
KEPT_BYTES_ACCELERATOR = 1536 * MIB
#: Words a rectangle has at least: with fewer, reading the states costs more than the product.
FEWEST_WORDS = 256


@dataclass(frozen=True)
class Tiling:
    """How a loss walks over ``[tokens, vocabulary]``.

    Attributes:
        block: tokens a block.
        tokens: tokens a rectangle.
        words: words a rectangle.
    """

    block: int
    tokens: int
    words: int

    def blocks(self, tokens: int) -> Iterator[slice]:
        """Consecutive blocks that cover ``tokens``."""
        return slices(tokens, self.block)

    def rectangles(self, tokens: int, vocabulary: int) -> Iterator[tuple[slice, slice]]:
        """(tokens, words) of every rectangle of a block of ``tokens``, counted from the block's first.

        The words are the outer loop, so that each row of a head is read once a block.
        """
        for words in slices(vocabulary, self.words):
            for part in slices(tokens, self.tokens):
                yield part, words


def choose_tiling(
    tokens: int,
    vocabulary: int,
    *,
    buffers: int,
    device: torch.device,
    dtype: torch.dtype,
    kept: int = 0,
    tile_tokens: int | None = None,
    tile_words: int | None = None,
) -> Tiling:
    """The rectangles for a shape, by the rule of this module.

    Args:
        tokens: R.
        vocabulary: V.
        buffers: rectangles that the loss holds at once.
        device: where they live.
        dtype: of their values.
        kept: whole rows of logits that the loss keeps for every token of a block.
        tile_tokens: an explicit number of tokens a rectangle (and a block, where rows are kept).
        tile_words: an explicit number of words a rectangle.
    """
    for name, value in (("tile_tokens", tile_tokens), ("tile_words", tile_words)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    kind = device.type
    block = BLOCK_TOKENS.get(kind, BLOCK_TOKENS_ACCELERATOR)
    if kept:
        budget = min(KEPT_BYTES.get(kind, KEPT_BYTES_ACCELERATOR), memory_of(device) // 32)
        block = min(block, max(1, budget // (kept * vocabulary * dtype.itemsize)))
        block = tile_tokens if tile_tokens is not None else block
    block = _even(tokens, block)
    length = tile_tokens if tile_tokens is not None else TILE_TOKENS.get(kind, TILE_TOKENS_ACCELERATOR)
    length = min(block, length) if tile_tokens is not None else _even(block, length)
    if tile_words is None:
        budget = TILE_BYTES.get(kind, TILE_BYTES_ACCELERATOR)
        words = max(FEWEST_WORDS, budget // (buffers * length * dtype.itemsize))
        tile_words = -(-_even(vocabulary, words) // 64) * 64  # whole cache lines
    return Tiling(block, length, min(tile_words, vocabulary))


def memory_of(device: torch.device) -> int:
    """Bytes of memory that a device has in all, used or not."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return machine_memory() or 8 * 2**30  # a system that does not say; what is taken is a 32nd of it


def _even(total: int, limit: int) -> int:
    """The length of equal parts of ``total``, none above ``limit``; at least 1."""
    parts = max(1, -(-total // limit))
    return max(1, -(-total // parts))


def slices(stop: int, length: int) -> Iterator[slice]:
    """Consecutive slices of at most ``length`` that cover ``stop``."""
    for start in range(0, stop, length):
        yield slice(start, min(start + length, stop))
