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
from benchmarks.language.report import DOCUMENT, write_report
from benchmarks.proof.__main__ import Grid, describe
from benchmarks.proof.arms import fine_tuning, last_layer, untrained, vlsi
from benchmarks.proof.grid import Tuning
from benchmarks.proof.results import Store, read
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
#: Learning rate of the reinforcement where it is another one than the interaction's.
SLOW = 1e-4
#: Weight of the target layers' losses beside the last layer's where it is not the paper's 1.
LIGHT = 0.1
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


def prepare(folder: Path) -> dict[str, str]:
    """Write the records into a folder, and the models that are not there yet; their fingerprint."""
    write_models(folder)
    write_records(folder)
    teach(folder)
    pair = {side: file_sha256(folder / side / "model.safetensors")[:12] for side in ("large", "small")}
    return pair | {"records": file_sha256(folder / "train.jsonl")[:12]}


def stored(file: Path) -> Store:
    """The results in a file, of the pair of its last line."""
    lines = read(file)
    return Store(file, SETTINGS, lines[-1]["pair"] if lines else {})


def arms(settings: Settings) -> dict[str, Run]:
    """The rows: ways of the proof's main table; with a slower last step; with all steps in the interaction.

    Of the last kind VLsI also with less weight on the target layers.
    """
    whole = settings.interaction_steps + settings.reinforcement_steps
    ways = {"last-layer KLD": last_layer(settings), "VLsI": vlsi(settings)}
    slow = {
        f"{label}, slow reinforcement": replace(run, reinforcement_rate=SLOW) for label, run in ways.items()
    }
    alone = {
        f"{label}, no reinforcement": replace(run, interaction_steps=whole, reinforcement_steps=0)
        for label, run in ways.items()
    }
    light = replace(alone["VLsI, no reinforcement"], intermediate_weight=LIGHT)
    return {"SFT": fine_tuning(settings), **ways, **slow, **alone, "VLsI, light, no reinforcement": light}


@dataclass(frozen=True)
class LanguageGrid(Grid):
    """The runs of this comparison, one seed after another.

    Attributes:
        labels: the rows to run; None for all.
    """

    labels: Sequence[str] | None = None

    def rate(self) -> float | None:
        """The learning rate with the lower loss; None while one has not been tried."""
        done = self.store.load()
        losses = {run.rate: done[run]["loss"] for run in self.trials() if run in done}
        return min(losses, key=losses.__getitem__) if len(losses) == len(RATES) else None

    def runs(self) -> list[Run]:
        """Trials of the learning rates; when these are known, the untrained models and every arm at every seed."""
        rows = self.rows()
        chosen = [runs for label, runs in rows.items() if self.labels is None or label in self.labels]
        models = [untrained("small"), untrained("large")] if rows else []
        return [*self.trials(), *models, *(run for seed in zip(*chosen, strict=True) for run in seed)]

    def rows(self) -> dict[str, list[Run]]:
        """A run a seed for every arm; none while the learning rate is not known."""
        rate = self.rate()
        if rate is None:
            return {}
        seeds = SEEDS[: self.seeds]
        ways = arms(self.store.settings)
        return {label: [replace(run, rate=rate, seed=seed) for seed in seeds] for label, run in ways.items()}

    def trials(self) -> list[Run]:
        """SFT at each of the learning rates, on the validation records."""
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
    parser.add_argument(
        "--only", choices=arms(SETTINGS), action="append", help="this row alone (repeatable); default: all"
    )
    parser.add_argument("--minutes", type=float, help="begin no run after so many minutes")
    parser.add_argument("--list", action="store_true", help="tell what is done and what is left, and stop")
    parser.add_argument(
        "--report", action="store_true", help=f"write {DOCUMENT} from the stored results, and stop"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of results")
    given = parser.parse_args(arguments)
    store = stored(given.results)
    if not given.report:
        store = replace(store, pair=prepare(given.folder))
    grid = LanguageGrid(store, Tuning(RATES, (TUNING_SEED,)), seeds=given.seeds, labels=given.only)
    if given.list:
        print("\n".join(listing(grid)))
        return
    if not given.report:
        laboratory = LanguageLaboratory(SETTINGS, given.folder)
        until = None if given.minutes is None else time.monotonic() + 60 * given.minutes
        grid.work(laboratory.run, lambda line: print(line, file=sys.stderr, flush=True), until)
    write_report(grid.store, grid.rows(), grid.trials())


if __name__ == "__main__":
    main()
