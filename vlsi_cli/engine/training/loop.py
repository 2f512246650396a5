"""The loop that every stage trains in: exact accumulation, clipping, checkpoints, and a way to stop.

Losses arrive as sums over response tokens. For each optimizer step all micro-batches are drawn first, so the
global number of response tokens N is known before the first backward pass, and each sum is divided by it:
how records are cut into micro-batches, padded or spread over processes cannot change the gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from vlsi_cli.engine import processes
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.data.stream import RecordStream
from vlsi_cli.engine.training.checkpoint import (
    Checkpoint,
    Checkpoints,
    mixed_seed,
    pack,
    random_states,
    set_random_states,
    unpack,
)
from vlsi_cli.engine.training.optimizer import learning_rate_at, make_optimizer
from vlsi_cli.engine.training.parallel import agreed, common_counts, common_terms, prepare
from vlsi_cli.engine.training.signals import Wish
from vlsi_cli.engine.training.stage import Stage, StageOutput
from vlsi_cli.engine.training.zero import ZeroPrepared
from vlsi_cli.errors import Interrupted, TrainingError, VlsiError, fitting

#: Gradients that overflow under a smaller loss scale are no matter of scale (fairseq's `min_loss_scale`).
LEAST_SCALE = 1e-4


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


@dataclass(frozen=True)
class Failure:
    """A step whose loss or gradient is not finite, before anything is changed by it.

    Attributes:
        step: its number, from 1; ``total`` steps make the stage.
        message: what is not finite.
        terms: the losses as in :class:`Progress`; ``micro_batches`` the same sums over response tokens for each
            micro-batch, undivided. Both empty where layers could not even be matched.
        grad_norm: before clipping.
        learning_rate: the rate that the step would have used.
        random: the states of the generators before it.
        draw: draws its micro-batches once more.
        scaler: state of the loss scaling, None without one.
        last_checkpoint: steps done at the newest checkpoint of this stage (0: none).
    """

    step: int
    total: int
    message: str
    terms: dict[str, float]
    micro_batches: list[dict[str, float]]
    grad_norm: float
    learning_rate: float
    random: dict[str, Tensor]
    draw: Callable[[], list[Batch]]
    scaler: dict[str, Any] | None
    last_checkpoint: int


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
    zero: Literal[2, 3] | None = None,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 200,
    resume: Checkpoint | None = None,
    wish: Wish | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    on_checkpoint: Callable[[Any, int], None] = lambda path, step: None,
    on_failure: Callable[[Failure], str | None] = lambda failure: None,
) -> None:
    """Train a stage to its last step.

    Args:
        stage: what trains; on the accelerator's device.
        stream: supply of micro-batches.
        accelerator: device and mixed precision; one of its own for every stage, since it keeps what it prepared.
        key: name of the stage in checkpoints.
        steps: optimizer steps of the whole stage.
        batch_size: records a micro-batch; ``accumulation`` micro-batches make a step.
        learning_rate, final_learning_rate, warmup_steps, schedule: see :func:`learning_rate_at`.
        betas, weight_decay: of AdamW.
        max_grad_norm: gradients are scaled down to this norm; None leaves them.
        seed: of torch's own random state (dropout) in this stage.
        zero: train on DeepSpeed, at this stage of ZeRO; None: on accelerate.
        checkpoints: where to save; None saves nothing.
        checkpoint_every: steps between checkpoints.
        resume: a checkpoint of this stage to go on from.
        wish: asked after every micro-batch whether to stop.
        on_step, on_checkpoint: told of what happens.
        on_failure: told of a step that is not finite, while everything is as it was before it; what it returns is
            one more line of the error's hint.

    Raises:
        TrainingError: a loss or a gradient that is not finite, or no memory left on the device.
        Interrupted: the wish came true; a checkpoint of the last whole step is on disk.
        DataError, OutputError: from the stream and from the disk.
    """
    trained = stage.trained()
    parameters = [parameter for _, parameter in trained]
    device = accelerator.device
    optimizer = make_optimizer(trained, betas=betas, weight_decay=weight_decay)
    first = 0
    smaller = "train fewer parts, divide them among more processes (sharding), or take a larger device"
    if resume is None:
        torch.manual_seed(mixed_seed(seed, 0, processes.rank()))
    else:
        held = f"what trains in {key}, with its moments, does not fit into the memory of {device}"
        with fitting(TrainingError(held, hint=smaller)):
            divided_later = zero is not None
            unpack(
                resume, trained, optimizer, stage.generator, device, seed=seed, divided_later=divided_later
            )
        stream.load_state_dict(resume.values["stream"])
        if accelerator.scaler is not None and resume.values.get("scaler"):
            accelerator.scaler.load_state_dict(resume.values["scaler"])
        first = resume.step
        resume.tensors.clear()  # as large as the model and its moments
    with fitting(
        TrainingError(f"what trains in {key} does not fit into the memory of {device}", hint=smaller)
    ):
        if zero is None:
            prepared = prepare(stage, optimizer, accelerator)
        else:
            prepared = ZeroPrepared(stage, optimizer, accelerator, level=zero, limit=max_grad_norm)
    stage.set_train_mode()

    def save(step: int, place: dict[str, Any]) -> None:
        if checkpoints is None:
            return
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        values = {"stream": place, "scaler": scaler, "processes": processes.size()}
        lost = f"memory ran out while the checkpoint of step {step} of {key} was written"
        full = TrainingError(
            lost, hint=f"it needs what trains and its moments in host memory; {_good(saved)}"
        )
        with fitting(full):
            tensors = pack(trained, prepared.moments, stage.generator, device)

        def write() -> Any:
            with fitting(full):
                return checkpoints.save(key, step, tensors, values)

        on_checkpoint(processes.on_first(write), step)

    def draw(place: dict[str, Any] | None = None) -> list[Batch]:
        if place is not None:
            stream.load_state_dict(place)
        return stream.next_step(batch_size, accumulation)

    def asked() -> bool:
        if wish is not None:  # one process may have been asked alone
            wish.signal = agreed(wish.signal or 0) or None
        return wish is not None and wish.signal is not None

    def stop(step: int, place: dict[str, Any]) -> VlsiError:
        save(step, place)
        code = wish.exit_code if wish is not None else Interrupted.exit_code
        return _of_all(
            Interrupted(
                f"stopped after step {step} of {steps} of {key}; a checkpoint is saved", exit_code=code
            )
        )

    def not_finite(
        step: int,
        message: str,
        rate: float,
        before: tuple[dict[str, Any], dict[str, Tensor]],
        terms: dict[str, float] | None = None,
        outputs: Sequence[StageOutput] = (),
        norm: float = math.nan,
    ) -> VlsiError:
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        sums = [{name: float(value) for name, value in each.terms.items()} for each in outputs]
        again = partial(draw, before[0])
        failure = Failure(
            step + 1, steps, message, terms or {}, sums, norm, rate, before[1], again, scaler, saved
        )
        half = ", or compute in bf16 or fp32" if scaler is not None else ""
        hint = f"lower the learning rate{half}; {_good(saved)}"
        more = on_failure(failure)  # which draws again: all processes together
        return _of_all(
            TrainingError(f"step {step + 1} of {key}: {message}", hint="\n".join(filter(None, [hint, more])))
        )

    def too_large(step: int) -> VlsiError:
        return TrainingError(
            f"{key} does not fit into the memory of {device} (step {step + 1}, {batch_size} records at a time)",
            hint="lower batch_size and raise gradient_accumulation, set gradient_checkpointing: true, or lower "
            "data.max_length or data.max_pixels",
        )

    saved = first
    with closing(prepared):
        for step in range(first, steps):
            started = time.perf_counter()
            before = stream.state_dict(), random_states(stage.generator, device)
            rate = learning_rate_at(
                step,
                steps,
                peak=learning_rate,
                final=final_learning_rate,
                warmup=warmup_steps,
                schedule=schedule,
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            batches = draw()
            tokens, inputs = common_counts(batches)
            with fitting(too_large(step)):
                try:
                    outputs = prepared.accumulate(batches, tokens, asked)
                    if outputs is None:  # asked to stop inside the step: it is as if it had not begun
                        set_random_states(before[1], stage.generator, device)
                        raise stop(step, before[0])
                    found = prepared.clip(parameters, max_grad_norm)
                except (
                    TrainingError
                ) as error:  # matching met a divergence that is not finite, before there was a loss
                    raise not_finite(step, f"{error} (learning rate {rate:.2g})", rate, before) from error
            terms, norm = common_terms(outputs, tokens, found)
            loss = sum(terms.values())
            # Under loss scaling a norm may overflow: the scaler then leaves the step out and lowers the scale, but not
            # for ever.
            scaled = accelerator.scaler
            overflows = not math.isfinite(norm) and scaled is not None and scaled.get_scale() >= LEAST_SCALE
            if not math.isfinite(loss) or not (math.isfinite(norm) or overflows):
                odd = [name for name, value in terms.items() if not math.isfinite(value)]
                what = f"loss of {', '.join(odd)}" if odd else "gradient"
                message = f"the {what} is not finite (learning rate {rate:.2g})"
                raise not_finite(step, message, rate, before, terms, outputs, norm)
            with fitting(too_large(step)):  # the first step makes the moments, twice the size of what trains
                prepared.step()
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
            if step + 1 == steps:  # what follows a stage can fail too: its last step must not be lost
                save(steps, stream.state_dict())
            elif asked():
                raise stop(step + 1, stream.state_dict())
            elif (step + 1) % checkpoint_every == 0:
                save(step + 1, stream.state_dict())
                saved = step + 1


def _good(saved: int) -> str:
    return f"checkpoints up to step {saved} are good"


def _of_all(error: VlsiError) -> VlsiError:
    """Raised by every process alike, and told by one."""
    error.shared = processes.size() > 1
    return error
