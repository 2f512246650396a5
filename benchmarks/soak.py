"""Whether a training process grows or slows down: half an hour or more of real distillation on the demo pair.

    python benchmarks/soak.py --minutes 30

One run, as a user starts it: a process of its own (``vlsi distill``) whose data have no end, with held-out questions
before it, sample answers of each layer on the way, and checkpoints that are written and rotated. One stage is long, the
interaction unless --stage says another. It is watched from outside and told to stop (SIGTERM) when the time is over,
upon which it must leave a checkpoint. Resident memory is what the run notes after every step, in ``metrics.jsonl``.

    python benchmarks/soak.py --minutes 30 --runs

Runs in a row in one process, each through all stages with another seed, until the time is over: what a whole run
leaves behind accumulates. That is no case of the command line, but one of programs that call the engine.

The first fifth of the time is warm-up and left out. Straight lines are fitted through the means of the minutes (or of
the runs), and a slope is given with its standard error: memory is flat when the slope is less than two errors, or so
small that no run would notice. Throughput counts the process's own CPU seconds, so that other work on the machine
disturbs it little. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import torch

from vlsi_cli.config.loading import resolve
from vlsi_cli.engine.runs.distill import run
from vlsi_cli.events import CheckpointSaved, Event, StepDone

PAGE, TICK = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
STAGES = ("verbalization", "interaction", "reinforcement")
WARM_UP = 1 / 5  # of the time
FEWEST = 3  # points of a line


def resident() -> float:
    """Resident memory of this process, MiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * PAGE / 2**20


def open_files(process: int | str = "self") -> int:
    """Files that a process holds open."""
    return len(os.listdir(f"/proc/{process}/fd"))


@dataclass(frozen=True)
class Line:
    """A straight line through points: mean of y, slope, and the slope's standard error."""

    mean: float
    slope: float
    error: float


def fit(x: Sequence[float], y: Sequence[float]) -> Line:
    """Least squares, of points in the order of time.

    Neighbours are not independent (memory that has risen stays), so the error is widened by what their correlation r
    takes from the number of points: sqrt((1 + r) / (1 - r)), r of neighbouring residuals, from 0 to 0.95.

    Raises:
        ValueError: fewer than three points.
    """
    if len(x) < FEWEST:
        raise ValueError(f"a slope with its error needs three points, not {len(x)}")
    middle, mean = statistics.fmean(x), statistics.fmean(y)
    spread = sum((value - middle) ** 2 for value in x)
    slope = sum((a - middle) * (b - mean) for a, b in zip(x, y, strict=True)) / spread
    rest = [b - mean - slope * (a - middle) for a, b in zip(x, y, strict=True)]
    squares = sum(each**2 for each in rest)
    alike = sum(a * b for a, b in pairwise(rest)) / squares if squares else 0.0
    r = min(max(alike, 0.0), 0.95)
    error = (squares / (len(x) - 2) / spread) ** 0.5
    return Line(mean, slope, error * ((1 + r) / (1 - r)) ** 0.5)


# ---------------------------------------------------------------- one run


@dataclass
class Window:
    """A minute of one run.

    Attributes:
        at: middle of it, hours since the stage began.
        cpu: seconds of the process.
        memory: resident after each step, MiB.
        files: open at its end.
    """

    at: float
    cpu: float
    memory: list[float]
    files: int


@dataclass(frozen=True)
class Watched:
    """One run as it was seen: its windows, and what it had done when it was told to stop."""

    windows: list[Window]
    checkpoints: int
    kept: int
    samples: int


def command(output: Path, stage: str) -> list[str]:
    """``vlsi distill`` with one long stage; those before it are as short as they can be."""
    long = [f"{each}.steps={10**7 if each == stage else 4}" for each in STAGES]
    sets = [*long, *(f"{each}.batch_size=4" for each in STAGES), "threads=1", "checkpoint_every=100"]
    sets += ["evaluation.data.sources.0.size=16", "evaluation.batch_size=8"]
    sets += ["watch.samples=4", "watch.samples_every=100", "watch.samples_max_new_tokens=8"]
    program = [sys.executable, "-c", "from vlsi_cli.app import main; main()", "distill", "--recipe", "demo"]
    return [*program, "--output", str(output), *(part for each in sets for part in ("--set", each))]


def cpu_seconds(process: int) -> float:
    """CPU seconds of another process so far."""
    words = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICK


def soak_one(minutes: float, stage: str, seconds: float) -> Watched:
    """One run for so many minutes of a stage, seen in windows of ``seconds``.

    Raises:
        SystemExit: it ended by itself, or did not end in order when it was told to.
    """
    with tempfile.TemporaryDirectory(prefix="vlsi-soak-") as place:
        folder, log = Path(place) / "run", Path(place) / "log"
        with log.open("w") as told:
            child = subprocess.Popen(command(folder, stage), stdout=subprocess.DEVNULL, stderr=told)
        try:
            windows = _windows(child, folder / "metrics.jsonl", stage, minutes, seconds)
            child.send_signal(signal.SIGTERM)
            code = child.wait(timeout=600)
        finally:
            child.kill()
        words = log.read_text(encoding="utf-8")
        if code != 128 + signal.SIGTERM:
            raise SystemExit(f"the run ended with exit code {code}:\n{words}")
        kept = len(list((folder / "checkpoints").iterdir()))
        return Watched(
            windows, words.count("checkpoint of step"), kept, words.count("sample answers of step")
        )


