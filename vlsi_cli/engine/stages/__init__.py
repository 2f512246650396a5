"""The three stages: what trains, what is frozen, which loss. One loop (``engine.training``) serves them all."""

from vlsi_cli.engine.stages.interaction import InteractionStage
from vlsi_cli.engine.stages.reinforcement import ReinforcementStage
from vlsi_cli.engine.stages.verbalization import VerbalizationStage

__all__ = ["InteractionStage", "ReinforcementStage", "VerbalizationStage"]
