"""One loop, one optimizer, one kind of checkpoint for all stages, on accelerate."""

from vlsi_cli.engine.training.checkpoint import Checkpoints
from vlsi_cli.engine.training.loop import Failure, Progress, train_stage
from vlsi_cli.engine.training.optimizer import learning_rate_at, make_optimizer
from vlsi_cli.engine.training.stage import Stage, StageOutput

__all__ = [
    "Checkpoints",
    "Failure",
    "Progress",
    "Stage",
    "StageOutput",
    "learning_rate_at",
    "make_optimizer",
    "train_stage",
]