def _windows(
    child: subprocess.Popen[bytes], metrics: Path, stage: str, minutes: float, seconds: float
) -> list[Window]:
    """On a machine that halts, a window goes on until a step has ended in it, and the whole until there are enough."""
    windows: list[Window] = []
    memory: list[float] = []
    began, place = None, 0
    first, cpu = time.perf_counter(), cpu_seconds(child.pid)
    while began is None or first - began < 60 * minutes or len(_warm(windows, minutes)) < FEWEST:
        time.sleep(seconds if began is not None else 0.5)
        if child.poll() is not None:
            raise SystemExit(f"the run ended by itself with exit code {child.returncode}")
        lines, place = _new_lines(metrics, place)
        memory += [line["memory_bytes"] / 2**20 for line in lines if str(line["stage"]).startswith(stage)]
        now, used = time.perf_counter(), cpu_seconds(child.pid) - cpu
        if not memory or not used:
            continue
        if began is None:  # it did so in the middle of this half second, which is left out
            began = now
        else:
            windows.append(Window(((first + now) / 2 - began) / 3600, used, memory, open_files(child.pid)))
        first, cpu, memory = now, cpu + used, []
    return windows


def _warm(windows: Sequence[Window], minutes: float) -> list[Window]:
    return [each for each in windows if each.at >= minutes / 60 * WARM_UP]


def _new_lines(file: Path, place: int) -> tuple[list[dict[str, float]], int]:
    """Whole lines of a JSON Lines file from a byte on, and where the next begin."""
    if not file.is_file():
        return [], place
    with file.open("rb") as held:
        held.seek(place)
        whole = held.read().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines()], place + len(whole) + bool(whole)


def report_one(watched: Watched, minutes: float, stage: str, seconds: float) -> None:
    """Print a table in Markdown."""
    warm = _warm(watched.windows, minutes)
    hours = [each.at for each in warm]
    memory = fit(hours, [statistics.fmean(each.memory) for each in warm])
    highest = fit(hours, [max(each.memory) for each in warm])
    speed = fit(hours, [len(each.memory) / each.cpu for each in warm])
    steps = sum(len(each.memory) for each in watched.windows)
    print(
        f"{minutes:g} minutes of {stage} in one run: {steps:,} steps, {watched.checkpoints} checkpoints "
        f"({watched.kept} kept), sample answers {watched.samples} times; {len(warm)} windows of {seconds:g} s after "
        f"the warm-up; demo pair, 1 thread, torch {torch.__version__}\n"
    )
    rows = {"resident memory, MiB": memory, "the highest of a window, MiB": highest}
    _table(rows, speed)
    print(f"| open files | {warm[-1].files} | {warm[-1].files - warm[0].files:+d} in all | |")
    ends = [statistics.fmean(each.memory) for each in (warm[0], warm[-1])]
    print(f"\nFrom the first window after the warm-up to the last: {ends[0]:.2f} to {ends[1]:.2f} MiB.")


def _table(rows: dict[str, Line], speed: Line) -> None:
    print("| | mean | slope an hour | standard error |")
    print("|---|---|---|---|")
    for name, line in rows.items():
        print(f"| {name} | {line.mean:.1f} | {line.slope:+.2f} | {line.error:.2f} |")
    relative = [100 * value / speed.mean for value in (speed.slope, speed.error)]
    print(f"| steps a CPU second | {speed.mean:.2f} | {relative[0]:+.1f} % | {relative[1]:.1f} % |")


# ---------------------------------------------------------------- runs in a row


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


def soak_runs(minutes: float, steps: int) -> list[Cycle]:
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


def report_runs(cycles: list[Cycle], minutes: float) -> None:
    """Print a table in Markdown."""
    warm = [cycle for cycle in cycles if cycle.at >= minutes / 60 * WARM_UP]
    hours = [cycle.at for cycle in warm]
    memory = fit(hours, [statistics.fmean(cycle.memory) for cycle in warm])
    peak = fit(hours, [max(cycle.memory) for cycle in warm])
    speed = fit(hours, [cycle.steps / cycle.cpu for cycle in warm])
    print(
        f"{minutes:g} minutes, {len(cycles)} runs of {cycles[0].steps} steps and {cycles[0].checkpoints} checkpoints "
        f"({len(warm)} after the warm-up); demo pair, 1 thread, torch {torch.__version__}\n"
    )
    _table({"resident memory, MiB": memory, "its peak in a run, MiB": peak}, speed)
    inside = [max(cycle.memory) - cycle.memory[0] for cycle in warm]
    error = statistics.stdev(inside) / len(inside) ** 0.5
    mean = statistics.fmean(inside)
    print(f"| growth inside a run, first step to peak, MiB | {mean:.2f} | | {error:.2f} |")
    print(f"| open files | {warm[-1].files} | {warm[-1].files - warm[0].files:+d} in all | |")


def main() -> None:
    """Soak and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument(
        "--stage", choices=STAGES, default="interaction", help="the long stage of the one run"
    )
    parser.add_argument("--window", type=float, default=60, metavar="SECONDS", help="a point of the lines")
    parser.add_argument("--runs", action="store_true", help="runs in a row in one process instead of one run")
    parser.add_argument("--steps", type=int, default=20, help="with --runs: optimizer steps of each stage")
    parser.add_argument(
        "--output", type=Path, help="also write every window, or every run, to this JSON file"
    )
    asked = parser.parse_args()
    points: Sequence[Cycle | Window]
    if asked.runs:
        points = cycles = soak_runs(asked.minutes, asked.steps)
    else:
        watched = soak_one(asked.minutes, asked.stage, asked.window)
        points = watched.windows
    if asked.output:
        asked.output.write_text(json.dumps([asdict(each) for each in points]) + "\n", "utf-8")
    if asked.runs:
        report_runs(cycles, asked.minutes)
    else:
        report_one(watched, asked.minutes, asked.stage, asked.window)


if __name__ == "__main__":
    main()
