"""Held-out scores of one model, written down as they are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import torch

from vlsi_cli.config.run import DataConfig, DistillConfig
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.data.collate import collate, in_groups
from vlsi_cli.engine.data.report import DataReport
from vlsi_cli.engine.data.template import ChatEncoder
from vlsi_cli.engine.evaluation import Answer, answer_prompts, mean_loss
from vlsi_cli.engine.runs.data import prompt_stream, training_stream
from vlsi_cli.engine.runs.folder import RunFolder
from vlsi_cli.errors import TrainingError
from vlsi_cli.events import Evaluated, EvaluationStarted, Events, Score, Warn


def encoder_for(backbone: Backbone, data: DataConfig) -> ChatEncoder:
    """How a backbone reads the records of a data configuration."""
    return ChatEncoder(backbone.processor, max_length=data.max_length)


def measure(
    who: str,
    backbone: Backbone,
    config: DistillConfig,
    dtype: torch.dtype,
    folder: RunFolder,
    events: Events,
    check: Callable[[], None],
) -> Score | None:
    """Answer the held-out questions and take the loss on them; None when no held-out data are configured.

    Args:
        who: ``small before``, ``small after`` or ``large``.
        check: called after every batch; it raises when the run is to stop.
    """
    evaluation = config.evaluation
    if evaluation.data is None:
        return None
    data = evaluation.data
    encoder = encoder_for(backbone, data)
    report = DataReport()
    prompts = prompt_stream(data, encoder, seed=config.seed, report=report)
    records = training_stream(data, encoder, seed=config.seed)
    end = next(iter(records.one_pass(1)))  # every response ends with the token that ends its turn
    known = [n for n in (prompts.records_per_epoch, evaluation.samples) if n is not None]
    events(EvaluationStarted(who, min(known, default=0)))

    groups = in_groups(records.one_pass(evaluation.samples), evaluation.batch_size)
    batches = (collate(group, encoder.pad_id) for group in groups)
    device = backbone.device
    try:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            answers = answer_prompts(
                backbone,
                prompts.one_pass(evaluation.samples),
                pad_id=encoder.pad_id,
                end_id=int(end.input_ids[end.trained][-1]),
                batch_size=evaluation.batch_size,
                max_new_tokens=evaluation.max_new_tokens,
                after_batch=lambda done: check(),
            )
            loss = mean_loss(backbone, batches, after_batch=check)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"asking {who} does not fit into the memory of {device}",
            hint=f"lower evaluation.batch_size (now {evaluation.batch_size})",
        ) from error
    finally:
        prompts.close()
        records.close()
    score = Score(
        who=who,
        accuracy=_accuracy(answers, backbone, evaluation.max_new_tokens),
        loss=loss,
        n=len(answers),
        by_kind=_by_kind(answers),
    )
    folder.write(f"answers/{who.replace(' ', '-')}.json", [asdict(answer) for answer in answers])
    folder.state.scores[who] = score
    folder.save_state()
    if report.skipped:
        events(Warn(f"held-out data: {report.summary()}"))
    events(Evaluated(who, score.accuracy, score.loss, score.n, score.by_kind))
    return score


def _accuracy(answers: list[Answer], backbone: Backbone, max_new_tokens: int) -> float | None:
    """Share of exact answers; None when no reference is short enough to be given at all."""
    fits = (len(backbone.tokenizer(a.reference)["input_ids"]) <= max_new_tokens for a in answers)
    return sum(a.correct for a in answers) / len(answers) if any(fits) else None


def _by_kind(answers: list[Answer]) -> dict[str, float]:
    kinds = sorted({answer.kind for answer in answers} - {""})
    return {
        kind: sum(a.correct for a in answers if a.kind == kind) / sum(a.kind == kind for a in answers)
        for kind in kinds
    }
