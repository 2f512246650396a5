"""The runs on a real language model: the proof's own laboratory, with other data and another measure."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.proof.diagnosis import Draws
from benchmarks.proof.laboratory import Laboratory, Watch
from benchmarks.proof.settings import Run, Settings, Split
from benchmarks.proof.shared import KeptTeacher, Supply
from vlsi_cli.config.run import DataConfig, MessagesSource
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.data.collate import collate, in_groups
from vlsi_cli.engine.evaluation import mean_loss
from vlsi_cli.engine.runs.data import training_stream
from vlsi_cli.engine.stages import InteractionStage
from vlsi_cli.engine.verbalizing import Verbalizers

#: Batches whose draws are looked at.
LOOKED_AT = 4


@dataclass(frozen=True)
class Loss:
    """Mean loss on the answers, in nats; none is judged."""

    loss: float

    def to_json(self) -> dict[str, Any]:
        """Plain values, rounded."""
        return {"loss": round(self.loss, 5)}


class LanguageLaboratory(Laboratory):
    """Runs on records of text.

    Args:
        settings: the fixed half of the comparison.
        folder: where its models are, and ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``.
    """

    dtype = torch.bfloat16

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._folder = folder
        sides = {"large": str(folder / settings.large), "small": str(folder / settings.small)}
        super().__init__(replace(settings, **sides))
        self._asked: dict[Split, list[Batch]] = {}

    def run(self, run: Run, watch: Watch = lambda step, teacher, own: None) -> dict[str, Any]:
        """As in the proof; where layers are matched, with the draws before the interaction step and after it."""
        draws: dict[str, Any] = {}
        looking = 0.0

        def look(step: int, teacher: KeptTeacher | None, own: Verbalizers | None) -> None:
            nonlocal looking
            if own is not None and teacher is not None and step in (0, run.interaction_steps):
                started = time.process_time()
                draws[str(step)] = self._draws(self.batches(run.seed), step, teacher, own)
                looking += time.process_time() - started if step else 0.0  # step 0 is before the clock
            watch(step, teacher, own)

        result = super().run(run, look)
        if draws:
            result["draws"] = draws
            result["seconds"]["interaction"] = round(result["seconds"]["interaction"] - looking, 1)
        return result

    def _draws(
        self, supply: Supply, step: int, teacher: KeptTeacher, own: Verbalizers
    ) -> list[dict[str, float]]:
        """How far matched layers are apart and how the draws fall, a row a small target layer."""
        draws, small = Draws(), self.small
        stage = InteractionStage(
            small,
            teacher,
            own,
            last="none",
            seed=step,
            targets=own.targets,
            vocabulary=small.tokenizer_length,
            matcher=draws,
        )
        with torch.no_grad(), torch.autocast("cpu", self.dtype):
            for batch in range(LOOKED_AT):
                stage(supply.batch(step + batch))
        return draws.rows()

    def measure(self, backbone: Backbone, split: Split) -> Loss:
        """The mean loss on the response tokens of a split."""
        if split not in self._asked:
            data = self._data(split)
            records = list(training_stream(data, self._encoder, seed=0).one_pass())
            records.sort(key=lambda record: len(record.input_ids))
            groups = in_groups(records, self.settings.asked_together)
            self._asked[split] = [collate(group, self._encoder.pad_id) for group in groups]
        return Loss(mean_loss(backbone, self._asked[split]))

    def _data(self, split: str, seed: int = 0, **changes: Any) -> DataConfig:
        source = MessagesSource(path=self._folder / f"{split}.jsonl")
        return DataConfig(sources=(source,), max_length=self.settings.max_length)
