"""A tiny pair with data of uneven response lengths, and the objects that a stage needs, without a run folder."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tests.tiny import tiny_folder
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.data.collate import collate
from vlsi_cli.engine.data.sources import PatternsSource
from vlsi_cli.engine.data.template import ChatEncoder, Encoded
from vlsi_cli.engine.verbalizing import Verbalizers

TARGETS_LARGE, TARGETS_SMALL = (1, 2, 3, 4, 5), (1, 2, 3)


def tiny_pair(folder: Path, family: str = "qwen2_vl") -> tuple[Path, Path]:
    """Folders of a large and a small model of unequal width, depth and vocabulary rows; the small one is dense.

    Gemma 4's are of its two kinds.
    """
    kind = "gemma4 dense" if family == "gemma4" else family
    large = tiny_folder(kind, folder / "large", layers=6, hidden=64, vocabulary_rows=400, tied=False)
    dense = family.removesuffix("_moe")
    small = tiny_folder(dense, folder / "small", layers=4, hidden=32, vocabulary_rows=352, seed=1)
    return large, small


def load(folder: Path) -> Backbone:
    return load_backbone(str(folder))


def encoded(backbone: Backbone, count: int, turns: int = 3) -> list[Encoded]:
    """Puzzles with one to ``turns`` answers each, so that response lengths are uneven."""
    encoder = ChatEncoder(backbone.processor)
    records = []
    for index in range(count):
        source = PatternsSource("train", size=count, turns=1 + index % turns)
        records.append(encoder.encode(source.read(index)))
    return records


def batches(backbone: Backbone, records: list[Encoded], size: int) -> list[Batch]:
    pad = ChatEncoder(backbone.processor).pad_id
    return [collate(records[i : i + size], pad) for i in range(0, len(records), size)]


def verbalizers(backbone: Backbone, targets: tuple[int, ...], seed: int = 0) -> Verbalizers:
    """A set that is not the logit lens: all matrices random."""
    made = Verbalizers(targets, backbone.hidden_size, 64, init="random", norm=backbone.final_norm, seed=seed)
    return made.to(backbone.device)


def accelerator() -> Accelerator:
    """One in fp32, whatever another test of this process has left behind."""
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != "no":
        AcceleratorState._reset_state()
    return Accelerator(cpu=True, mixed_precision="no")


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a module's whole state."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
