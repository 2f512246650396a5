"""What grouping by length and worker processes are worth, on a CPU.

    python benchmarks/data.py [--steps 16] [--rounds 5]

Padding: conversations of log-normally distributed length, half of them with a picture, go through a forward and a
backward pass of the demo's small model, in steps of 4 micro-batches of 8. Seconds are those of the processor, so that
what else the machine does matters little.

Workers: steps of 8 records are taken from streams with 0, 1 and 2 workers in turn. "Alone" nothing else is done;
"beside a device" each step is followed by a second of sleep, which is what a step looks like to the host when a GPU
computes it. Seconds are those of the clock, and the median of the rounds.

Threads or processes: a loop of small tensor operations, as a model's kernels are launched, beside a thread and beside a
process that encodes records all the time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from vlsi_cli.config import loading
from vlsi_cli.config.run import DataConfig, DistillConfig
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.data.records import Record
from vlsi_cli.engine.data.schedule import Draw
from vlsi_cli.engine.data.workers import Reader
from vlsi_cli.engine.runs import models
from vlsi_cli.engine.runs.data import open_sources, training_stream
from vlsi_cli.engine.runs.measure import encoder_for
from vlsi_cli.engine.stages import ReinforcementStage

#: Records of a micro-batch, and micro-batches of a step.
BATCH, ACCUMULATION = 8, 4
WINDOWS = (0, 1, 4, 16)
WORKERS = (0, 1, 2)
#: What a device is said to compute for after each step, in seconds.
DEVICE_SECONDS = 1.0


def write_talks(folder: Path, count: int, side: int) -> Path:
    """Conversations of log-normal length (median 25 words, sigma 1), half of them with a picture."""
    draw, pixels = random.Random(0), np.random.default_rng(0)
    words = [
        "the",
        "red",
        "square",
        "stands",
        "left",
        "of",
        "a",
        "small",
        "green",
        "circle",
        "and",
        "above",
        "two",
        "blue",
        "triangles",
    ]
    lines = []
    for number in range(count):
        answer = " ".join(draw.choices(words, k=min(150, max(1, round(draw.lognormvariate(3.2, 1.0))))))
        row = {
            "messages": [
                {"role": "user", "content": "What is there?"},
                {"role": "assistant", "content": answer},
            ]
        }
        if number % 2:
            size = (draw.randint(side // 4, side), draw.randint(side // 4, side))
            coarse = pixels.integers(0, 255, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize(size).save(folder / f"{number}.jpg", quality=90)
            row["messages"][0]["content"] = "<image>What is there?"
            row["images"] = [f"{number}.jpg"]
        lines.append(json.dumps(row))
    path = folder / "talks.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def grouping(backbone: Backbone, config: DataConfig, steps: int) -> Table:
    """Padding and speed for each window."""
    stage = ReinforcementStage(backbone)
    stage.set_train_mode()
    encoder = encoder_for(backbone.processor, config)
    table = Table("steps a window", "padding", "tokens/s", "against none", "reading s", "model s", box=None)
    none = 0.0
    for window in WINDOWS:
        stream = training_stream(config.model_copy(update={"group_by_length": window}), encoder, seed=0)
        reading = computing = 0.0
        tokens = places = 0
        for _ in range(steps):
            started = time.process_time()
            batches = stream.next_step(BATCH, ACCUMULATION)
            reading += time.process_time() - started
            started = time.process_time()
            for batch in batches:
                stage(batch).loss.backward()
                backbone.model.zero_grad(set_to_none=True)
            computing += time.process_time() - started
            tokens += sum(batch.num_input_tokens for batch in batches)
            places += sum(batch.inputs["input_ids"].numel() for batch in batches)
        speed = tokens / (reading + computing)
        none = none or speed
        table.add_row(
            str(window) if window else "none",
            f"{1 - tokens / places:.1%}",
            f"{speed:,.0f}",
            f"{speed / none:.2f}x",
            f"{reading:.1f}",
            f"{computing:.1f}",
        )
    return table


def workers(backbone: Backbone, sources: dict[str, DataConfig], rounds: int) -> Table:
    """Records a second alone, and seconds that a step waits beside a device."""
    table = Table(
        "records", "workers", "records/s alone", "against 0", "wait a step beside a device, s", box=None
    )
    for name, config in sources.items():
        encoder = encoder_for(backbone.processor, config)
        with ExitStack() as stack:
            streams = {
                count: stack.enter_context(
                    training_stream(config.model_copy(update={"workers": count}), encoder, seed=0)
                )
                for count in WORKERS
            }
            for stream in streams.values():
                stream.next_step(BATCH)  # starts the workers
            alone = {count: [] for count in WORKERS}
            beside = {count: [] for count in WORKERS}
            for _ in range(rounds):
                for count, stream in streams.items():
                    stream.next_step(BATCH)  # what was read ahead meanwhile
                    taken = [seconds(lambda stream=stream: stream.next_step(BATCH)) for _ in range(3)]
                    alone[count].append(BATCH * len(taken) / sum(taken))
            for _ in range(rounds):
                for count, stream in streams.items():
                    time.sleep(DEVICE_SECONDS)
                    beside[count].append(seconds(lambda stream=stream: stream.next_step(BATCH)))
        for count in WORKERS:
            speed = statistics.median(alone[count])
            table.add_row(
                name,
                str(count),
                f"{speed:,.1f}",
                f"{speed / statistics.median(alone[0]):.2f}x",
                f"{statistics.median(beside[count]):.3f}",
            )
    return table


def neighbours(configs: dict[str, DataConfig], backbone: Backbone, rounds: int) -> Table:
    """How a loop of small tensor operations fares beside a thread, or a process, that encodes records."""
    table = Table("records", "beside", "operations", "records/s", box=None)
    context = multiprocessing.get_context("forkserver")
    for name, config in configs.items():
        encoder = encoder_for(backbone.processor, config)
        reader = Reader([open_sources(config, 0)[0][0]], encoder.encode, no_length)
        found: dict[str, list[tuple[float, float]]] = {"nothing": [], "a thread": [], "a process": []}
        others = {}
        for beside, start in (("a thread", threading.Thread), ("a process", context.Process)):
            made, going = context.Value("q", 0), context.Event()
            start(target=encode, args=(reader, made, going), daemon=True).start()
            going.set()
            while made.value < 2:
                time.sleep(0.05)
            going.clear()
            others[beside] = made, going
        for _ in range(rounds):
            found["nothing"].append((operations(), 0.0))
            for beside, (made, going) in others.items():
                going.set()
                before, taken = made.value, operations()
                found[beside].append((taken, (made.value - before) / taken))
                going.clear()
                time.sleep(0.3)  # the record in hand
        base = statistics.median(taken for taken, _ in found["nothing"])
        for beside, values in found.items():
            taken = statistics.median(taken for taken, _ in values) / base
            speed = statistics.median(speed for _, speed in values)
            table.add_row(name, beside, f"{taken:.2f}x", f"{speed:,.1f}" if speed else "")
    return table


def encode(reader: Reader[object], made: Synchronized[int], going: Event) -> None:
    """Encode records and count them, while it is wanted."""
    torch.set_num_threads(1)
    while True:
        going.wait()
        reader.read(Draw(0, made.value % 64, 0))
        made.value += 1


def no_length(record: Record) -> int:
    """Not asked for here."""
    raise NotImplementedError


def operations() -> float:
    """Seconds that a loop of small tensor operations takes, as a model's kernels are launched."""
    square = torch.randn(64, 64)
    started = time.perf_counter()
    for _ in range(30_000):
        square = torch.tanh(square @ square * 0.01)
    return time.perf_counter() - started


