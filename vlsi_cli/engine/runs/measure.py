"""Held-out scores of one model, written down as they are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, zip_longest

import torch

from vlsi_cli.config.run import DistillConfig
from vlsi_cli.engine import processes
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.data.collate import collate, in_groups
from vlsi_cli.engine.data.report import DataReport
from vlsi_cli.engine.evaluation import Answer, answer_prompts, sum_loss
from vlsi_cli.engine.runs.data import encoder_for, prompt_stream, training_stream
from vlsi_cli.engine.runs.folder import RunFolder
from vlsi_cli.errors import TrainingError, fitting
from vlsi_cli.events import Evaluated, EvaluationStarted, Events, Score, Warn


@dataclass(frozen=True)
class Share:
    """What one process has measured.

    Attributes:
        answers: to its questions, every W-th of all from its own number on.
        loss: sum over its response tokens; ``tokens`` their number.
        fits: whether any reference is short enough to be given at all.
        skipped: what became of records that could not be used, in a sentence; "" when all could.
    """

    answers: list[Answer]
    loss: float
    tokens: int
    fits: bool
    skipped: str


def measure(
    who: str,
    backbone: Backbone,
    config: DistillConfig,
    dtype: torch.dtype,
    events: Events,
    check: Callable[[], None],
    *,
    shared: bool,
) -> Share:
    """Answer this process's share of the held-out questions and take the loss on its records.

    Args:
        who: ``small before``, ``small after`` or ``large``.
        check: called after every batch; it raises when the run is to stop.
        shared: deal the questions out among the processes; a model that is divided among them needs all of them for
            every question.
    """
    evaluation = config.evaluation
    assert evaluation.data is not None
    data = evaluation.data
    first, every = (processes.rank(), processes.size()) if shared else (0, 1)
    encoder = encoder_for(backbone.processor, data)
    report = DataReport()
    prompts = prompt_stream(data, encoder, seed=config.seed, report=report)
    records = training_stream(data, encoder, seed=config.seed)
    end = next(iter(records.one_pass(1)))  # every response ends with the token that ends its turn
    known = [n for n in (prompts.records_per_epoch, evaluation.samples) if n is not None]
    events(EvaluationStarted(who, min(known, default=0)))

    own = islice(records.one_pass(evaluation.samples), first, None, every)
    groups = in_groups(own, evaluation.batch_size)
    batches = (collate(group, encoder.pad_id) for group in groups)
    device = backbone.device
    too_large = TrainingError(
        f"asking {who} does not fit into the memory of {device}",
        hint=f"lower evaluation.batch_size (now {evaluation.batch_size})",
    )
    try:
        with fitting(too_large), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            answers = answer_prompts(
                backbone,
                islice(prompts.one_pass(evaluation.samples), first, None, every),
                pad_id=encoder.pad_id,
                end_id=int(end.input_ids[end.trained][-1]),
                batch_size=evaluation.batch_size,
                max_new_tokens=evaluation.max_new_tokens,
                after_batch=lambda done: check(),
            )
            loss, tokens = sum_loss(backbone, batches, after_batch=check)
    finally:
        prompts.close()
        records.close()
    lengths = (len(backbone.tokenizer(answer.reference)["input_ids"]) for answer in answers)
    fits = any(length <= evaluation.max_new_tokens for length in lengths)
    return Share(answers, loss, tokens, fits, report.summary() if report.skipped else "")


def record(who: str, shares: Sequence[Share], folder: RunFolder, events: Events) -> Score:
    """Put the shares of all processes together, and write the score and the answers down."""
    answers = [a for row in zip_longest(*(share.answers for share in shares)) for a in row if a is not None]
    tokens = sum(share.tokens for share in shares)
    score = Score(
        who=who,
        # None when no reference is short enough to be given at all
        accuracy=sum(a.correct for a in answers) / len(answers) if any(s.fits for s in shares) else None,
        loss=sum(share.loss for share in shares) / max(tokens, 1),
        n=len(answers),
        by_kind=_by_kind(answers),
    )
    folder.write(f"answers/{who.replace(' ', '-')}.json", [asdict(answer) for answer in answers])
    if score.accuracy is None and not folder.state.scores:
        events(
            Warn(
                "held-out data: every expected answer is longer than evaluation.max_new_tokens, so there is no accuracy"
            )
        )
    folder.state.scores[who] = score
    folder.save_state()
    if shares[0].skipped:
        events(Warn(f"held-out data: {shares[0].skipped}"))
    events(Evaluated(who, score.accuracy, score.loss, score.n, score.by_kind))
    return score


def _by_kind(answers: list[Answer]) -> dict[str, float]:
    kinds = sorted({answer.kind for answer in answers} - {""})
    return {
        kind: sum(a.correct for a in answers if a.kind == kind) / sum(a.kind == kind for a in answers)
        for kind in kinds
    }
