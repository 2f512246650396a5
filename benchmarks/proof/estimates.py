"""Means with intervals, paired differences and rank correlation, in plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A mean of ``n`` values and the half width of its 95 % interval; None for a single value."""

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float:
        """Lower end; minus infinity for a single value."""
        return self.mean - (math.inf if self.half is None else self.half)

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + (math.inf if self.half is None else self.half)


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval of a mean: mean -+ t(level, n - 1) s / sqrt(n), s with n - 1 in its denominator.

    Args:
        values: one a seed; for a paired comparison, the differences.
        level: coverage.
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Interval(mean, t_quantile((1 + level) / 2, n - 1) * deviation / math.sqrt(n), n)


def paired(ours: dict[int, float], theirs: dict[int, float]) -> Interval | None:
    """Interval of ``ours - theirs`` over the seeds that both have; None when they share none."""
    seeds = sorted(ours.keys() & theirs.keys())
    return t_interval([ours[seed] - theirs[seed] for seed in seeds]) if seeds else None


def binomial_error(share: float, n: int) -> float:
    """Standard error of a share of right answers among ``n`` questions: sqrt(p (1 - p) / n)."""
    return math.sqrt(share * (1 - share) / n)


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, the largest value first; equal values share the mean of their places."""
    return [
        sum(other > value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation: Pearson's correlation of the ranks; None where one side is all equal."""
    a, b = ranks(first), ranks(second)
    middle = (len(a) + 1) / 2  # the mean of ranks, ties or not
    product = math.fsum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    spread = math.fsum((x - middle) ** 2 for x in a) * math.fsum((y - middle) ** 2 for y in b)
    return product / math.sqrt(spread) if spread > 0 else None


def t_quantile(probability: float, freedom: int) -> float:
    """The value that Student's t with ``freedom`` degrees stays below with a probability from 0.5 to 1.

    By bisection of the distribution function, to 1e-10 of the value.
    """
    low, high = 0.0, 1.0
    while t_distribution(high, freedom) < probability:
        high *= 2
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_distribution(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def t_distribution(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0 and a whole number of degrees of freedom.

    The finite sums for odd and even degrees in the angle theta = atan(t / sqrt(freedom)), e.g. Abramowitz and
    Stegun, 26.7.3 and 26.7.4.
    """
    theta = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(theta), math.sin(theta)
    if freedom % 2:
        term, total = cosine, 0.0
        for j in range(1, freedom - 1, 2):
            total += term
            term *= cosine**2 * (j + 1) / (j + 2)
        inside = 2 / math.pi * (theta + sine * total)
    else:
        term, total = 1.0, 0.0
        for j in range(0, freedom - 1, 2):
            total += term
            term *= cosine**2 * (j + 1) / (j + 2)
        inside = sine * total
    return (1 + inside) / 2
