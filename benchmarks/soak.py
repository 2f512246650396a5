"""Whether a training process grows or slows down: real distillations in a row in one process, for half an hour or more.

    python benchmarks/soak.py --minutes 30

Every cycle is a run of the demo pair through all stages, checkpoints, held-out questions and the written student
included, with another seed and in the same process; what a step, a stage, a checkpoint or a run keeps by mistake
accumulates. Resident memory is read after each step; the first fifth of the time is warm-up and left out. Straight
lines are fitted through the means of the cycles, and a slope is given with its standard error: memory is flat when the
slope is less than two errors, or so small that no run would notice. Throughput counts the process's own CPU seconds,
so that other work on the machine disturbs it little. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from vlsi_cli.config.loading import resolve
from vlsi_cli.engine.runs.distill import run
from vlsi_cli.events import CheckpointSaved, Event, StepDone

PAGE = os.sysconf("SC_PAGE_SIZE")
STAGES = ("verbalization", "interaction", "reinforcement")


def resident() -> float:
    """Resident memory of this process, MiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * PAGE / 2**20


def open_files() -> int:
    """Files that this process holds open."""
    return len(os.listdir("/proc/self/fd"))


@dataclass
class Cycle:
    """One run.

    Attributes:
        at: middle of it, hours since the beginning.
        steps: of the optimizer; ``checkpoints`` written.
        cpu: seconds of the process.
        memory: resident after each step, MiB.
        files: open at its end.
    """

    at: float = 0.0
    steps: int = 0
    checkpoints: int = 0
    cpu: float = 0.0
    memory: list[float] = field(default_factory=list)
    files: int = 0

    def see(self, event: Event) -> None:
        """Take note of what the run tells."""
        if isinstance(event, StepDone):
            self.steps += 1
            self.memory.append(resident())
        elif isinstance(event, CheckpointSaved):
            self.checkpoints += 1


@dataclass(frozen=True)
class Line:
    """A straight line through points: mean of y, slope, and the slope's standard error."""

    mean: float
    slope: float
    error: float


def fit(x: Sequence[float], y: Sequence[float]) -> Line:
    """Least squares; the error assumes independent residuals.

    Raises:
        ValueError: fewer than three points.
    """
    if len(x) < 3:
        raise ValueError(f"a slope with its error needs three points, not {len(x)}")
    middle, mean = statistics.fmean(x), statistics.fmean(y)
    spread = sum((value - middle) ** 2 for value in x)
    slope = sum((a - middle) * (b - mean) for a, b in zip(x, y, strict=True)) / spread
    rest = sum((b - mean - slope * (a - middle)) ** 2 for a, b in zip(x, y, strict=True))
    return Line(mean, slope, (rest / (len(x) - 2) / spread) ** 0.5)


def soak(minutes: float, steps: int) -> list[Cycle]:
    """Runs in a row until the time is over."""
    began, cycles = time.perf_counter(), list[Cycle]()
    sets = [f"{stage}.{key}" for stage in STAGES for key in (f"steps={steps}", "batch_size=4")]
    sets += ["threads=1", f"checkpoint_every={max(1, steps // 3)}"]
    sets += ["evaluation.samples=8", "evaluation.batch_size=8", "evaluation.max_new_tokens=8"]
    with tempfile.TemporaryDirectory(prefix="vlsi-soak-") as folder:
        while time.perf_counter() - began < 60 * minutes:
            cycle, started, cpu = Cycle(), time.perf_counter() - began, time.process_time()
            output = Path(folder) / "run"
            run(resolve("demo", [*sets, f"seed={len(cycles)}"]), output=output, events=cycle.see)
            shutil.rmtree(output)
            cycle.at = (started + time.perf_counter() - began) / 2 / 3600
            cycle.cpu, cycle.files = time.process_time() - cpu, open_files()
            cycles.append(cycle)
    return cycles


def main() -> None:
    """Soak and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each stage of a cycle")
    parser.add_argument("--output", type=Path, help="also write every cycle to this JSON file")
    asked = parser.parse_args()
    cycles = soak(asked.minutes, asked.steps)
    warm = [cycle for cycle in cycles if cycle.at >= asked.minutes / 60 / 5]
    if asked.output:
        asked.output.write_text(json.dumps([asdict(cycle) for cycle in cycles]) + "\n", "utf-8")
    hours = [cycle.at for cycle in warm]
    memory = fit(hours, [statistics.fmean(cycle.memory) for cycle in warm])
    peak = fit(hours, [max(cycle.memory) for cycle in warm])
    speed = fit(hours, [cycle.steps / cycle.cpu for cycle in warm])
    each = f"{cycles[0].steps} steps and {cycles[0].checkpoints} checkpoints"
    about = f"demo pair, {torch.get_num_threads()} thread, torch {torch.__version__}"
    print(
        f"{asked.minutes:g} minutes, {len(cycles)} runs of {each} ({len(warm)} after the warm-up), {about}\n"
    )
    print("| | mean | slope an hour | standard error |")
    print("|---|---|---|---|")
    for name, line in (("resident memory, MiB", memory), ("its peak in a run, MiB", peak)):
        print(f"| {name} | {line.mean:.1f} | {line.slope:+.1f} | {line.error:.1f} |")
    inside = [max(cycle.memory) - cycle.memory[0] for cycle in warm]
    error = statistics.stdev(inside) / len(inside) ** 0.5
    print(
        f"| growth inside a run, first step to peak, MiB | {statistics.fmean(inside):.2f} | | {error:.2f} |"
    )
    relative = [100 * value / speed.mean for value in (speed.slope, speed.error)]
    print(f"| steps a CPU second | {speed.mean:.2f} | {relative[0]:+.1f} % | {relative[1]:.1f} % |")
    print(f"| open files | {warm[-1].files} | {warm[-1].files - warm[0].files:+d} in all | |")


if __name__ == "__main__":
    main()
