"""vlsi: distil a large vision language model into a small one, layer by layer, through words.

An implementation of VLsI (arXiv 2412.01822). The command is ``vlsi``. From Python, everything public is a name of this
package; ``docs/python.md`` says how it is used and what is stable. Importing this package imports neither torch nor
transformers: each name is looked up in its own room when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vlsi_cli import errors as errors
    from vlsi_cli import events as events
    from vlsi_cli.api import distill as distill
    from vlsi_cli.api import evaluate as evaluate
    from vlsi_cli.api import load_layers as load_layers
    from vlsi_cli.api import match_layers as match_layers
    from vlsi_cli.api import read_run as read_run
    from vlsi_cli.engine.losses import AllPairs as AllPairs
    from vlsi_cli.engine.losses import LogitRule as LogitRule
    from vlsi_cli.engine.losses import cross_entropy as cross_entropy
    from vlsi_cli.engine.losses import divergence as divergence
    from vlsi_cli.engine.losses import divergence_matrix as divergence_matrix
    from vlsi_cli.engine.matching import best_matching as best_matching
    from vlsi_cli.engine.matching import expected_matching as expected_matching
    from vlsi_cli.engine.matching import match as match
    from vlsi_cli.engine.runs.evaluate import EvaluationReport as EvaluationReport
    from vlsi_cli.engine.runs.layers import LayerReader as LayerReader
    from vlsi_cli.engine.runs.layers import LayerStates as LayerStates
    from vlsi_cli.engine.runs.match_reports import MatchReport as MatchReport
    from vlsi_cli.engine.runs.run_files import Run as Run
    from vlsi_cli.engine.verbalizing.answers import Answers as Answers
    from vlsi_cli.errors import VlsiError as VlsiError
    from vlsi_cli.events import Report as Report

#: Where each public name lives; the same as above, for programs.
_HOMES = {
    "api": ("distill", "evaluate", "load_layers", "match_layers", "read_run"),
    "engine.losses": ("AllPairs", "LogitRule", "cross_entropy", "divergence", "divergence_matrix"),
    "engine.matching": ("best_matching", "expected_matching", "match"),
    "engine.runs.evaluate": ("EvaluationReport",),
    "engine.runs.layers": ("LayerReader", "LayerStates"),
    "engine.runs.match_reports": ("MatchReport",),
    "engine.runs.run_files": ("Run",),
    "engine.verbalizing.answers": ("Answers",),
    "errors": ("VlsiError",),
    "events": ("Report",),
}
_PUBLIC = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", "errors", "events", *_PUBLIC]

if not TYPE_CHECKING:  # else every misspelt name would have a type

    def __getattr__(name: str) -> Any:
        """A public name, from its room."""
        if name in ("errors", "events"):
            return importlib.import_module(f"{__name__}.{name}")
        if name not in _PUBLIC:
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        found = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        """The public names."""
        return sorted([*globals(), *__all__])
