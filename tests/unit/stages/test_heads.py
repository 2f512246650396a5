"""Heads are applied at response positions only: no stage runs a backbone's own head, an answer needs one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import pairs
from vlsi_cli.config.run import InteractionConfig, ReinforcementConfig
from vlsi_cli.engine.data.sources import PatternsSource
from vlsi_cli.engine.data.template import ChatEncoder
from vlsi_cli.engine.evaluation import answer_prompts, mean_loss
from vlsi_cli.engine.losses import LogitRule
from vlsi_cli.engine.runs.stages import interaction_stage, reinforcement_stage
from vlsi_cli.engine.stages import VerbalizationStage
from vlsi_cli.engine.teachers import LiveTeacher


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return pairs.tiny_pair(tmp_path_factory.mktemp("pair"))


def test_no_stage_runs_a_whole_head(folders: tuple[Path, Path]) -> None:
    large, small = (pairs.load(folder) for folder in folders)
    widths: list[int] = []
    for backbone in (large, small):
        backbone.head.register_forward_pre_hook(lambda module, inputs: widths.append(inputs[0].shape[1]))
    batch = pairs.batches(small, pairs.encoded(small, 2), 2)[0]
    own = pairs.verbalizers(small, pairs.TARGETS_SMALL)
    said = pairs.verbalizers(large, pairs.TARGETS_LARGE)
    VerbalizationStage(small, own)(batch)
    teacher = LiveTeacher(large, said, pairs.TARGETS_LARGE)
    interaction = interaction_stage(
        InteractionConfig(), small, teacher, own, targets=pairs.TARGETS_SMALL, seed=0
    )
    interaction(batch).loss.backward()
    reinforcement_stage(ReinforcementConfig(), small, seed=0)(batch).loss.backward()
    mean_loss(small, [batch])
    assert widths == []


def test_an_answer_applies_the_head_to_one_position_a_step(folders: tuple[Path, Path]) -> None:
    small, widths = pairs.load(folders[1]), []
    small.head.register_forward_pre_hook(lambda module, inputs: widths.append(inputs[0].shape[1]))
    encoder = ChatEncoder(small.processor)
    prompts = [encoder.encode_prompt(PatternsSource("train", size=2).read(0))]
    end = encoder.encode(PatternsSource("train", size=2).read(0))
    answer_prompts(
        small,
        prompts,
        pad_id=encoder.pad_id,
        end_id=int(end.input_ids[end.trained][-1]),
        batch_size=1,
        max_new_tokens=2,
    )
    assert widths
    assert set(widths) == {1}


def test_a_rule_for_logits_reaches_the_losses(folders: tuple[Path, Path], monkeypatch) -> None:
    """Logits halved on both sides of the last layer: another divergence, the same for the same rule."""
    small, large = pairs.load(folders[1]), pairs.load(folders[0])
    batch = pairs.batches(small, pairs.encoded(small, 2), 2)[0]
    losses = []
    for rule in (LogitRule(), LogitRule(softcap=1e6), LogitRule(scale=0.5)):
        monkeypatch.setattr(type(small.family), "logit_rule", lambda self, config, rule=rule: rule)
        teacher = LiveTeacher(large, None, pairs.TARGETS_LARGE)
        settings = InteractionConfig(intermediate="none")
        stage = interaction_stage(settings, small, teacher, None, targets=pairs.TARGETS_SMALL, seed=0)
        losses.append(float(stage(batch).loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert abs(losses[2] - losses[0]) > 0.01 * abs(losses[0])
    assert torch.isfinite(torch.tensor(losses)).all()
