"""Layer matching: the search window, the strategies and the adaptive temperature."""

from __future__ import annotations

from vlsi_cli.engine.matching.strategies import Match, Strategy, match
from vlsi_cli.engine.matching.window import reachable, window

__all__ = ["Match", "Strategy", "match", "reachable", "window"]
