"""Layer matching: the search window, the strategies and the adaptive temperature."""

from __future__ import annotations

from vlsi_cli.engine.matching.assignments import (
    best_matching,
    drawn_matching,
    expected_matching,
    widest_draws,
)
from vlsi_cli.engine.matching.strategies import Match, Strategy, match
from vlsi_cli.engine.matching.window import reachable, window

__all__ = [
    "Match",
    "Strategy",
    "best_matching",
    "drawn_matching",
    "expected_matching",
    "match",
    "reachable",
    "widest_draws",
    "window",
]
