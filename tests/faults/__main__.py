"""``python -m tests.faults``: kill commands at random moments, and prove that nothing is lost, half there or different.

    python -m tests.faults                            # 58 kills over five commands, and every other fault once
    python -m tests.faults --kills 500 --seed 7       # more, elsewhere
    python -m tests.faults --only distill --kills 30  # of one command
    python -m tests.faults --only others              # full disk, vanished data, clock jumps, ...

Prints tables and ends with 1 at the first promise that was not kept, with the seed that repeats it. Linux only.
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # threads do not survive a fork, and results must be the same bit for bit
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

#: Share of the kills, and what must be installed.
SHARES = {"distill": 26, "cache": 10, "export": 7, "eval": 9, "answer": 6}
NEEDS = {"export": ("onnx", "onnxscript", "onnxruntime"), "eval": ("lmms_eval",)}
OTHERS = "others"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--kills", type=int, default=sum(SHARES.values()), help="how many, over the commands chosen"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides where faults fall")
    parser.add_argument(
        "--only", choices=[*SHARES, OTHERS], action="append", help="this one; may be given again"
    )
    parser.add_argument("--verbose", action="store_true", help="tell of every kill")
    asked = parser.parse_args()
    chosen = asked.only or [*SHARES, OTHERS]
    missing = {name: [need for need in NEEDS.get(name, ()) if find_spec(need) is None] for name in chosen}
    for name in [name for name in chosen if missing[name]]:
        print(f"{name} is left out: {missing[name][0]} is not installed", file=sys.stderr)
        chosen.remove(name)

    from tests.faults.subjects import Broken
    from tests.quick import do_not_wait

    do_not_wait()

    def tell(text: str) -> None:
        if asked.verbose:
            print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="vlsi-faults-") as folder:
        work = Path(folder).resolve()
        try:
            if commands := [name for name in chosen if name != OTHERS]:
                kills(commands, asked.kills, asked.seed, work, tell)
            if OTHERS in chosen:
                others(asked.seed, work)
        except Broken as broken:
            print(f"\nbroken: {broken}", file=sys.stderr)
            return 1
    return 0


def kills(commands: list[str], count: int, seed: int, work: Path, tell: Callable[[str], None]) -> None:
    from tests.faults.answers import SUBJECTS
    from tests.faults.killing import torment

    share = count / sum(SHARES[name] for name in commands)
    print("| command | kills | by operation | by moment | lives compared | children's CPU | time |")
    print("|---|---|---|---|---|---|---|")
    fallen: list[str] = []
    for name in commands:
        subject = SUBJECTS[name](work / name)
        tally = torment(subject, max(1, round(SHARES[name] * share)), seed, tell)
        kinds = f"{tally.kinds['AtOperation']} | {tally.kinds['AtMoment']}"
        times = f"{tally.cpu:.0f} s | {tally.seconds:.0f} s"
        print(f"| {name} | {tally.kills} | {kinds} | {tally.ends} | {times} |", flush=True)
        fallen += [f"{name}, {stage}: {tally.stages[stage]}" for stage in subject.stages if stage]
    print("\nWhere they fell: " + "; ".join(fallen) + "\n" if fallen else "")


def others(seed: int, work: Path) -> None:
    from tests.faults.scenarios import NotHere, Scenarios
    from tests.faults.subjects import Broken

    print("| fault | what held | time |")
    print("|---|---|---|")
    for name, stage in Scenarios(work / OTHERS, seed).all().items():
        began = time.perf_counter()
        try:
            held = stage()
        except NotHere as reason:
            held = f"left out: {reason}"
        except Exception as error:
            raise Broken(f"{name}, seed {seed}: {error}") from error
        print(f"| {name} | {held} | {time.perf_counter() - began:.0f} s |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
