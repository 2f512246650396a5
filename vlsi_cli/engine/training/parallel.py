"""One optimizer step on all processes: what they feed together, and the gradient that comes of it.

A step's gradient is ``sum over all response tokens of all processes / N``, N their number, however many processes
there are. DistributedDataParallel and FSDP2 both *average* over W processes, so each process's sum is multiplied by
W / N. Under DistributedDataParallel only the last micro-batch of a step is exchanged; divided gradients are exchanged
in every one, since keeping them whole in between would take the memory that dividing them gave.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vlsi_cli.engine import processes, sharding
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.training.stage import Stage, StageOutput


class Prepared:
    """A stage and its optimizer as they train on accelerate; :class:`.zero.ZeroPrepared` trains on DeepSpeed.

    Args:
        module: the stage in whatever wraps it.
        optimizer: accelerate's, which knows about loss scaling; None where only gradients are wanted.
        accelerator: device and precision; scales the loss where the precision needs it.
    """

    def __init__(self, module: nn.Module, optimizer: Any, accelerator: Accelerator) -> None:
        self.module, self.optimizer, self.accelerator = module, optimizer, accelerator

    def accumulate(
        self, batches: list[Batch], tokens: int, stop: Callable[[], bool] = lambda: False
    ) -> list[StageOutput] | None:
        """Add up the gradient of one optimizer step, micro-batch by micro-batch.

        Args:
            batches: the step's micro-batches of this process, as many on each; taken out of the list as they are
                used, since a step of many holds gigabytes of pixels.
            tokens: response tokens of all of them, on all processes: what every sum is divided by.
            stop: asked before each micro-batch but the first; answers alike on all processes.

        Returns:
            What the stage said of each micro-batch, without gradients; None when it was asked to stop (the
            gradients are then incomplete).
        """
        outputs: list[StageOutput] = []
        while batches:
            if outputs and stop():
                return None
            batch = batches.pop(0).to(self.accelerator.device)
            with self._exchanged(last=not batches):
                output = self._forward(batch)
                loss = output.loss / max(tokens, 1)
                self._backward(loss * processes.size() if processes.size() > 1 else loss)
            outputs.append(StageOutput(output.loss.detach(), output.terms, output.matched))
        return outputs

    def clip(self, parameters: list[nn.Parameter], limit: float | None) -> Tensor | float:
        """Scale the gradients of all processes down to a common norm.

        Returns:
            What it was, on the device: to read it is to wait for the backward pass, see :func:`common_terms`.
        """
        if not any(sharding.is_piece(parameter) for parameter in parameters):
            norm = self.accelerator.clip_grad_norm_(parameters, limit if limit is not None else math.inf)
            return norm if norm is not None else math.nan
        self.accelerator.unscale_gradients()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        found = sharding.norm_of(gradients)
        if limit is not None:
            sharding.scale(
                gradients, (limit / (found + 1e-6)).clamp(max=1.0)
            )  # as torch.nn.utils.clip_grad_norm_
        return found

    def step(self) -> None:
        """One step of the optimizer with the gradient that was accumulated; it is gone afterwards."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """What the optimizer keeps for a parameter, by name, divided or whole; empty before the first step."""
        return dict(self.optimizer.state.get(parameter, {}))

    def close(self) -> None:
        """Nothing is trained any more."""

    def _forward(self, batch: Batch) -> StageOutput:
        with self.accelerator.autocast() if sharding.is_sharded(self.module) else nullcontext():
            return self.module(batch)

    def _backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def _exchanged(self, *, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self.accelerator.no_sync(self.module)


def prepare(stage: Stage, optimizer: torch.optim.AdamW, accelerator: Accelerator) -> Prepared:
    """Wrap a stage for the processes of the run; a stage that is divided already needs no wrapper."""
    # The optimizer is made beside its parameters; moving it would put AdamW's step counts on the device too.
    if sharding.is_sharded(stage):
        return Prepared(stage, accelerator.prepare(optimizer, device_placement=[False]), accelerator)
    with warnings.catch_warnings():
        # accelerate hands on broadcast_buffers, which newer torch gives another name and older torch knows alone
        warnings.filterwarnings("ignore", ".*broadcast_buffers.*", FutureWarning)
        module, prepared = accelerator.prepare(stage, optimizer, device_placement=[True, False])
    return Prepared(module, prepared, accelerator)


def common_counts(batches: Iterable[Batch]) -> tuple[int, int]:
    """Response tokens and input tokens of a step, of all processes."""
    held = list(batches)
    own = [sum(batch.num_tokens for batch in held), sum(batch.num_input_tokens for batch in held)]
    tokens, inputs = map(sum, zip(*processes.gather_ints(own), strict=True))
    return tokens, inputs


def common_terms(
    outputs: list[StageOutput], tokens: int, norm: Tensor | float
) -> tuple[dict[str, float], float]:
    """What a step tells of itself, read from the device at once.

    Returns:
        The mean over the step's response tokens of each term, over all processes, and the norm.
    """
    names = list(outputs[0].terms)
    held = torch.stack([torch.stack([each.terms[name] for name in names]) for each in outputs])
    if isinstance(norm, Tensor):
        *sums, length = torch.cat([held.flatten(), norm.detach().reshape(1).to(held)]).tolist()
    else:
        sums, length = held.flatten().tolist(), norm
    # On the host: Apple's GPUs have no fp64.
    here = torch.tensor(sums, dtype=torch.float64).reshape(held.shape).sum(0)
    total = processes.add_up(here).tolist()
    return {name: value / max(tokens, 1) for name, value in zip(names, total, strict=True)}, length


def agreed(value: int) -> int:
    """The largest of a small number of every process, such as the signal that one of them was sent."""
    return max(number for (number,) in processes.gather_ints([value]))
