"""What a divergence matrix says about matches without drawing them: exact probabilities and the best assignment.

Names: n_small rows s, n_large columns l, all counted from 0; k[s, l] the divergence. The keyword arguments of a draw
are those of :func:`vlsi_cli.engine.matching.match`, whose distribution is described here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlsi_cli.engine.matching.strategies import Strategy, draw_probabilities, match
from vlsi_cli.engine.matching.window import check_counts, window


def expected_matching(
    matrix: Tensor,
    *,
    strategy: Strategy = "multinomial",
    k: int = 1,
    search_range: bool = True,
    order_preservation: bool = True,
    adaptive_temperature: bool = True,
) -> Tensor:
    """The probability that small place s is matched with large place l, exactly, for every pair.

    A draw of one row changes the window of the next and with it the temperature, so the rows cannot be taken one by
    one, and there are too many ways through them to list (77,520 for 7 of 20). But all that a row hands on is where the
    next window starts. With b_s(i) the probability that row s starts at i, and p_s(l | i) the draw of a row that
    does,

        P(s takes l) = sum_i b_s(i) p_s(l | i)        b_0(0) = 1,  b_{s+1}(l + 1) = P(s takes l)

    which is one softmax for each row and start: n_small x n_large of them.

    Args:
        matrix: ``[n_small, n_large]`` mean divergence a token, in nats.
        strategy, k, search_range, order_preservation, adaptive_temperature: see ``match``. A place that ``bottom-k``
            takes counts 1 / k, as in its loss.

    Returns:
        ``[n_small, n_large]`` fp64 on the host; every row sums to 1.

    Raises:
        CompatibilityError, ConfigError, TrainingError: as ``match`` does.
    """
    n_small, n_large = matrix.shape
    check_counts(n_small, n_large)
    found = torch.zeros(n_small, n_large, dtype=torch.float64)
    if strategy == "random":
        return found + 1 / n_large
    if strategy != "multinomial":
        for one in match(matrix, strategy=strategy, k=k):
            found[one.small, list(one.large)] = 1 / len(one.large)
        return found
    starts = {0: 1.0}
    for s, row in enumerate(_rows(matrix)):
        for start, chance in starts.items():
            first, last = window(
                s, start, n_small, n_large, search_range=search_range, order_preservation=order_preservation
            )
            _, drawn = draw_probabilities(s, row, first, last, adaptive=adaptive_temperature)
            found[s, first : last + 1] += chance * drawn
        if order_preservation:
            starts = {place + 1: chance for place, chance in enumerate(found[s].tolist()) if chance > 0}
    return found


def widest_draws(
    matrix: Tensor,
    *,
    search_range: bool = True,
    order_preservation: bool = True,
    adaptive_temperature: bool = True,
) -> tuple[list[float], Tensor]:
    """Temperatures and probabilities of every row in the widest window it can have, which is its earliest start.

    Returns:
        n_small temperatures, and ``[n_small, n_large]`` fp64 probabilities, 0 outside the window.

    Raises:
        CompatibilityError, TrainingError: as ``match`` does.
    """
    n_small, n_large = matrix.shape
    check_counts(n_small, n_large)
    temperatures, found = [], torch.zeros(n_small, n_large, dtype=torch.float64)
    for s, row in enumerate(_rows(matrix)):
        first, last = window(
            s, s, n_small, n_large, search_range=search_range, order_preservation=order_preservation
        )
        temperature, drawn = draw_probabilities(s, row, first, last, adaptive=adaptive_temperature)
        temperatures.append(temperature)
        found[s, first : last + 1] = drawn
    return temperatures, found


def best_matching(matrix: Tensor) -> tuple[int, ...]:
    """The strictly ascending assignment of every small place with the least total divergence.

    With c(s, l) the least total of rows 0 .. s when row s takes l:
    ``c(s, l) = k[s, l] + min over l' < l of c(s - 1, l')``. Of equal totals the one with the lower last place is taken,
    and so on backwards.

    Args:
        matrix: ``[n_small, n_large]``, finite.

    Returns:
        One large place for each small one.

    Raises:
        CompatibilityError: fewer large than small target layers.
    """
    check_counts(*matrix.shape)
    totals: list[list[float]] = []
    for row in _rows(matrix):
        if totals:
            before = [min(totals[-1][:place], default=float("inf")) for place in range(len(row))]
            row = [k + least for k, least in zip(row, before, strict=True)]
        totals.append(row)
    places: list[int] = []
    end = matrix.shape[1]
    for row in reversed(totals):
        end = min(range(end), key=row.__getitem__)
        places.append(end)
    return tuple(reversed(places))


def drawn_matching(
    matrices: Tensor,
    *,
    draws: int,
    generator: torch.Generator,
    strategy: Strategy = "multinomial",
    k: int = 1,
    search_range: bool = True,
    order_preservation: bool = True,
    adaptive_temperature: bool = True,
) -> Tensor:
    """How often each pair is matched when every batch draws by its own divergences, as training does (Figure 5).

    Args:
        matrices: ``[n_batches, n_small, n_large]`` mean divergence a token of each batch.
        draws: how often each batch draws; training draws once.
        generator: of the host.
        strategy, k, search_range, order_preservation, adaptive_temperature: see ``match``. A place that ``bottom-k``
            takes counts 1 / k.

    Returns:
        ``[n_small, n_large]`` fp64 shares; every row sums to 1.
    """
    counts = torch.zeros(matrices.shape[1:], dtype=torch.float64)
    for matrix in matrices:
        for _ in range(draws):
            for one in match(
                matrix,
                strategy=strategy,
                k=k,
                search_range=search_range,
                order_preservation=order_preservation,
                adaptive_temperature=adaptive_temperature,
                generator=generator,
            ):
                counts[one.small, list(one.large)] += 1 / len(one.large)
    return counts / (len(matrices) * draws)


def _rows(matrix: Tensor) -> list[list[float]]:
    rows: list[list[float]] = matrix.detach().cpu().double().tolist()
    return rows
