"""Trials before the grid, on the validation split: ``python -m benchmarks.proof.pilot QUESTION [options]``.

Every trial is stored with its question and its settings, and ``docs/proof.md`` shows all of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from benchmarks.proof.arms import ARMS
from benchmarks.proof.laboratory import Laboratory
from benchmarks.proof.results import PILOTS, append, fingerprint
from benchmarks.proof.settings import Settings, changed


def main(arguments: list[str] | None = None) -> None:
    """Run the trials named on the command line, one after another."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proof.pilot", description=__doc__)
    parser.add_argument("question", help="what the trials are to tell")
    parser.add_argument("--arms", default=",".join(ARMS), help="comma-separated arms of the main table")
    parser.add_argument("--rates", default="1e-3", help="comma-separated learning rates")
    parser.add_argument("--seeds", default="0", help="comma-separated seeds")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a field of Settings or Run"
    )
    given = parser.parse_args(arguments)
    settings, of_run = changed(Settings(), given.set)
    pair = fingerprint(settings)
    laboratory = Laboratory(settings)
    known = {who: laboratory.measure(model, "validation").to_json() for who, model in laboratory.sides()}
    for seed in map(int, given.seeds.split(",")):
        for rate in map(float, given.rates.split(",")):
            for arm in given.arms.split(","):
                run = replace(ARMS[arm](settings), rate=rate, seed=seed, split="validation", **of_run)
                started = time.monotonic()
                result = laboratory.run(run)
                result["elapsed"] = round(time.monotonic() - started, 1)
                line = {"question": given.question, "arm": arm, "settings": settings.to_json(), "pair": pair}
                append(PILOTS, line | {"run": run.to_json(), "result": result, "before": known})
                print(arm, rate, seed, result, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
