"""What the loop makes of a full device and of a loss scale without an end; whole trainings are in tests/runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.data.records import Record
from vlsi_cli.engine.data.sources import PatternsSource
from vlsi_cli.engine.data.stream import RecordStream
from vlsi_cli.engine.runs.models import new_accelerator
from vlsi_cli.engine.training import Checkpoints, Stage, train_stage
from vlsi_cli.engine.training.parallel import common_terms
from vlsi_cli.engine.training.stage import StageOutput, add_terms
from vlsi_cli.errors import TrainingError

CPU = torch.device("cpu")


class Squares(Stage):
    """One weight that every response token pulls towards zero."""

    name = "reinforcement"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        return [("weight", self.weight)]

    def forward(self, batch: Batch) -> StageOutput:
        terms: dict[str, torch.Tensor] = {}
        return StageOutput(add_terms(terms, "last", self.weight.square() * batch.targets), terms)


def _batch(records: list[Record]) -> Batch:
    ones = torch.ones(len(records), dtype=torch.int64)
    inputs = {"attention_mask": ones[:, None]}
    return Batch(inputs, ones.cumsum(0) - 1, 0 * ones, ones, tuple(record.id for record in records))


def train(stage: Stage, accelerator: Accelerator, *, steps: int, **more: Any) -> None:
    train_stage(
        stage,
        RecordStream([(PatternsSource("train", size=4), 1.0)], lambda record: record, _batch, seed=0),
        accelerator,
        key="key",
        steps=steps,
        batch_size=2,
        accumulation=1,
        learning_rate=0.1,
        final_learning_rate=0.1,
        **more,
    )


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("forward", torch.OutOfMemoryError("no")),
        (
            "forward",
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        ),
        ("step", torch.OutOfMemoryError("no")),
    ],
)
def test_a_full_device_is_told_wherever_in_a_step_it_fills(
    where: str, error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(*((Squares, "forward") if where == "forward" else (torch.optim.AdamW, "step")), full)
    with pytest.raises(TrainingError, match=r"key does not fit into the memory of cpu \(step 1, 2 records"):
        train(Squares(), new_accelerator(CPU, torch.float32), steps=1)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("prepare", "what trains in key does not fit into the memory of cpu"),
        ("unpack", "what trains in key, with its moments, does not fit into the memory of cpu"),
        ("pack", "memory ran out while the checkpoint of step 4 of key was written"),
        ("save_file", "memory ran out while the checkpoint of step 4 of key was written"),
    ],
)
def test_memory_that_runs_out_between_steps_is_told_too(
    where: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch's allocator of host memory says it; the checkpoints that were there stay whole."""
    checkpoints = Checkpoints(tmp_path)
    train(Squares(), new_accelerator(CPU, torch.float32), steps=3, checkpoints=checkpoints)
    before = checkpoints.latest("key")
    assert before is not None

    def full(*_: Any, **__: Any) -> None:
        torch.empty(2**50)

    place = "checkpoint" if where == "save_file" else "loop"
    monkeypatch.setattr(f"vlsi_cli.engine.training.{place}.{where}", full)
    with pytest.raises(TrainingError, match=words) as raised:
        train(
            *(Squares(), new_accelerator(CPU, torch.float32)), steps=4, checkpoints=checkpoints, resume=before
        )
    assert ("checkpoints up to step 3 are good" in str(raised.value.hint)) == ("checkpoint" in words)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["key-00000003"]
    assert checkpoints.latest("key") is not None


class Single(torch.Tensor):
    """A tensor as on a device without fp64; a copy on the host is a plain one."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        found = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(found, Single) and found.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return found


def test_terms_are_added_up_where_there_is_fp64() -> None:
    values = [{"4": 2.0**24, "last": 1.0}, {"4": 1.0, "last": 2.0}]
    terms = [
        {name: torch.tensor(value).as_subclass(Single) for name, value in each.items()} for each in values
    ]
    with pytest.raises(TypeError, match="float64"):
        terms[0]["4"].double()
    outputs = [StageOutput(each["last"], dict(each)) for each in terms]
    for norm in (0.5, torch.tensor(0.5).as_subclass(Single)):
        # 2**24 + 1 is what fp32 would round
        assert common_terms(outputs, 1, norm) == ({"4": 2.0**24 + 1, "last": 3.0}, 0.5)


def test_steps_are_not_left_out_for_ever_under_loss_scaling() -> None:
    class Roots(Squares):
        """A finite loss, and at zero a gradient that is not, whatever the scale."""

        def forward(self, batch: Batch) -> StageOutput:
            terms: dict[str, torch.Tensor] = {}
            return StageOutput(add_terms(terms, "last", (self.weight - 1).sqrt() * batch.targets), terms)

    accelerator = new_accelerator(CPU, torch.float32)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    with pytest.raises(TrainingError, match="step 15 of key: the gradient is not finite"):
        train(Roots(), accelerator, steps=20)
