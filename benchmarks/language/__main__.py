"""``python -m benchmarks.language FOLDER``: the ways of teaching compared on a real language model."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.language.laboratory import LanguageLaboratory
from benchmarks.language.material import write_models, write_records
from benchmarks.proof.__main__ import Grid, describe
from benchmarks.proof.arms import fine_tuning, last_layer, untrained, vlsi
from benchmarks.proof.grid import Tuning
from benchmarks.proof.results import Store
from benchmarks.proof.settings import Run, Settings
from vlsi_cli.engine.files import file_sha256, new_folder

RESULTS = Path(__file__).parent / "results.jsonl"
SETTINGS = Settings(
    large="large",
    small="small",
    start=2,
    stride=4,
    kinds=None,
    turns=1,
    batch_size=8,
    max_length=256,
    interaction_steps=90,
    reinforcement_steps=60,
    verbalization_steps=120,
    verbalization_rate=1e-3,
    asked=200,
    asked_together=20,
)
#: Tried for SFT; the better one on the validation records is everybody's.
RATES, TUNING_SEED = (5e-4, 1e-3), 100
SEEDS = (0, 1, 2, 3, 4)
#: Of the large model, which is to know the records as the paper's knows its data: plain fine-tuning of the whole.
TEACHING = Run(
    intermediate="none", last="none", reinforcement_steps=150, rate=3e-4, seed=200, split="validation"
)


def teach(folder: Path) -> None:
    """Make ``large`` of ``plain``, where it is not there yet."""
    if (folder / "large").is_dir():
        return
    laboratory = LanguageLaboratory(replace(SETTINGS, large="plain", small="plain"), folder)
    print(f"large: {laboratory.run(TEACHING)['loss']:.4f} on validation records", file=sys.stderr, flush=True)
    with new_folder(folder / "large") as partial:
        shutil.copytree(folder / "plain", partial, dirs_exist_ok=True)
        laboratory.small.model.save_pretrained(partial)


def arms(settings: Settings) -> dict[str, Run]:
    """The rows: the ways of the proof's main table, and the two that need no step on the data after the interaction."""
    whole = settings.interaction_steps + settings.reinforcement_steps
    alone = {"interaction_steps": whole, "reinforcement_steps": 0}
    return {
        "SFT": fine_tuning(settings),
        "last-layer KLD": last_layer(settings),
        "VLsI": vlsi(settings),
        "last-layer KLD, no reinforcement": replace(last_layer(settings), **alone),
        "VLsI, no reinforcement": replace(vlsi(settings), **alone),
    }


@dataclass(frozen=True)
class LanguageGrid(Grid):
    """The runs of this comparison, one seed after another; last those without reinforcement."""

    def rate(self) -> float | None:
        """The learning rate with the lower loss; None while one has not been tried."""
        done = self.store.load()
        losses = {run.rate: done[run]["loss"] for run in self._trials() if run in done}
        return min(losses, key=losses.__getitem__) if len(losses) == len(RATES) else None

    def runs(self) -> list[Run]:
        """Trials of the learning rates; when these are known, the untrained models and every arm at every seed."""
        rate = self.rate()
        if rate is None:
            return self._trials()
        rows = [untrained("small"), untrained("large")]
        ways = list(arms(self.store.settings).values())
        rows += [
            replace(run, rate=rate, seed=seed)
            for runs in (ways[:3], ways[3:])
            for seed in SEEDS[: self.seeds]
            for run in runs
        ]
        return self._trials() + rows

    def _trials(self) -> list[Run]:
        run = arms(self.store.settings)["SFT"]
        return [replace(run, rate=rate, seed=TUNING_SEED, split="validation") for rate in RATES]


def listing(grid: LanguageGrid) -> Iterator[str]:
    """What is done and what is left."""
    done = grid.store.load()
    for run in grid.runs():
        yield f"{done[run]['loss']:.4f}  {describe(run)}" if run in done else f"left    {describe(run)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language", description=__doc__)
    parser.add_argument("folder", type=Path, help="where models and records are written; 900 MB")
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, len(SEEDS) + 1), help="seeds a row")
    parser.add_argument("--minutes", type=float, help="begin no run after so many minutes")
    parser.add_argument("--list", action="store_true", help="tell what is done and what is left, and stop")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of results")
    given = parser.parse_args(arguments)
    write_models(given.folder)
    write_records(given.folder)
    teach(given.folder)
    pair = {side: file_sha256(given.folder / side / "model.safetensors")[:12] for side in ("large", "small")}
    pair["records"] = file_sha256(given.folder / "train.jsonl")[:12]
    grid = LanguageGrid(
        Store(given.results, SETTINGS, pair), Tuning(RATES, (TUNING_SEED,)), seeds=given.seeds
    )
    if given.list:
        print("\n".join(listing(grid)))
        return
    laboratory = LanguageLaboratory(SETTINGS, given.folder)
    until = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    grid.work(laboratory.run, lambda line: print(line, file=sys.stderr, flush=True), until)


if __name__ == "__main__":
    main()
