"""Divergences through language heads: time in multiples of the bare products, peak memory, error against fp64.

    python benchmarks/losses.py pair      one pair of layers: this package, Liger, TRL, torch.compile, eager, top-k
    python benchmarks/losses.py matrix    all pairs of 7 small and 20 large layers, against their 27 projections
    python benchmarks/losses.py scaling   cost against target layers, candidates and tokens
    python benchmarks/losses.py blocks    peak memory against tokens

Each measurement is a process of its own: inputs are made, memory is looked at, the technique runs between two runs of
the bare products (or of the projections), and its CPU seconds are divided by theirs. Repetitions take turns, and the
median ratio is kept: processor seconds of one thread, so that a busy machine changes little. A technique that cannot
run here gets a row that says why. Peers are in benchmarks/requirements.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAIR = {"tokens": 128, "hidden": [1536, 3584], "rows": [151_936, 152_064], "vocabulary": 151_936}
#: An eighth of the vocabulary: 27 layers of the whole one take minutes, and the ratio does not know the width.
MATRIX = {**PAIR, "rows": [18_992, 18_992], "vocabulary": 18_992, "layers": [7, 20]}
SMALLER = {"hidden": [384, 896], "rows": [18_992, 18_992], "vocabulary": 18_992}
SCALING = [
    {**SMALLER, "tokens": tokens, "layers": layers}
    for tokens, layers in [
        (128, [1, 1]),
        (128, [3, 4]),
        (128, [7, 7]),
        (128, [7, 20]),
        (128, [7, 28]),
        (64, [7, 20]),
        (256, [7, 20]),
    ]
]
BLOCKS = [
    {"tokens": tokens, "hidden": [64, 96], "rows": [151_936, 152_064], "vocabulary": 151_936}
    for tokens in (512, 2048, 8192)
]
#: For a quick look whether everything runs.
TINY = {"tokens": 16, "hidden": [8, 12], "rows": [600, 640], "vocabulary": 590}
NAMES = {
    "pair": [
        "ours",
        "ours-kept",
        "ours-recomputed",
        "trl",
        "liger",
        "compile",
        "eager",
        "top-64",
        "liger-triton",
    ],
    "matrix": ["matrix", "matrix+sums", "matrix+recompute"],
    "scaling": ["matrix+drawn"],
    "blocks": ["ours"],
}


# ---------------------------------------------------------------- one process


def measure(name: str, shape: dict[str, Any], check: bool) -> dict[str, Any]:
    """Run one technique once between two runs of the bare products; called in a process of its own."""
    import torch

    from benchmarks import techniques

    torch.set_num_threads(1)
    torch.manual_seed(0)
    problem = techniques.Problem.draw(**shape)
    try:
        run = techniques.make(name, problem)
    except techniques.CannotRun as error:
        return {"name": name, "why_not": str(error)}
    bare = problem.bare_layers if "layers" in shape else problem.bare_pair
    run(warm=True)
    bare(16)
    first = seconds(lambda: bare(None))
    before = reset_peak()
    grads: list[torch.Tensor] = []
    took = seconds(lambda: grads.append(run(warm=False)))
    peak = peak_bytes() - before
    second = seconds(lambda: bare(None))
    found = {"name": name, "ratio": 2 * took / (first + second), "peak": peak}
    if check and "layers" not in shape:
        found["error"] = problem.gradient_error(grads[0], same_loss=name != "top-64")
    return found


def seconds(function: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def reset_peak() -> int:
    """Forget the peak so far; resident bytes now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    """Most resident bytes since :func:`reset_peak`."""
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: this measurement needs Linux")


# ---------------------------------------------------------------- all of them


def run_child(name: str, shape: dict[str, Any], check: bool) -> dict[str, Any]:
    """One measurement in a fresh process."""
    command = [sys.executable, __file__, "--child", json.dumps([name, shape, check])]
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path.strip(os.pathsep)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "Error" in line]
        return {"name": name, "why_not": errors[-1].strip() if errors else "its process was killed"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def collect(what: str, names: list[str], repeats: int, *, tiny: bool = False) -> dict[str, Any]:
    """Every row of one table."""
    shapes = {"pair": [PAIR], "matrix": [MATRIX], "scaling": SCALING, "blocks": BLOCKS}[what]
    shapes = [{**shape, **TINY} for shape in shapes] if tiny else shapes
    runs: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for repeat in range(repeats):
        for place, shape in enumerate(shapes):
            for name in names:
                known = runs.setdefault((place, name), [])
                if known and "why_not" in known[0]:
                    continue
                found = run_child(name, shape, check=what == "pair" and repeat == 0)
                known.append(found)
                print(f"{what} {repeat + 1}/{repeats}: {found}", file=sys.stderr, flush=True)
    rows = []
    for (place, name), found_all in runs.items():
        row: dict[str, Any] = {"name": name, "shape": shapes[place]}
        if "why_not" in found_all[0]:
            row["why_not"] = found_all[0]["why_not"]
        else:
            row["ratio"] = round(statistics.median(found["ratio"] for found in found_all), 3)
            row["ratios"] = [round(found["ratio"], 3) for found in found_all]
            row["peak"] = max(found["peak"] for found in found_all)
            if "error" in found_all[0]:
                row["error"] = found_all[0]["error"]
        rows.append(row)
    return {"what": what, "versions": versions(), "device": "cpu", "threads": 1, "rows": rows}


def versions() -> dict[str, str]:
    """Versions of what was compared."""
    from importlib import metadata

    found = {}
    for name in ("torch", "liger-kernel", "trl"):
        try:
            found[name] = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def table(results: dict[str, Any]) -> str:
    """The rows as text."""
    lines = [f"{'technique':20s} {'x bare':>8s} {'peak MiB':>9s} {'gradient error':>15s}"]
    for row in results["rows"]:
        shape = row["shape"]
        name = row["name"] + (f" {'x'.join(map(str, shape['layers']))}" if "layers" in shape else "")
        if "why_not" in row:
            lines.append(f"{name:20s} not run: {row['why_not']}")
            continue
        error = f"{row['error']:.1e}" if row.get("error") is not None else ""
        lines.append(
            f"{name:20s} {row['ratio']:8.2f} {row['peak'] / 2**20:9.0f} {error:>15s}  {shape['tokens']} tokens"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the command line; measure; write the results and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=list(NAMES), default="pair")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each technique (default 3)")
    parser.add_argument("--only", help="techniques, with commas between them")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: does everything run?")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(measure(*json.loads(chosen.child))))
        return
    names = chosen.only.split(",") if chosen.only else NAMES[chosen.what]
    results = collect(chosen.what, names, chosen.repeats, tiny=chosen.tiny)
    chosen.output.mkdir(parents=True, exist_ok=True)
    path = chosen.output / f"losses-{chosen.what}-cpu.json"
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
