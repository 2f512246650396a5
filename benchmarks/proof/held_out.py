"""What held-out puzzles say of a model: the same ones for every run, made once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.proof.settings import Settings, Split
from vlsi_cli.config.run import DataConfig
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.data.collate import collate, in_groups
from vlsi_cli.engine.data.template import ChatEncoder, EncodedPrompt
from vlsi_cli.engine.evaluation import answer_prompts, mean_loss
from vlsi_cli.engine.runs.data import prompt_stream, training_stream


class Measure(Protocol):
    """What a model is measured by."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, ``loss`` among them."""
        ...


@dataclass(frozen=True)
class Score:
    """Share of exact answers, by kind too, and mean loss in nats."""

    accuracy: float
    loss: float
    by_kind: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values, rounded."""
        kinds = {kind: round(share, 4) for kind, share in self.by_kind.items()}
        return {"accuracy": self.accuracy, "loss": round(self.loss, 5), "by_kind": kinds}


class HeldOut:
    """The held-out puzzles of a comparison.

    Args:
        settings: how many there are and how they are asked.
        encoder: from a puzzle to tokens.
        puzzles: from a split, a seed and other fields of the source to the data.
    """

    def __init__(self, settings: Settings, encoder: ChatEncoder, puzzles: Callable[..., DataConfig]) -> None:
        self._settings, self._encoder, self._puzzles = settings, encoder, puzzles
        self._asked: dict[Split, tuple[list[EncodedPrompt], list[Batch], int]] = {}

    def measure(self, backbone: Backbone, split: Split) -> Score:
        """Greedy answers to the puzzles of a split, and the loss on them."""
        prompts, batches, end = self._ask(split)
        answers = answer_prompts(
            backbone,
            prompts,
            pad_id=self._encoder.pad_id,
            end_id=end,
            batch_size=self._settings.asked_together,
            max_new_tokens=self._settings.max_new_tokens,
        )
        loss = mean_loss(backbone, batches)
        kinds: dict[str, list[bool]] = defaultdict(list)
        for answer in answers:
            kinds[answer.kind].append(answer.correct)
        return Score(
            sum(answer.correct for answer in answers) / len(answers),
            loss,
            {kind: sum(correct) / len(correct) for kind, correct in sorted(kinds.items())},
        )

    def batches(self, split: Split) -> list[Batch]:
        """The puzzles with their right answers."""
        return self._ask(split)[1]

    def _ask(self, split: Split) -> tuple[list[EncodedPrompt], list[Batch], int]:
        if split not in self._asked:
            fixed = self._settings
            seed = fixed.test_seed if split == "test" else 0
            data = self._puzzles(split, seed, size=fixed.asked, turns=1)
            records = list(training_stream(data, self._encoder, seed=0).one_pass())
            prompts = list(prompt_stream(data, self._encoder, seed=0).one_pass())
            groups = in_groups(records, fixed.asked_together)
            batches = [collate(group, self._encoder.pad_id) for group in groups]
            end = int(records[0].input_ids[records[0].trained][-1])
            self._asked[split] = prompts, batches, end
        return self._asked[split]
