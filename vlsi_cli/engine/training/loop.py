"""The loop that every stage trains in: exact accumulation, clipping, checkpoints, and a way to stop.

Losses arrive as sums over response tokens. For each optimizer step all micro-batches are drawn first, so the
global number of response tokens N is known before the first backward pass, and each sum is divided by it:
how records are cut into micro-batches, padded or spread over processes cannot change the gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.data.stream import RecordStream
from vlsi_cli.engine.training.checkpoint import Checkpoint, Checkpoints, pack, unpack
from vlsi_cli.engine.training.optimizer import learning_rate_at, make_optimizer
from vlsi_cli.engine.training.signals import Wish
from vlsi_cli.engine.training.stage import Stage, StageOutput
from vlsi_cli.errors import Interrupted, TrainingError


@dataclass(frozen=True)
class Progress:
    """One optimizer step, told.

    Attributes:
        step: steps done, from 1; ``total`` of them make the stage.
        loss: mean over response tokens, summed over terms; ``terms`` the same, each apart.
        matched: one entry a micro-batch, small target layer -> large target layers.
        learning_rate: of this step.
        grad_norm: before clipping.
        tokens: response tokens of the step; ``input_tokens`` all tokens that are not padding.
        seconds: wall-clock of the step.
    """

    step: int
    total: int
    loss: float
    terms: dict[str, float]
    matched: list[dict[int, tuple[int, ...]]]
    learning_rate: float
    grad_norm: float
    tokens: int
    input_tokens: int
    seconds: float


def train_stage(
    stage: Stage,
    stream: RecordStream[Any, Batch],
    accelerator: Accelerator,
    *,
    key: str,
    steps: int,
    batch_size: int,
    accumulation: int,
    learning_rate: float,
    final_learning_rate: float,
    warmup_steps: int = 0,
    schedule: Literal["cosine", "constant"] = "cosine",
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    max_grad_norm: float | None = 1.0,
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 200,
    resume: Checkpoint | None = None,
    wish: Wish | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    on_checkpoint: Callable[[Any, int], None] = lambda path, step: None,
) -> None:
    """Train a stage to its last step.

    Args:
        stage: what trains; on the accelerator's device.
        stream: supply of micro-batches.
        accelerator: device, mixed precision, processes.
        key: name of the stage in checkpoints.
        steps: optimizer steps of the whole stage.
        batch_size: records a micro-batch; ``accumulation`` micro-batches make a step.
        learning_rate, final_learning_rate, warmup_steps, schedule: see :func:`learning_rate_at`.
        betas, weight_decay: of AdamW.
        max_grad_norm: gradients are scaled down to this norm; None leaves them.
        seed: of torch's own random state (dropout) in this stage.
        checkpoints: where to save; None saves nothing.
        checkpoint_every: steps between checkpoints.
        resume: a checkpoint of this stage to go on from.
        wish: asked after every step whether to stop.
        on_step, on_checkpoint: told of what happens.

    Raises:
        TrainingError: a loss that is not finite.
        Interrupted: the wish came true; a checkpoint of the last step is on disk.
        DataError, OutputError: from the stream and from the disk.
    """
    trained = stage.trained()
    parameters = [parameter for _, parameter in trained]
    device = accelerator.device
    optimizer = make_optimizer(trained, betas=betas, weight_decay=weight_decay)
    first = 0
    if resume is None:
        torch.manual_seed(seed)
    else:
        unpack(resume, trained, optimizer, stage.generator, device)
        stream.load_state_dict(resume.values["stream"])
        if accelerator.scaler is not None and resume.values.get("scaler"):
            accelerator.scaler.load_state_dict(resume.values["scaler"])
        first = resume.step
    module, prepared = accelerator.prepare(stage, optimizer)
    stage.set_train_mode()

    def save(step: int) -> None:
        if checkpoints is None:
            return
        if accelerator.is_main_process:
            scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
            values = {"stream": stream.state_dict(), "scaler": scaler}
            path = checkpoints.save(key, step, pack(trained, optimizer, stage.generator, device), values)
            on_checkpoint(path, step)
        accelerator.wait_for_everyone()

    saved = first
    for step in range(first, steps):
        started = time.perf_counter()
        rate = learning_rate_at(
            step, steps, peak=learning_rate, final=final_learning_rate, warmup=warmup_steps, schedule=schedule
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        batches = [stream.next_batch(batch_size) for _ in range(accumulation)]
        tokens = _global(sum(batch.num_tokens for batch in batches), accelerator)
        outputs = accumulate_gradients(module, batches, tokens, accelerator)
        terms = {
            name: _mean([output.terms[name] for output in outputs], tokens, accelerator)
            for name in outputs[0].terms
        }
        loss = sum(terms.values())
        if not math.isfinite(loss):
            names = ", ".join(name for name, value in terms.items() if not math.isfinite(value))
            raise TrainingError(
                f"the loss of step {step + 1} of {key} is not finite (terms: {names}; records: "
                f"{', '.join(record for batch in batches for record in batch.records[:3])})",
                hint=f"lower the learning rate (now {rate:.2g}), or compute in bf16 or fp32; the last good "
                f"checkpoint is of step {saved}",
            )
        norm = _clip(parameters, max_grad_norm, accelerator)
        prepared.step()
        prepared.zero_grad(set_to_none=True)
        inputs = _global(sum(batch.num_input_tokens for batch in batches), accelerator)
        on_step(
            Progress(
                step + 1,
                steps,
                loss,
                terms,
                [output.matched for output in outputs],
                rate,
                norm,
                tokens,
                inputs,
                time.perf_counter() - started,
            )
        )
        if step + 1 == steps:
            return  # a wish to stop is the caller's now: the stage is complete
        stop = wish is not None and wish.signal is not None
        if stop or (step + 1) % checkpoint_every == 0:
            save(step + 1)
            saved = step + 1
        if stop and wish is not None:
            raise Interrupted(
                f"stopped after step {step + 1} of {steps} of {key}; a checkpoint is saved",
                exit_code=wish.exit_code,
            )


def accumulate_gradients(
    module: nn.Module, batches: list[Batch], tokens: int, accelerator: Accelerator
) -> list[StageOutput]:
    """Add up the gradient of one optimizer step, micro-batch by micro-batch.

    Args:
        module: the stage, as the accelerator prepared it.
        batches: the step's micro-batches.
        tokens: response tokens of all of them, on all processes: what every sum is divided by.
        accelerator: scales and synchronises.

    Returns:
        What the stage said of each micro-batch, without gradients.
    """
    outputs = []
    for number, batch in enumerate(batches):
        last = number + 1 == len(batches)
        # Gradients travel between processes once a step, with its last micro-batch.
        with nullcontext() if last else accelerator.no_sync(module):
            output: StageOutput = module(batch.to(accelerator.device))
            # Processes average their gradients; the global sum needs their number back.
            accelerator.backward(output.loss * (accelerator.num_processes / max(tokens, 1)))
        outputs.append(StageOutput(output.loss.detach(), output.terms, output.matched))
    return outputs


def _clip(parameters: list[nn.Parameter], limit: float | None, accelerator: Accelerator) -> float:
    norm = accelerator.clip_grad_norm_(parameters, limit if limit is not None else math.inf)
    return float(norm) if norm is not None else math.nan


def _global(count: int, accelerator: Accelerator) -> int:
    if accelerator.num_processes == 1:
        return count
    return int(accelerator.reduce(torch.tensor(count, device=accelerator.device), "sum"))


def _mean(sums: list[Tensor], tokens: int, accelerator: Accelerator) -> float:
    total = torch.stack([value.double() for value in sums]).sum()
    if accelerator.num_processes > 1:
        total = accelerator.reduce(total, "sum")
    return float(total) / max(tokens, 1)
