"""Everything that a GPU has to say, in one command and under eight minutes.

    python benchmarks/gpu.py                        # on the machine's GPU
    python benchmarks/gpu.py --device cpu --tiny    # the same programme on tiny shapes: does everything run?

One after another, each in a process of its own:

    pair-*          the loss of one pair against eager torch, torch.compile, Liger, TRL and top-k (losses.py pair)
    step            a step at the shapes of Qwen2-VL-2B from 7B, with the peaks that `vlsi plan` counts (step.py)
    matrix          all pairs of 7 and 20 layers (losses.py matrix)
    cancellation    the gradient's error in bf16 as the models near each other (cancellation.py)
    step-72b        a step from a 72B that is cut to the layers that fit (step.py)
    scaling         cost against layers and tokens (losses.py scaling)
    blocks          memory against tokens (losses.py blocks)
    quantized       the demo's large model in 8 and 4 bits (quantized.py)
    precision       the demo in fp32, bf16 and fp16, step by step (precision.py)

Every program writes its results as ever (a rehearsal's are thrown away). A part that fails or runs out of time leaves
the others alone, and none is begun when the budget is spent; what happened is printed and written to gpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Part:
    """One program: its name here, its file with arguments, and the seconds that it may take."""

    name: str
    program: tuple[str, ...]
    limit: int


def parts(device: str, tiny: bool, memory: float) -> list[Part]:
    """The programme.

    Args:
        device: ``cuda``, ``cuda:1`` or ``cpu``.
        tiny: shapes that a CPU has done with at once.
        memory: GiB of the device; decides to how many layers the 72B is cut.
    """
    where = ("--device", device)
    small = ("--tiny",) if tiny else ()
    tokens = (4, 8) if tiny else (512, 2048, 8192)
    pair = "tiny,tiny" if tiny else "2b,7b"
    cut = "tiny,tiny" if tiny else f"2b,72b:{24 if memory > 120 else 10}"
    step = ("--length", "64", "--steps", "1") if tiny else ("--steps", "5")
    losses = ("losses.py", *where, *small)
    one = [
        Part(f"pair-{count}", (*losses, "pair", "--tokens", str(count), "--repeats", "3"), 80)
        for count in tokens
    ]
    return [
        *one,
        Part("step", ("step.py", *where, "--shapes", pair, *step), 120),
        Part("matrix", (*losses, "matrix", "--tokens", str(tokens[0]), "--repeats", "3"), 60),
        Part("cancellation", ("cancellation.py", *where, *small), 40),
        Part(
            "step-72b",
            ("step.py", *where, "--shapes", cut, *step, "--only", "last,vlsi,vlsi-cached,vlsi-cached-vision"),
            120,
        ),
        Part("scaling", (*losses, "scaling", "--repeats", "3"), 45),
        Part("blocks", (*losses, "blocks", "--repeats", "1"), 45),
        Part("quantized", ("quantized.py", *where, "--records", "8" if tiny else "100"), 60),
        Part("precision", ("precision.py", *where, *small), 120),
    ]


def run(part: Part, output: Path, left: float) -> dict[str, object]:
    """One part; its own table goes to stdout."""
    command = [sys.executable, str(HERE / part.program[0]), *part.program[1:], "--output", str(output)]
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    settings = {"PYTHONPATH": path, "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    settings |= {"TRL_EXPERIMENTAL_SILENCE": "1"}
    started = time.perf_counter()
    about: dict[str, object] = {"name": part.name, "command": " ".join(part.program)}
    out_of_time = False
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **settings},
        start_new_session=True,
    ) as done:
        try:
            said, complaint = done.communicate(timeout=min(part.limit, left))
        except subprocess.TimeoutExpired:
            out_of_time = True
        finally:
            end_all(done)
        if out_of_time:
            said, complaint = done.communicate()
    print(f"== {part.name}: {about['command']}\n{said}", flush=True)
    failed = f"failed: {(complaint.strip() or '?').splitlines()[-1]}"
    ended = "out of time" if out_of_time else "done" if done.returncode == 0 else failed
    return {**about, "ended": ended, "seconds": round(time.perf_counter() - started, 1)}


def end_all(part: subprocess.Popen[str]) -> None:
    """End a part with the processes that it began: one left behind would keep memory and compute beside the next."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(part.pid, signal.SIGKILL)


def main() -> None:
    """Parse the command line; run the programme."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: does everything run?")
    parser.add_argument("--budget", type=float, default=460, help="seconds for everything (default 460)")
    parser.add_argument("--only", help="parts, with commas")
    parser.add_argument(
        "--output", type=Path, help=f"default: {RESULTS.name}/, and with --tiny a folder that goes"
    )
    chosen = parser.parse_args()
    if chosen.output is None and chosen.tiny:
        with tempfile.TemporaryDirectory() as rehearsal:
            measure(chosen, Path(rehearsal))
    else:
        measure(chosen, chosen.output or RESULTS)


def measure(chosen: argparse.Namespace, output: Path) -> None:
    """Every part, one after another; their results and gpu.json go to ``output``."""
    memory, name = 0.0, "cpu"
    if chosen.device != "cpu":
        import torch

        if not torch.cuda.is_available():
            sys.exit("there is no CUDA device here; for a rehearsal: --device cpu --tiny")
        about = torch.cuda.get_device_properties(chosen.device)
        memory, name = about.total_memory / 2**30, about.name
    deadline = time.perf_counter() + chosen.budget
    output.mkdir(parents=True, exist_ok=True)
    found = []
    for part in parts(chosen.device, chosen.tiny, memory):
        if chosen.only and part.name not in chosen.only.split(","):
            continue
        left = deadline - time.perf_counter()
        if left < 10:
            found.append({"name": part.name, "ended": "not begun: the budget is spent"})
        else:
            found.append(run(part, output, left))
        text = json.dumps({"device": name, "parts": found}, indent=2) + "\n"
        (output / "gpu.json").write_text(text, encoding="utf-8")
    print("\n".join(f"{part['name']:13s} {part.get('seconds', 0):>6} s  {part['ended']}" for part in found))
    if any(part["ended"] != "done" for part in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