def seconds(work: Callable[[], list[Batch]]) -> float:
    """How long something takes by the clock."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def data(*sources: dict[str, object], **settings: object) -> DataConfig:
    """A data configuration."""
    return DataConfig.model_validate({"sources": sources, **settings})


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=16, help="optimizer steps for each window")
    parser.add_argument("--rounds", type=int, default=5, help="rounds for each number of workers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config: DistillConfig = loading.resolve("demo", ["device=cpu"], {}).config
    backbone = models.load_model(config.student, config, torch.float32, torch.device("cpu"), trained=True)
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        talks = write_talks(Path(folder), options.steps * BATCH * ACCUMULATION, side=64)
        source = {"kind": "messages", "path": talks}
        console.print(grouping(backbone, data(source, max_length=1024), options.steps))
    with tempfile.TemporaryDirectory() as folder:
        photos = write_talks(Path(folder), 64, side=1600)
        source = {"kind": "messages", "path": photos}
        # The demo's patches are small: this many pixels make the tensors of a photograph in a real model.
        budget = config.model_copy(update={"data": data(source, max_length=8192, max_pixels=400_000)})
        large = models.load_model(config.student, budget, torch.float32, torch.device("cpu"), trained=False)
        sources = {"photographs": budget.data, "puzzles": data({"kind": "patterns"})}
        console.print(f"\n{os.cpu_count()} processors")
        console.print(workers(large, sources, options.rounds))
        console.print()
        console.print(neighbours(sources, large, options.rounds))


if __name__ == "__main__":
    main()
