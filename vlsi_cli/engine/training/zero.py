"""Training on DeepSpeed's ZeRO (arXiv 1910.02054), where accelerate's configuration or ``sharding`` asks for it.

DeepSpeed divides gradients and moments among the processes (stage 2), or the parameters of the stage's units as well
(stage 3), exchanges them while the backward pass runs, and takes the optimizer's step on each process's share. All else
is this package's: what trains, the losses, the precision, AdamW itself and its rate, and when a step ends.

DeepSpeed is given a module of its own, which holds what trains and nothing else. What is frozen outside the units
(heads, vision towers, the large model) it never sees, so that all of it stays whole: losses use heads as plain
matrices, and a process whose batch has no picture keeps nobody waiting in a gathering.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vlsi_cli.config.memory import ZERO_BUCKET
from vlsi_cli.engine import processes
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.training.parallel import Prepared
from vlsi_cli.engine.training.stage import Stage, StageOutput, with_zeros


class ZeroPrepared(Prepared):
    """A stage and its optimizer as they train on DeepSpeed's ZeRO.

    Every process must hold the same numbers when it is made, and none of its parameters in pieces.

    Args:
        stage: what trains.
        optimizer: AdamW over ``stage.trained()``; the whole moments of a checkpoint that it holds are divided.
        accelerator: device and precision. DeepSpeed computes in what the parameters are held in, fp32, and autocast
            does the rest, as it does without DeepSpeed.
        level: 2 or 3, the stage of ZeRO.
        limit: gradients are scaled down to this norm; None leaves them.
    """

    def __init__(
        self,
        stage: Stage,
        optimizer: torch.optim.AdamW,
        accelerator: Accelerator,
        *,
        level: int,
        limit: float | None,
    ) -> None:
        deepspeed = load_deepspeed(accelerator.device)
        self._linear = nn.functional.linear
        self._level, self._trained = level, [parameter for _, parameter in stage.trained()]
        self._known = [set(vars(parameter)) for parameter in self._trained]
        self._at_once = bool(stage.seldom())
        kept = {p: optimizer.state.pop(p) for p in self._trained if p in optimizer.state}
        self._root = _Root(stage, accelerator, stage.units() if level == 3 else [])
        vectors = [p.numel() for p in self._root.parameters() if p.ndim < 2]
        self._engine, *_ = deepspeed.initialize(
            model=self._root,
            optimizer=optimizer,
            dist_init_required=False,
            config=_configuration(
                level, limit, sum(p.numel() for p in self._trained), max(vectors, default=0)
            ),
        )
        super().__init__(self._engine, optimizer, accelerator)
        self._make_moments(kept)

    def accumulate(
        self, batches: list[Batch], tokens: int, stop: Callable[[], bool] = lambda: False
    ) -> list[StageOutput] | None:
        """As :meth:`.Prepared.accumulate`; gradients are exchanged, and divided, in the course of every backward pass.

        Where the order in which they come depends on the batch, they are exchanged after the last one instead, in the
        same order on all processes: DeepSpeed would add up what does not belong together.
        """
        if not self._at_once:
            return super().accumulate(batches, tokens, stop)
        with self._engine.coalesce_grad_reduction():
            return super().accumulate(batches, tokens, stop)

    def clip(self, parameters: list[nn.Parameter], limit: float | None) -> float:
        """The norm of all gradients, infinite if one is not finite; it is DeepSpeed's step that scales them down."""
        from deepspeed.runtime.utils import combine_grad_norm_groups

        zero = self._engine.optimizer
        if self._level == 2:
            return float(zero.scaled_global_norm())
        return float(combine_grad_norm_groups(zero._get_norm_groups()))

    def step(self) -> None:
        """One step of AdamW on each process's share; stage 2 then sends the new parameters around."""
        self._engine.step()

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The moments of a parameter: whole, in the first process's host memory, and empty on the others."""
        from deepspeed.utils import safe_get_full_optimizer_state

        (state, *_) = (state for _, state in self._shares())
        found = {"step": state["step"].clone()}
        for key in ("exp_avg", "exp_avg_sq"):
            whole = safe_get_full_optimizer_state(parameter, key)
            found[key] = whole.cpu() if processes.is_first() else whole.new_empty(0)
        return found

    def close(self) -> None:
        """Take DeepSpeed's hooks away; after stage 2 the parameters have memory of their own again.

        After stage 3 they stay in pieces, for :func:`vlsi_cli.engine.sharding.whole` to gather.
        """
        from deepspeed.runtime.zero import parameter_offload

        self._engine.destroy()
        parameter_offload.FWD_MODULE_STACK.clear()  # it would keep all that ever trained
        nn.functional.linear = self._linear  # stage 3 puts one in its place that keeps no gathered weights
        if self._level == 2:
            for parameter, known in zip(self._trained, self._known, strict=True):
                parameter.data = parameter.data.clone()  # was a part of one tensor of all
                parameter.grad = None
                for name in set(vars(parameter)) - known:
                    delattr(parameter, name)

    # ---------------------------------------------------------------- one micro-batch

    def _forward(self, batch: Batch) -> StageOutput:
        loss, output = self._engine(batch)
        return StageOutput(loss, output.terms, output.matched)  # its own: DeepSpeed's hooks hang on it

    def _backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    @contextmanager
    def _exchanged(self, *, last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(last)
        yield

    # ---------------------------------------------------------------- DeepSpeed's own records

    def _shares(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """The flat tensors that this process's AdamW trains, one a group of parameters, and its state for each."""
        zero = self._engine.optimizer
        flat = zero.single_partition_of_fp32_groups if self._level == 2 else zero.fp32_partitioned_groups_flat
        for share in flat:
            yield share, zero.optimizer.state[share]

    def _make_moments(self, kept: dict[nn.Parameter, dict[str, Any]]) -> None:
        """Moments of zero, as AdamW's first step would make them, or this process's share of those given."""
        # One count of steps for all: what had no gradient in some step has been given one of zeros in it.
        step = max((state["step"] for state in kept.values()), default=torch.tensor(0.0))
        for share, state in self._shares():
            state["step"] = step.clone()
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(share), torch.zeros_like(share)
        if self._level == 2:  # at the first step DeepSpeed would link those of the first group only
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()
        for parameter, state in kept.items():
            for key in ("exp_avg", "exp_avg_sq"):
                self._put(parameter, key, state[key])

    def _put(self, parameter: nn.Parameter, key: str, whole: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self._level == 2:
            safe_set_full_optimizer_state(parameter, whole, key)
            return
        piece = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = nn.functional.pad(whole.flatten(), (0, piece * processes.size() - whole.numel()))
        safe_set_local_optimizer_state(parameter, padded.narrow(0, piece * processes.rank(), piece), key)


class _Root(nn.Module):
    """What DeepSpeed takes for the model: what trains, and all of the units where these are divided.

    Parameters outside the units are its own: stage 3 gathers them for the whole of a pass, whoever uses them in it.
    """

    def __init__(self, stage: Stage, accelerator: Accelerator, units: list[nn.Module]) -> None:
        super().__init__()
        self._stage = (stage,)  # kept out of the module tree, as all that is frozen
        self._seldom = (stage.seldom(),)
        self._autocast: Callable[[], AbstractContextManager[Any]] = accelerator.autocast
        self.units = nn.ModuleList(units)
        inside = set(self.units.parameters())
        for name, parameter in stage.trained():
            if parameter not in inside:
                self.register_parameter(name.replace(".", "/"), parameter)

    def forward(self, batch: Batch) -> tuple[Tensor, StageOutput]:
        """The loss by itself too, where DeepSpeed looks for it. It has switched autocast off around this call."""
        with self._autocast():
            output: StageOutput = self._stage[0](batch)
        return with_zeros(output.loss, self._seldom[0]) if self._seldom[0] else output.loss, output


def _configuration(level: int, limit: float | None, numbers: int, vector: int) -> dict[str, Any]:
    """DeepSpeed's configuration; micro-batches are counted by the loop, and a "batch" is what it is given.

    Args:
        numbers: how many train.
        vector: numbers of the largest vector; stage 3 leaves what is no larger whole.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": limit if limit is not None else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": level,
            "overlap_comm": False,
            "reduce_bucket_size": min(ZERO_BUCKET, numbers),
            "allgather_bucket_size": ZERO_BUCKET,
            "stage3_prefetch_bucket_size": ZERO_BUCKET,
            "stage3_param_persistence_threshold": vector,
        },
    }


def load_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, imported when it is needed; it computes on ``device`` and speaks to standard error, errors only."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it would take a GPU if there is one
    import deepspeed

    # It would compile an all-reduce of its own for CPUs, which it uses for inference only.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # torch's complaint that DeepSpeed calls it by older names.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.ERROR)
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    return deepspeed
