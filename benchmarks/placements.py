"""The largest large model that fits on a GPU with each placement, and what `vlsi plan` had said.

    python benchmarks/placements.py                                     # 2B from a 72B that is cut to what fits
    python benchmarks/placements.py --device cpu --tiny --memory 2      # does everything run? (nothing fails to fit)

For each placement of the large model the plan's own arithmetic gives the most layers whose interaction step fits into
the device's memory. That many, and then a tenth more, are distilled from by `vlsi distill` itself: hollow checkpoints
(hollow.py), LoRA, gradient checkpointing, two steps. A row shows the planned and the measured peak; the plan is right
if the first run ends and is near what was planned, and careful if the second ends too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import hollow, shapes
from benchmarks.meters import device_name
from benchmarks.plan import typical
from vlsi_cli.config import loading, planning
from vlsi_cli.config.stage_plans import Records
from vlsi_cli.engine import gauges

RESULTS = Path(__file__).parent / "results"
PLACEMENTS = {
    "device": [],
    "8bit": ["teacher.quantization=8bit"],
    "4bit": ["teacher.quantization=4bit"],
    "cpu": ["teacher.placement=cpu"],
    "disk": ["teacher.placement=disk"],
}


@dataclass
class Bench:
    """A place for checkpoints, and what every run of it shares."""

    folder: Path
    small: str
    large: str
    device: str
    length: int

    def sets(self, layers: int, placement: str) -> list[str]:
        """Settings of a run, for `--set`."""
        on_cpu = torch.device(self.device).type == "cpu"
        stride = shapes.shape_of(self.word(layers)).stride
        return [
            f"student.id={self.folder / self.small}",
            f"teacher.id={self.model(layers)}",
            f"teacher.verbalizers={self.verbalizers(layers)}",
            f"teacher.targets={{start: 2, stride: {stride}}}",
            f"student.targets={{start: 2, stride: {shapes.SHAPES[self.small].stride}}}",
            "data.sources=[{kind: patterns, turns: 8}]",
            f"data.max_length={self.length}",
            "verbalization.steps=1",
            "verbalization.batch_size=2",
            "interaction.steps=2",
            "interaction.batch_size=2",
            "interaction.gradient_accumulation=1",
            "interaction.train=lora",
            "interaction.gradient_checkpointing=true",
            "reinforcement=null",
            "evaluation.data=null",
            f"device={self.device}",
            f"precision={'fp32' if on_cpu else 'bf16'}",
            *PLACEMENTS[placement],
        ]

    def word(self, layers: int) -> str:
        """The large shape, cut."""
        return f"{self.large}:{layers}"

    def model(self, layers: int) -> Path:
        """The folder of the large model of so many layers."""
        return self.folder / f"{self.large}-{layers}"

    def verbalizers(self, layers: int) -> Path:
        """The folder of its verbalizers."""
        return self.folder / f"words-{layers}"

    def describe(self, layers: int) -> None:
        """A large model without weights, once."""
        path = self.model(layers)
        if not path.exists():
            hollow.write_model(path, self.word(layers), image_tokens=self.length // 2)

    def planned(self, layers: int, placement: str, records: Records) -> tuple[int, int]:
        """Bytes of the interaction step on the device, and of layers in host memory, by the plan."""
        self.describe(layers)
        made = planning.plan(loading.resolve("demo", self.sets(layers, placement), {}), records)
        stage = next(each for each in made.stages if each.stage == "interaction")
        assert stage.memory is not None
        return stage.memory.total, made.host_memory

    def most_layers(self, placement: str, memory: int, records: Records) -> int:
        """Layers of the largest model that the plan lets through, found by halving."""
        fits = len(shapes.shape_of(self.small).targets) + 2  # a target layer for each of the small one's
        above = shapes.SHAPES[self.large].layers + 1
        host = gauges.host_memory() or 0

        def fit(layers: int) -> bool:
            device_bytes, host_bytes = self.planned(layers, placement, records)
            return device_bytes <= memory and host_bytes <= 0.8 * host  # beside what the run itself takes

        if not fit(fits):
            return 0
        while above - fits > 1:
            middle = (fits + above) // 2
            fits, above = (middle, above) if fit(middle) else (fits, middle)
        return fits

    def run(self, layers: int, placement: str, limit: float) -> dict[str, Any]:
        """`vlsi distill` from so many layers: how it ended, and its peak."""
        word, model, words = self.word(layers), self.model(layers), self.verbalizers(layers)
        if not words.exists():
            hollow.write_weights(model, word)
            hollow.write_verbalizers(words, model, word)
        with tempfile.TemporaryDirectory(dir=self.folder) as output:
            command = [sys.executable, "-m", "vlsi_cli", "distill", "--recipe", "demo", "-o", f"{output}/run"]
            command += [word for each in self.sets(layers, placement) for word in ("--set", each)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
            except subprocess.TimeoutExpired:
                return {"ended": "out of time", "peak": None}
            log = Path(output) / "run" / "metrics.jsonl"
            lines = log.read_text("utf-8").splitlines() if log.is_file() else []
            steps = [json.loads(line) for line in lines]
            peaks = [step["peak_memory_bytes"] for step in steps if step["stage"] == "interaction"]
            said = next((line for line in done.stderr.splitlines() if line.startswith("error:")), "?")
            return {"ended": "done" if done.returncode == 0 else said, "peak": max(peaks, default=None)}


def measure(
    bench: Bench, memory: int, placements: list[str], limit: int, budget: float
) -> Iterator[dict[str, Any]]:
    """Two rows a placement: the most layers that the plan lets through, and a tenth more."""
    deadline = time.monotonic() + budget
    hollow.write_model(bench.folder / bench.small, bench.small, image_tokens=bench.length // 2)
    hollow.write_weights(bench.folder / bench.small, bench.small)
    all_layers = shapes.SHAPES[bench.large].layers
    bench.describe(all_layers)
    records = typical(loading.resolve("demo", bench.sets(all_layers, "device"), {}))
    for placement in placements:
        fits = bench.most_layers(placement, memory, records)
        # Beyond what fits into host memory the system would end the run, and say nothing of the device.
        more = fits if placement == "cpu" else min(fits + max(1, fits // 10), all_layers)
        for layers in sorted({fits, more} - {0}):
            planned, _ = bench.planned(layers, placement, records)
            row = {"placement": placement, "layers": layers, "planned": planned}
            left = deadline - time.monotonic()
            if left < 10:
                row |= {"ended": "not begun: the budget is spent", "peak": None}
            else:
                row |= bench.run(layers, placement, min(limit, left))
            yield row


def table(found: dict[str, Any]) -> str:
    """The rows as text."""
    lines = [
        f"{'large model':12s} {'layers':>6s} {'planned GiB':>11s} {'peak GiB':>9s} {'planned/peak':>12s}  ended"
    ]
    for row in found["rows"]:
        peak, planned = row["peak"], row["planned"]
        measured = (f"{peak / 2**30:9.2f}", f"{planned / peak:12.2f}") if peak else (" " * 9, " " * 12)
        lines.append(
            f"{row['placement']:12s} {row['layers']:6d} {planned / 2**30:11.2f} {' '.join(measured)}  {row['ended']}"
        )
    return "\n".join(lines)


def main() -> None:
    """Plan, run, store, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes")
    parser.add_argument("--shapes", help=f"small and large of {', '.join(shapes.SHAPES)}; default 2b,72b")
    parser.add_argument("--memory", type=float, help="GiB of the device (default: 97 %% of what it has)")
    parser.add_argument("--length", type=int, help="most tokens of a record (default 1024; 256 when tiny)")
    parser.add_argument("--only", help=f"of {', '.join(PLACEMENTS)}; default: device,8bit,4bit,cpu")
    parser.add_argument("--limit", type=int, default=240, help="seconds of a run")
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything (default 540)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    on_cpu = torch.device(chosen.device).type == "cpu"
    if chosen.memory is None and on_cpu:
        parser.error("on a CPU say --memory")
    whole = 0.97 * torch.cuda.get_device_properties(chosen.device).total_memory if not on_cpu else 0
    memory = int(chosen.memory * 2**30 if chosen.memory else whole)
    small, large = (chosen.shapes or ("small,large" if chosen.tiny else "2b,72b")).split(",")
    placements = (chosen.only or ("device" if on_cpu else "device,8bit,4bit,cpu")).split(",")
    with tempfile.TemporaryDirectory(prefix="placements-") as folder:
        bench = Bench(
            Path(folder), small, large, chosen.device, chosen.length or (256 if chosen.tiny else 1024)
        )
        found: dict[str, Any] = {
            "device": device_name(chosen.device),
            "small": small,
            "large": large,
            "memory": memory,
            "versions": {"torch": torch.__version__.split("+")[0]},
            "rows": [],
        }
        chosen.output.mkdir(parents=True, exist_ok=True)
        path = chosen.output / f"placements-{chosen.device.split(':')[0]}.json"
        for row in measure(bench, memory, placements, chosen.limit, chosen.budget):
            found["rows"].append(row)
            path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            print(json.dumps(row), file=sys.stderr, flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
