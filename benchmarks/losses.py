"""Divergences through language heads: time in multiples of the bare products, peak memory, error against fp64.

    python benchmarks/losses.py pair      one pair of layers: this package, Liger, TRL, torch.compile, eager, top-k
    python benchmarks/losses.py matrix    all pairs of 7 small and 20 large layers, against their 27 projections
    python benchmarks/losses.py scaling   cost against target layers, candidates and tokens
    python benchmarks/losses.py blocks    peak memory against tokens

All of one table runs in one process: techniques take turns, each between two runs of the bare products (or of the
projections), and its seconds are divided by theirs; the median ratio is kept, so that a busy machine changes little.
Seconds are the processor's on a CPU and the device's on a GPU (`--device cuda`). Memory is the peak of resident (on a
GPU: allocated) bytes during a run over those before it. A technique that cannot run here gets a row that says why.
Peers are in benchmarks/requirements.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAIR = {"tokens": 64, "hidden": [1536, 3584], "rows": [151_936, 152_064], "vocabulary": 151_936}
#: An eighth of the vocabulary: 27 layers of the whole one take minutes, and the ratio does not know the width.
MATRIX = {**PAIR, "rows": [18_992, 18_992], "vocabulary": 18_992, "layers": [7, 20]}
SMALLER = {"hidden": [384, 896], "rows": [18_992, 18_992], "vocabulary": 18_992}
SCALING = [
    {**SMALLER, "tokens": tokens, "layers": layers}
    for tokens, layers in [
        (64, [1, 1]),
        (64, [3, 4]),
        (64, [7, 7]),
        (64, [7, 20]),
        (64, [7, 40]),
        (16, [7, 20]),
        (256, [7, 20]),
    ]
]
#: Narrow states, as memory is asked for and not time: rectangles and kept rows do not know the width.
BLOCKS = [{**PAIR, "tokens": tokens, "hidden": [64, 96]} for tokens in (512, 2048, 8192)]
#: For a quick look whether everything runs.
TINY = {"tokens": 16, "hidden": [8, 12], "rows": [600, 640], "vocabulary": 590}
NAMES = {
    "pair": [
        "ours",
        "ours-kept",
        "ours-recomputed",
        "ours-fused",
        "trl",
        "liger",
        "compile",
        "eager",
        "top-64",
        "liger-triton",
    ],
    "matrix": ["matrix", "matrix+sums", "matrix+recompute", "matrix+drawn", "matrix+fused"],
    "scaling": ["matrix+drawn"],
    "blocks": ["ours"],
}


# ---------------------------------------------------------------- in a process of its own


def measure(
    what: str, names: list[str], repeats: int, tiny: bool, tokens: list[int], device: str, dtype: str
) -> dict[str, Any]:
    """Every row of one table; called in a process of its own, whose allocator gives large blocks back at once."""
    import torch

    from benchmarks.meters import device_name

    torch.set_num_threads(1)
    rows = []
    for shape in shapes_of(what, tokens, tiny, device):
        torch.manual_seed(0)
        rows += measure_shape(shape, names, repeats, device, dtype)
    about = {"device": device_name(device), "threads": 1, "dtype": dtype}
    return {"what": what, "versions": versions(), **about, "rows": rows}


def shapes_of(what: str, tokens: list[int], tiny: bool, device: str) -> list[dict[str, Any]]:
    """The shapes of a table; a GPU takes the matrix at its whole vocabulary."""
    whole = {**PAIR, "layers": MATRIX["layers"]}
    matrix = MATRIX if device == "cpu" else whole
    shapes = {"pair": [PAIR], "matrix": [matrix], "scaling": SCALING, "blocks": BLOCKS}[what]
    if tokens:
        shapes = [{**shape, "tokens": count} for shape in shapes[:1] for count in tokens]
    if not tiny:
        return list(shapes)
    return [
        {**shape, **TINY, "tokens": tokens[place] if tokens else TINY["tokens"]}
        for place, shape in enumerate(shapes)
    ]


def measure_shape(
    shape: dict[str, Any], names: list[str], repeats: int, device: str = "cpu", dtype: str = "float32"
) -> list[dict[str, Any]]:
    """The rows of one shape."""
    from benchmarks import techniques
    from benchmarks.meters import meter_for

    meter = meter_for(device)
    problem = techniques.Problem.draw(**shape, device=device, dtype=dtype)
    bare = problem.bare_layers if "layers" in shape else problem.bare_pair
    rows: dict[str, dict[str, Any]] = {name: {"name": name, "shape": shape} for name in names}
    runs = {}
    for name in names:
        try:
            runs[name] = techniques.make(name, problem)
            runs[name](warm=True)
        except Exception as error:  # noqa: BLE001 - a peer that fails is a row of the table
            runs.pop(name, None)
            rows[name]["why_not"] = str(error).strip().splitlines()[0]
    bare(8)
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats):
        first = meter.seconds(lambda: bare(None))
        for name, run in runs.items():
            grads: list[Any] = []
            before = meter.reset_peak()
            took = meter.seconds(lambda run=run, grads=grads: grads.append(run(warm=False)))
            rows[name]["peak"] = max(rows[name].get("peak", 0), meter.peak_bytes() - before)
            if repeat == 0 and "layers" not in shape and name in NAMES["pair"]:
                rows[name]["error"] = problem.gradient_error(grads[0], same_loss=name != "top-64")
            grads.clear()
            second = meter.seconds(lambda: bare(None))
            ratios[name].append(round(2 * took / (first + second), 3))
            rows[name].setdefault("seconds", []).append(round(took, 6))
            first = second
            print(f"{repeat + 1}/{repeats} {name}: {ratios[name][-1]}", file=sys.stderr, flush=True)
    for name, found in ratios.items():
        if not found:  # it failed in a measured run
            continue
        rows[name] |= {"ratio": round(statistics.median(found), 3), "ratios": found}
    return list(rows.values())


# ---------------------------------------------------------------- around it


def in_a_process(*arguments: object) -> dict[str, Any]:
    """:func:`measure` in a fresh process; what it says on the way goes to stderr."""
    command = [sys.executable, __file__, "--child", json.dumps(arguments)]
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**25)}
    env = {**os.environ, **settings, "PYTHONPATH": path.strip(os.pathsep)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


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
    parser.add_argument("--only", help="techniques, with commas; other rows stay")
    parser.add_argument(
        "--tokens", default="", help="of the first shape, several with commas (default: the table's own)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="of states and heads (default by device)"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: does everything run?")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(measure(*json.loads(chosen.child))))
        return
    names = chosen.only.split(",") if chosen.only else NAMES[chosen.what]
    tokens = [int(count) for count in chosen.tokens.split(",") if count]
    dtype = chosen.dtype or ("float32" if chosen.device == "cpu" else "bfloat16")
    results = in_a_process(chosen.what, names, chosen.repeats, chosen.tiny, tokens, chosen.device, dtype)
    chosen.output.mkdir(parents=True, exist_ok=True)
    path = chosen.output / f"losses-{chosen.what}-{chosen.device.split(':')[0]}.json"
    if (chosen.only or tokens) and path.is_file():
        now = {(row["name"], row["shape"]["tokens"]) for row in results["rows"]}
        others = json.loads(path.read_text(encoding="utf-8"))["rows"]
        results["rows"] = [r for r in others if (r["name"], r["shape"]["tokens"]) not in now] + results[
            "rows"
        ]
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
