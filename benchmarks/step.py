"""A training step of the small model with random weights: seconds, memory, and what of it is the large model's.

    python benchmarks/step.py                                    # small shapes on a CPU, in minutes
    python benchmarks/step.py --device cuda --shapes 2b,7b       # Qwen2-VL's own shapes on a GPU
    python benchmarks/step.py --device cuda --shapes 2b,72b:24   # a 72B-shaped large model cut to 24 layers

Each row is one way of training the same small model on the same batch: forward, backward, clipping and AdamW; the
median of some steps after two that are not counted. Shares are of the step's time: the large model's forward pass with
its verbalizers (or the reading of its states), the verbalizers of both sides going forward, and the small model's
vision tower. On a CPU time is processor seconds of one thread and memory resident bytes beyond those of a process that
has done it all with tiny models; on a GPU both are the device's. "Planned" is what `vlsi plan` counts over what was
measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks import shapes, ways
from benchmarks.meters import Meter, device_name, meter_for
from vlsi_cli.errors import VlsiError

RESULTS = Path(__file__).parent / "results"


class Stopwatch:
    """Time between marks, on the device or on the processor, summed up by name."""

    def __init__(self, device: str) -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._spans: dict[str, list[tuple[Any, Any]]] = {}

    def _now(self) -> Any:
        if not self._cuda:
            import time

            return time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Count what runs inside under a name."""
        start = self._now()
        yield
        self._spans.setdefault(name, []).append((start, self._now()))

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.span(name):
                return function(*args, **kwargs)

        return timed

    def totals(self) -> dict[str, float]:
        """Seconds by name so far; the device's work is done."""
        if self._cuda:
            torch.cuda.synchronize()
            spans = self._spans.items()
            return {k: sum(a.elapsed_time(b) for a, b in each) / 1000 for k, each in spans}
        return {k: sum(b - a for a, b in each) for k, each in self._spans.items()}

    def clear(self) -> None:
        """Forget everything."""
        self._spans.clear()


def measure(setting: ways.Setting, names: list[str], steps: int) -> list[dict[str, Any]]:
    """A row a way of training."""
    meter = meter_for(setting.device)
    rehearse(setting.device, names)
    empty = meter.reset_peak()
    rows = []
    room = ways.Room(setting)
    for name in names:
        torch.manual_seed(0)
        row: dict[str, Any] = {"name": name}
        try:
            row |= _measure(room, name, steps, meter, empty)
        except (ways.CannotRun, ImportError, torch.OutOfMemoryError, VlsiError) as error:
            row["why_not"] = str(error).strip().splitlines()[0]
        print(json.dumps(row), file=sys.stderr, flush=True)
        rows.append(row)
        gc.collect()
    room.close()
    return rows


def rehearse(device: str, names: list[str]) -> None:
    """One tiny step of each way, so that libraries and kernels are loaded before memory is counted."""
    room = ways.Room(ways.Setting("tiny", "tiny", device, 1, 64))
    for name in names:
        with suppress(ways.CannotRun, ImportError):
            room.way(name, Stopwatch(device)).step()
    room.close()
    gc.collect()


def _measure(room: ways.Room, name: str, steps: int, meter: Meter, empty: int) -> dict[str, Any]:
    watch = Stopwatch(room.setting.device)
    way = room.way(name, watch)
    for _ in range(2):
        way.step()
    watch.clear()
    meter.reset_peak()
    seconds = [meter.seconds(way.step) for _ in range(steps)]
    peak = meter.peak_bytes() - empty
    typical = statistics.median(seconds)
    tokens = room.setting.records * room.setting.length
    shares = {part: round(spent / sum(seconds), 4) for part, spent in watch.totals().items()}
    planned = room.planned(name)
    return {
        "seconds": round(typical, 5),
        "all_seconds": [round(each, 5) for each in seconds],
        "tokens_per_second": round(tokens / typical, 1),
        "peak": peak,
        "planned": planned,
        "shares": shares,
    }


def table(found: dict[str, Any]) -> str:
    """The rows as text."""
    base = next((row["seconds"] for row in found["rows"] if row["name"] == "last" and "seconds" in row), None)
    lines = [
        f"{'way':10s} {'s/step':>9s} {'x last':>7s} {'tokens/s':>9s} {'peak GiB':>9s} {'planned':>8s}  shares"
    ]
    for row in found["rows"]:
        if "why_not" in row:
            lines.append(f"{row['name']:10s} not run: {row['why_not']}")
            continue
        ratio = f"{row['seconds'] / base:.2f}" if base else ""
        planned = f"{row['planned'] / row['peak']:.2f}" if row["planned"] else ""
        shares = ", ".join(f"{part} {share:.1%}" for part, share in row["shares"].items())
        lines.append(
            f"{row['name']:10s} {row['seconds']:9.4f} {ratio:>7s} {row['tokens_per_second']:9.0f} "
            f"{row['peak'] / 2**30:9.2f} {planned:>8s}  {shares}"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the command line; measure; write the results and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--shapes", default="small,large", help=f"small and large: {', '.join(shapes.SHAPES)}"
    )
    parser.add_argument("--records", type=int, default=4, help="of a batch")
    parser.add_argument("--length", type=int, help="tokens a record (default 256 on a CPU, 1024 on a GPU)")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each way")
    parser.add_argument("--only", help=f"of {', '.join(ways.NAMES)}")
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    on_cpu = torch.device(chosen.device).type == "cpu"
    small, large = chosen.shapes.split(",")
    length = chosen.length or (256 if on_cpu else 1024)
    setting = ways.Setting(small, large, chosen.device, chosen.records, length)
    names = chosen.only.split(",") if chosen.only else list(ways.NAMES)
    found = {
        "device": device_name(chosen.device),
        "small": small,
        "large": large,
        "records": chosen.records,
        "length": length,
        "precision": "fp32" if on_cpu else "bf16",
        "versions": {"torch": torch.__version__.split("+")[0]},
        "rows": measure(setting, names, chosen.steps),
    }
    chosen.output.mkdir(parents=True, exist_ok=True)
    word = f"{small}-{large}".replace(":", "x")
    path = chosen.output / f"step-{word}-{chosen.device.split(':')[0]}.json"
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
