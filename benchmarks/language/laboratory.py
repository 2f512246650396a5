"""The runs on a real language model: the proof's own laboratory, with other data and another measure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.proof.held_out import Score
from benchmarks.proof.laboratory import Laboratory
from benchmarks.proof.settings import Settings, Split
from vlsi_cli.config.run import DataConfig, MessagesSource
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.data.collate import collate, in_groups
from vlsi_cli.engine.evaluation import mean_loss
from vlsi_cli.engine.runs.data import training_stream


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

    def measure(self, backbone: Backbone, split: Split) -> Score:
        """The mean loss on the response tokens of a split; no answer is judged."""
        if split not in self._asked:
            data = self._data(split)
            records = list(training_stream(data, self._encoder, seed=0).one_pass())
            records.sort(key=lambda record: len(record.input_ids))
            groups = in_groups(records, self.settings.asked_together)
            self._asked[split] = [collate(group, self._encoder.pad_id) for group in groups]
        return Score(0.0, mean_loss(backbone, self._asked[split]), {})

    def _data(self, split: str, seed: int = 0, **changes: Any) -> DataConfig:
        source = MessagesSource(path=self._folder / f"{split}.jsonl")
        return DataConfig(sources=(source,), max_length=self.settings.max_length)
