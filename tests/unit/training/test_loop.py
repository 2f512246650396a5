"""What the loop makes of a device that is full; whole trainings are in tests/runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.data.records import Record
from vlsi_cli.engine.data.sources import PatternsSource
from vlsi_cli.engine.data.stream import RecordStream
from vlsi_cli.engine.runs.models import new_accelerator
from vlsi_cli.engine.training import Stage, train_stage
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


@pytest.mark.parametrize("where", ["forward", "step"])
def test_a_full_device_is_told_wherever_in_a_step_it_fills(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(*((Squares, "forward") if where == "forward" else (torch.optim.AdamW, "step")), full)
    stream = RecordStream([(PatternsSource("train", size=4), 1.0)], lambda record: record, _batch, seed=0)
    with pytest.raises(TrainingError, match=r"key does not fit into the memory of cpu \(step 1, 2 records"):
        train_stage(
            Squares(),
            stream,
            new_accelerator(CPU, torch.float32),
            key="key",
            steps=1,
            batch_size=2,
            accumulation=1,
            learning_rate=0.1,
            final_learning_rate=0.1,
        )
