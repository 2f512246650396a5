"""What every process of a launch does in ``test_zero.py``: several checks in one launch.

``python -m tests.runs.zero_ranks FOLDER LARGE SMALL`` as one of several processes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import torch

from tests import pairs
from tests.quick import do_not_wait, set_aside
from tests.runs.ranks import CPU, not_finite, steps, stopped
from tests.unit.stages.test_stages import stages
from vlsi_cli import events
from vlsi_cli.config.loading import load_saved, resolve
from vlsi_cli.config.run import ReinforcementConfig
from vlsi_cli.engine import processes
from vlsi_cli.engine.data.collate import merge
from vlsi_cli.engine.runs import models
from vlsi_cli.engine.runs.distill import run
from vlsi_cli.engine.runs.stages import reinforcement_stage
from vlsi_cli.engine.training import optimizer
from vlsi_cli.engine.training.checkpoint import Checkpoint, pack, unpack
from vlsi_cli.engine.training.parallel import common_counts, prepare
from vlsi_cli.engine.training.stage import Stage
from vlsi_cli.engine.training.zero import ZeroPrepared

LIMIT = 0.5


def new_stage(folders: tuple[Path, Path], kind: str) -> Stage:
    """One that trains the vision tower too, or one that matches layers."""
    if kind == "vision":
        return reinforcement_stage(ReinforcementConfig(vision=True), pairs.load(folders[1]), seed=0)
    return stages(folders)["interaction"]()


def trained(
    folders: tuple[Path, Path], kind: str, zero: Literal[2, 3] | None, *, alone: bool = False
) -> list[tuple[float, tuple[int, int], dict[str, torch.Tensor]]]:
    """Two steps of :func:`.ranks.steps`, the second from a checkpoint.

    Returns:
        After each: the norm; how many numbers of what trains, and of its first moments, this process holds; and whole
        parameters and moments. The first moment of AdamW after the first step is a tenth of the clipped gradient.
    """
    found, checkpoint = [], None
    for number, batches in enumerate(steps(str(folders[1]))):
        stage = new_stage(folders, kind)
        made = optimizer.make_optimizer(stage.trained())
        if checkpoint is not None:
            unpack(checkpoint, stage.trained(), made, stage.generator, CPU, divided_later=zero is not None)
        for group in made.param_groups:
            group["lr"] = 1e-3
        accelerator = models.new_accelerator(CPU, torch.float32, some_idle=stage.some_idle)
        if zero is None:
            prepared = prepare(stage, made, accelerator)
        else:
            prepared = ZeroPrepared(stage, made, accelerator, level=zero, limit=LIMIT)
        stage.set_train_mode()
        own = batches[processes.rank() :: processes.size()]
        if alone:
            own = [merge(batches[:2]), merge(batches[2:])]
        tokens, _ = common_counts(own)
        prepared.accumulate(own, tokens)
        norm = float(prepared.clip([parameter for _, parameter in stage.trained()], LIMIT))
        prepared.step()
        weights = sum(parameter.numel() for _, parameter in stage.trained())
        moments = sum(state["exp_avg"].numel() for state in made.state.values())
        values = pack(stage.trained(), prepared.moments, stage.generator, CPU)
        prepared.close()
        found.append((norm, (weights, moments), values))
        shared = [{name: value.clone() for name, value in values.items()}]
        if not alone:  # only the first process has what was gathered
            torch.distributed.broadcast_object_list(shared, src=0)
        checkpoint = Checkpoint(number + 1, shared[0], {"processes": processes.size()})
    return found


def main() -> None:
    do_not_wait()
    folder, *folders = map(Path, sys.argv[1:])
    sets = json.loads((folder / "sets.json").read_text("utf-8"))
    found: dict[str, Any] = {}
    with processes.joined(CPU):
        for zero in (2, 3):
            for kind in ("vision", "matching"):
                values = trained((folders[0], folders[1]), kind, zero)
                if processes.is_first():
                    torch.save(values, folder / f"zero{zero}-{kind}.pt")
            set_aside()  # all is imported
            chosen = f"sharding=zero{zero}"
            run(resolve("demo", [*sets["whole"], chosen]), output=folder / chosen[9:], events=events.ignore)
        found["stopped"] = processes.gather(
            stopped(folder / "two-to-one", [*sets["short"], "sharding=zero2"])
        )
        begun = folder / "one-to-two"
        run(load_saved(begun), output=begun, events=events.ignore, resume=True)
        short = [*sets["short"], "sharding=zero3"]
        found["not finite"] = processes.gather(not_finite(folder / "nan", short))
    if processes.is_first():
        (folder / "found.json").write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main()
