"""Which large layer teaches which small layer: Table 4e as functions of a divergence matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from vlsi_cli.engine.matching.window import check_counts, window
from vlsi_cli.errors import ConfigError, TrainingError

Strategy = Literal["random", "uniform", "bottom-k", "multinomial"]


@dataclass(frozen=True)
class Match:
    """What one small target layer was matched with.

    Attributes:
        small: place of the small target layer, from 0.
        large: places of the large target layers, from 0 and absolute (never relative to the window). More
            than one only for ``bottom-k``; the layer's loss is the mean over them.
        temperature: of the softmax over negated divergences; None where nothing is drawn by divergence.
        probabilities: of every place of the window, in order; None likewise.
        window: first and last place searched, inclusive.
    """

    small: int
    large: tuple[int, ...]
    temperature: float | None
    probabilities: tuple[float, ...] | None
    window: tuple[int, int]


def match(
    matrix: Tensor,
    *,
    strategy: Strategy = "multinomial",
    k: int = 1,
    search_range: bool = True,
    order_preservation: bool = True,
    adaptive_temperature: bool = True,
    generator: torch.Generator | None = None,
) -> list[Match]:
    """Match every small target layer (arXiv 2412.01822, section 3.3 and Table 4e).

    ``multinomial`` walks the small layers in order. In each one's window it draws a large layer with
    probability ``softmax(-k / T)``, k the divergences, so that near layers are likely and none is
    excluded. With ``adaptive_temperature`` T = 2 / (max k - min k + 1e-6) over the window, else T = 1. No
    gradient passes through T, the probabilities or the draw.

    Args:
        matrix: ``[n_small, n_large]`` mean divergence a token, large from small, in nats. Only reachable
            cells are read; on any device (one copy to the host).
        strategy: ``random`` any large place with equal probability; ``uniform`` place s * floor(n_large /
            n_small); ``bottom-k`` the k least divergent places of all (ties to the lower place);
            ``multinomial`` as above. The three flags belong to ``multinomial`` alone.
        k: places that ``bottom-k`` takes.
        search_range: see :func:`vlsi_cli.engine.matching.window`.
        order_preservation: likewise.
        adaptive_temperature: see above.
        generator: of the host; None draws from torch's own.

    Returns:
        One :class:`Match` a small place, in order.

    Raises:
        CompatibilityError: fewer large than small target layers.
        ConfigError: an unknown strategy, or a ``k`` beyond the large layers.
        TrainingError: a divergence within a window that is not finite.
    """
    n_small, n_large = matrix.shape
    check_counts(n_small, n_large)
    if strategy not in get_args(Strategy):
        raise ConfigError(f"no matching strategy {strategy!r}; one of {', '.join(get_args(Strategy))}")
    whole = (0, n_large - 1)
    if strategy == "uniform":
        step = n_large // n_small
        return [Match(s, (s * step,), None, None, whole) for s in range(n_small)]
    if strategy == "random":
        drawn = torch.randint(n_large, (n_small,), generator=generator).tolist()
        return [Match(s, (place,), None, None, whole) for s, place in enumerate(drawn)]

    rows: list[list[float]] = matrix.detach().cpu().double().tolist()
    if strategy == "bottom-k":
        if not 1 <= k <= n_large:
            raise ConfigError(f"bottom-k needs a k from 1 to the {n_large} large target layers, not {k}")
        matches = []
        for s, row in enumerate(rows):
            _check_finite(s, row, 0)
            nearest = sorted(zip(row, range(n_large), strict=True))[:k]
            matches.append(Match(s, tuple(place for _, place in nearest), None, None, whole))
        return matches

    matches, start = [], 0
    for s, row in enumerate(rows):
        first, last = window(
            s, start, n_small, n_large, search_range=search_range, order_preservation=order_preservation
        )
        temperature, probabilities = draw_probabilities(s, row, first, last, adaptive=adaptive_temperature)
        place = first + int(torch.multinomial(probabilities, 1, generator=generator))
        matches.append(Match(s, (place,), temperature, tuple(probabilities.tolist()), (first, last)))
        start = place + 1
    return matches


def draw_probabilities(
    s: int, row: list[float], first: int, last: int, *, adaptive: bool
) -> tuple[float, Tensor]:
    """Temperature of small place ``s`` in the window ``first .. last`` of its row, and fp64 probabilities of it.

    Raises:
        TrainingError: a divergence in the window that is not finite.
    """
    divergences = row[first : last + 1]
    _check_finite(s, divergences, first)
    temperature = adaptive_temperature_of(divergences) if adaptive else 1.0
    return temperature, softmax_of_negated(divergences, temperature)


def adaptive_temperature_of(divergences: list[float]) -> float:
    """T = 2 / (max - min + 1e-6): the wider the divergences spread, the sharper the draw."""
    return 2.0 / (max(divergences) - min(divergences) + 1e-6)


def softmax_of_negated(divergences: list[float], temperature: float) -> Tensor:
    """softmax(-k / T) in fp64."""
    return torch.softmax(torch.tensor(divergences, dtype=torch.float64) / -temperature, 0)


def _check_finite(s: int, divergences: list[float], first: int) -> None:
    for place, value in enumerate(divergences, first):
        if not math.isfinite(value):
            raise TrainingError(
                f"the divergence of small target layer {s + 1} from large target layer {place + 1} is {value}"
            )
