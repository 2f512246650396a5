"""What half precision does to a run: the demo in fp32, bf16 and fp16, step by step beside each other.

    python benchmarks/precision.py                                    # fp32 and bf16 on a CPU, in minutes
    python benchmarks/precision.py --device cuda                      # fp16 with its loss scaling as well
    python benchmarks/precision.py --set teacher.id=... --set ...     # another pair or recipe setting

Each precision runs the same steps from the same seed on the same records, the whole program as `vlsi distill` runs it.
A stage's row compares its losses with those of fp32: mean and largest of |loss - loss_fp32| / loss_fp32 over all steps,
the same over the mean loss of the last tenth of them, and the share of draws that took the same large layer. Where one
draw differs, the models part ways, so the last column says how much of a difference is the draws' and not the
arithmetic's. Left-out steps are those that fp16's loss scaling found too large.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.meters import device_name
from vlsi_cli.config import loading
from vlsi_cli.engine.runs import distill
from vlsi_cli.events import StageStarted, StepDone

RESULTS = Path(__file__).parent / "results"
STEPS = {"verbalization": 100, "interaction": 200, "reinforcement": 100}


class Listener:
    """Keeps the loss, the matches and the left-out steps of a run."""

    def __init__(self) -> None:
        self.steps: dict[str, list[StepDone]] = {}

    def __call__(self, event: Any) -> None:
        """Take what a step did."""
        if isinstance(event, StageStarted):
            self._now = self.steps.setdefault(f"{event.stage}, {event.side}", [])
        elif isinstance(event, StepDone):
            self._now.append(event)


def run(precision: str, device: str, sets: list[str]) -> tuple[dict[str, list[StepDone]], dict[str, float]]:
    """Steps by stage, and the small model's held-out loss and accuracy at the end."""
    resolved = loading.resolve("demo", [*sets, f"precision={precision}", f"device={device}"], {})
    heard = Listener()
    with tempfile.TemporaryDirectory() as folder:
        report = distill.run(resolved, output=Path(folder) / "run", events=heard)
    after = [score for score in report.scores if score.who == "small after"]
    ends = {"loss": after[0].loss, "accuracy": after[0].accuracy} if after else {}
    return heard.steps, {name: value for name, value in ends.items() if value is not None}


def compare(exact: list[StepDone], half: list[StepDone]) -> dict[str, Any]:
    """How far the losses of a stage are from those in fp32.

    Returns:
        ``mean`` and ``largest`` relative difference of a step's loss; ``end``, that of the mean over the last tenth;
        ``same`` the share of equal draws, None where nothing is drawn; ``left_out`` steps without a gradient.
    """
    apart = [abs(h.loss - e.loss) / e.loss for e, h in zip(exact, half, strict=True)]
    tenth = max(1, len(exact) // 10)
    ends = [statistics.fmean(step.loss for step in steps[-tenth:]) for steps in (exact, half)]
    draws = [
        taken == theirs[small]
        for e, h in zip(exact, half, strict=True)
        for ours, theirs in zip(e.draws, h.draws, strict=True)
        for small, taken in ours.items()
    ]
    return {
        "steps": len(half),
        "mean": statistics.fmean(apart),
        "largest": max(apart),
        "end": (ends[1] - ends[0]) / ends[0],
        "same": statistics.fmean(draws) if draws else None,
        "left_out": sum(not math.isfinite(step.grad_norm) for step in half),
    }


def table(found: dict[str, Any]) -> str:
    """The rows as text."""
    lines = [
        f"{'precision':9s} {'stage':22s} {'steps':>5s} {'mean':>9s} {'largest':>9s} {'end':>9s} {'same draws':>10s}"
    ]
    lines[0] += f" {'left out':>8s}"
    for row in found["rows"]:
        same = "" if row["same"] is None else f"{row['same']:.1%}"
        lines.append(
            f"{row['precision']:9s} {row['stage']:22s} {row['steps']:5d} {row['mean']:9.2e} {row['largest']:9.2e} "
            f"{row['end']:+9.2e} {same:>10s} {row['left_out']:8d}"
        )
    for precision, end in found["ends"].items():
        if end:
            lines.append(
                f"{precision:9s} held out: loss {end['loss']:.4f}, {end.get('accuracy', 0):.1%} right"
            )
    return "\n".join(lines)


def main() -> None:
    """Run every precision, compare, store, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precisions", help="default: fp32,bf16 on a CPU, fp32,bf16,fp16 on a GPU")
    parser.add_argument("--tiny", action="store_true", help="a few steps: does everything run?")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    kind = torch.device(chosen.device).type
    precisions = (chosen.precisions or ("fp32,bf16" if kind == "cpu" else "fp32,bf16,fp16")).split(",")
    if precisions[0] != "fp32":
        parser.error("the first precision is fp32, which the others are compared with")
    steps = dict.fromkeys(STEPS, 3) if chosen.tiny else STEPS
    sets = [f"{stage}.steps={count}" for stage, count in steps.items()]
    sets += [f"evaluation.samples={8 if chosen.tiny else 330}", *chosen.sets]
    exact: dict[str, list[StepDone]] = {}
    rows, ends = [], {}
    for precision in precisions:
        found, ends[precision] = run(precision, chosen.device, sets)
        print(f"{precision}: done", file=sys.stderr, flush=True)
        exact = exact or found
        if found is not exact:
            rows += [
                {"precision": precision, "stage": stage, **compare(exact[stage], half)}
                for stage, half in found.items()
            ]
    result = {
        "device": device_name(chosen.device),
        "settings": chosen.sets,
        "versions": {"torch": torch.__version__.split("+")[0]},
        "rows": rows,
        "ends": ends,
    }
    chosen.output.mkdir(parents=True, exist_ok=True)
    path = chosen.output / f"precision-{kind}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
