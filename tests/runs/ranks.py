"""What every process of a launch does in ``test_processes.py``: several checks in one launch.

``python -m tests.runs.ranks FOLDER SMALL`` as one of several processes. Runs go to folders of their own; what the
checks found, to ``found.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tests import pairs
from tests.quick import do_not_wait, set_aside
from vlsi_cli import events
from vlsi_cli.config.loading import load_saved, resolve
from vlsi_cli.config.run import ReinforcementConfig
from vlsi_cli.engine import processes, sharding
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.backbones.placement import divide
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.runs import models
from vlsi_cli.engine.runs.distill import run
from vlsi_cli.engine.runs.stages import reinforcement_stage
from vlsi_cli.engine.stages import InteractionStage
from vlsi_cli.engine.training import optimizer
from vlsi_cli.engine.training.parallel import common_counts, prepare
from vlsi_cli.errors import DataError, Interrupted, VlsiError

CPU = torch.device("cpu")


def plain(records: int, *, silent: bool = False) -> Batch:
    """Records without a picture, and if wanted without a response token."""
    ids = torch.arange(5, 5 + 12 * records).reshape(records, 12) % 200
    rows = torch.arange(records).repeat_interleave(3)[: 0 if silent else None]
    cols = torch.tensor([5, 6, 7]).repeat(records)[: len(rows)]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": 0 * ids}
    return Batch(inputs, rows, cols, ids[rows, cols + 1], tuple(f"text {n}" for n in range(records)))


def steps(small: str) -> list[list[Batch]]:
    """Two optimizer steps of two micro-batches; each of these is cut into as many batches as there are processes.

    The second process has pictures nowhere and in the last micro-batch no response token either.
    """
    backbone = pairs.load(Path(small))
    seeing = pairs.batches(backbone, pairs.encoded(backbone, 4), 1)
    each = [
        [seeing[0], plain(2)],
        [seeing[1], plain(1)],
        [seeing[2], plain(3)],
        [seeing[3], plain(2, silent=True)],
    ]
    return [[batch for part in each[n : n + 2] for batch in part] for n in (0, 2)]


def gradients(small: str, *, divided: bool, alone: bool = False) -> list[dict[str, torch.Tensor]]:
    """Of two steps that train the vision tower too, in one process or in all of them; the norm is clipped."""
    settings = ReinforcementConfig(vision=True)
    stage = reinforcement_stage(settings, pairs.load(Path(small)), seed=0)
    if divided:
        sharding.shard(stage, stage.units())
    found = []
    made = optimizer.make_optimizer(stage.trained())
    accelerator = models.new_accelerator(CPU, torch.float32, some_idle=stage.some_idle)
    prepared = prepare(stage, made, accelerator)
    stage.set_train_mode()
    for batches in steps(small):
        own = batches if alone else batches[processes.rank() :: processes.size()]
        tokens, _ = common_counts(own)
        prepared.accumulate(own, tokens)
        prepared.clip([p for _, p in stage.trained()], 0.5)
        whole = {n: sharding.whole(p.grad) for n, p in stage.trained() if p.grad is not None}
        found.append({name: gradient.clone() for name, gradient in whole.items()})
        prepared.optimizer.zero_grad(set_to_none=True)
    accelerator.free_memory()
    return found


def states(experts: Path, *, divided: bool) -> torch.Tensor:
    """Of a large model with experts for two records, which processes that divide its layers read from the disk."""
    backbone = load_backbone(str(experts), placement="disk" if divided else "device")
    if divided:
        divide(backbone)
    batch = pairs.batches(backbone, pairs.encoded(backbone, 2), 2)[0]
    with torch.no_grad():
        return backbone.forward_base(batch.inputs)


def caught(work: Any) -> dict[str, Any]:
    """The error that a block ends in on this process."""
    try:
        work()
    except VlsiError as error:
        return {"kind": type(error).__name__, "message": str(error), "shared": error.shared}
    return {}


def alone_fails() -> None:
    with processes.together():
        if processes.rank() == 1:
            raise DataError("the second process has no data")


def first_fails() -> None:
    def work() -> None:
        raise DataError("the first process has no data")

    processes.on_first(work)


def stopped(output: Path, sets: list[str]) -> str:
    """A run of which the second process alone is asked to stop, inside the interaction."""
    forward, seen = InteractionStage.forward, [0]

    def asked(self: InteractionStage, batch: Batch) -> Any:
        seen[0] += 1
        if seen[0] == 9 and processes.rank() == 1:  # the first micro-batch of step 5
            import signal

            signal.raise_signal(signal.SIGTERM)
        return forward(self, batch)

    InteractionStage.forward = asked
    try:
        run(resolve("demo", sets), output=output, events=events.ignore)
    except Interrupted as stop:
        return f"{stop.exit_code}: {stop}" if stop.shared else "stopped alone"
    finally:
        InteractionStage.forward = forward
    return "not stopped"


def not_finite(output: Path, sets: list[str]) -> dict[str, Any]:
    """A run in which the second process alone meets a loss that is not finite."""
    forward = InteractionStage.forward

    def spoilt(self: InteractionStage, batch: Batch) -> Any:
        found = forward(self, batch)
        if processes.rank() == 1:
            found.terms["last"] = found.terms["last"] * float("nan")
        return found

    InteractionStage.forward = spoilt
    try:
        return caught(lambda: run(resolve("demo", sets), output=output, events=events.ignore))
    finally:
        InteractionStage.forward = forward


def main() -> None:
    do_not_wait()
    folder, small = Path(sys.argv[1]), sys.argv[2]
    sets = json.loads((folder / "sets.json").read_text("utf-8"))
    found: dict[str, Any] = {}
    with processes.joined(CPU):
        found["gathered"] = processes.gather({"rank": processes.rank()})
        found["alone fails"] = processes.gather(caught(alone_fails))
        found["first fails"] = processes.gather(caught(first_fails))
        torch.save(gradients(small, divided=False), folder / f"ddp-{processes.rank()}.pt")
        torch.save(gradients(small, divided=True), folder / f"fsdp-{processes.rank()}.pt")
        set_aside()  # all is imported
        torch.save(states(folder / "experts", divided=True), folder / f"experts-{processes.rank()}.pt")
        run(resolve("demo", sets["whole"]), output=folder / "ddp", events=events.ignore)
        # the frozen towers stay whole there, so what they say can be kept
        kept = [f"{side}.vision_memory=0.001" for side in ("teacher", "student")]
        run(
            resolve("demo", [*sets["whole"], "sharding=both", *kept]),
            output=folder / "fsdp",
            events=events.ignore,
        )
        found["stopped"] = processes.gather(stopped(folder / "two-to-one", sets["short"]))
        found["not finite"] = processes.gather(not_finite(folder / "nan", sets["short"]))
        begun = folder / "one-to-two"
        run(load_saved(begun), output=begun, events=events.ignore, resume=True)
    with processes.joined(CPU):  # what is left of the first meeting is not taken for the second's
        found["met again"] = processes.gather(processes.rank())
    if processes.is_first():
        (folder / "found.json").write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main()
