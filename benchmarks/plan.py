"""Peaks that `vlsi plan` predicts against peaks that are measured, stage by stage, on the demo pair on a CPU.

    python benchmarks/plan.py [KEY=VALUE ...]      # settings as for --set, e.g. precision=bf16

Each stage runs for two optimizer steps under torch's profiler, which sees every allocation; what was alive when the
stage began counts too. The plan is made for the records that really came: their padded length and their shares of
response and image tokens.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from vlsi_cli.config import loading, planning
from vlsi_cli.config.stage_plans import Records
from vlsi_cli.engine.runs import distill, models
from vlsi_cli.engine.runs.data import encoder_for, training_stream
from vlsi_cli.events import StageEnded, StageStarted


def alive() -> int:
    """Bytes of all tensors that Python can reach, each storage once."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for thing in gc.get_objects():
            if isinstance(thing, torch.Tensor) and thing.device.type == "cpu":
                storage = thing.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


class Meter:
    """Listens to a run and measures each of its stages."""

    def __init__(self) -> None:
        self.peaks: dict[tuple[str, str], int] = {}

    def __call__(self, event: Any) -> None:
        """Begin or end a measurement."""
        if isinstance(event, StageStarted):
            gc.collect()
            self._key, self._base = (event.stage, event.side), alive()
            self._profile = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            )
            self._profile.start()
        elif isinstance(event, StageEnded):
            self._profile.stop()
            changes = sorted(
                (found.start_ns(), found.nbytes())
                for found in self._profile.profiler.kineto_results.events()
                if found.name() == "[memory]"
            )
            now = peak = 0
            for _, change in changes:
                now += change
                peak = max(peak, now)
            self.peaks[self._key] = self._base + peak
            del self._profile


def measure(sets: list[str]) -> list[tuple[str, str, int, int]]:
    """Stage, side, predicted and measured bytes of each stage of the demo with these settings."""
    torch.set_num_threads(1)
    short = [f"{stage}.steps=2" for stage in ("verbalization", "interaction", "reinforcement")]
    resolved = loading.resolve("demo", [*short, "evaluation.data=null", "device=cpu", *sets], {})
    meter = Meter()
    with tempfile.TemporaryDirectory() as folder:
        distill.run(resolved, output=Path(folder) / "run", events=meter)
    rows = []
    for stage in planning.plan(resolved, typical(resolved)).stages:
        assert stage.memory is not None
        rows.append((stage.stage, stage.side, stage.memory.total, meter.peaks[stage.stage, stage.side]))
    return rows


def typical(resolved: loading.Resolved) -> Records:
    """What the records of a run are like: the padded length and the shares of its first 64 records."""
    config = resolved.config
    processor = models.describe_model(config.student, config).processor
    stream = training_stream(config.data, encoder_for(processor, config.data), seed=config.seed)
    batch = stream.next_batch(64)
    tokens = batch.inputs["input_ids"].numel()
    images = int(batch.inputs["mm_token_type_ids"].bool().sum())
    return Records(batch.inputs["input_ids"].shape[1], batch.num_tokens / tokens, images / tokens)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings as for --set")
    table = Table("stage", "model", "predicted MiB", "measured MiB", "ratio", box=None)
    for stage, side, predicted, measured in measure(parser.parse_args().settings):
        row = (f"{predicted / 2**20:.1f}", f"{measured / 2**20:.1f}", f"{predicted / measured:.2f}")
        table.add_row(stage, side, *row)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
