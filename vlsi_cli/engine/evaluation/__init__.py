"""Held-out answers and losses of a model."""

from vlsi_cli.engine.evaluation.answers import Answer, answer_prompts
from vlsi_cli.engine.evaluation.loss import mean_loss, sum_loss

__all__ = ["Answer", "answer_prompts", "mean_loss", "sum_loss"]
