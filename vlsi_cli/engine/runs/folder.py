"""The folder of a run: what is in it, and how far the run has come.

config.yaml, origins.json   the resolved configuration, itself a recipe, and where each value came from
environment.json            versions and machine
progress.json               stages that are complete, scores that are measured
metrics.jsonl               one line an optimizer step
matches.jsonl               one line an interaction step: every micro-batch's matched layers
samples.jsonl               sample answers of the small model's layers on the way, where they were asked for
trackers.json               the run's name in trackers; tensorboard/, wandb/: what those two wrote
failures/                   steps that were not finite, each with all that runs it again
data.json                   records used and not used, and why
checkpoints/                inside the stage that is running
verbalizers/large, small    trained sets, apart from any backbone
stages/interaction/         the small model's layers after step 2
answers/                    held-out answers, one file a model
student/                    the stock checkpoint
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from vlsi_cli import __version__
from vlsi_cli.config.folders import BEFORE_WORK, RUNS, claim, holds_something, is_barren
from vlsi_cli.config.loading import CONFIG_FILE, Resolved
from vlsi_cli.engine import processes
from vlsi_cli.engine.files import LOCK_FILE, new_file, only_process, sweep, write_json, writing
from vlsi_cli.errors import CheckpointError, Interrupted, OutputError, VlsiError
from vlsi_cli.events import Score, StageReport

#: Where a run lies that another one with --overwrite is about to replace.
REPLACED = ".replaced"

_PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "datasets", "peft", "pillow")


@dataclass
class State:
    """What of a run is complete: stages by key, scores by who answered; and how many processes began it."""

    stages: dict[str, StageReport] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    student: bool = False
    processes: int = 1


class RunFolder:
    """Paths, progress and logs of one run. Of several processes the first alone writes.

    Args:
        path: the folder; made by :meth:`create`, found by :meth:`open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = State()
        self.checkpoints = path / "checkpoints"
        self.student = path / "student"
        self._made = False  # by this process: it was not there before

    @classmethod
    def create(cls, path: Path | None, resolved: Resolved, stack: ExitStack, *, overwrite: bool) -> RunFolder:
        """A new run folder with its configuration and environment.

        The configuration is written last and removed last: a folder that has one is a run, and what a kill leaves
        before that is no run and may be taken over by the next. So may the folder of a run that has done nothing yet.

        Args:
            path: the folder; None for the first free one of the configuration's name.
            resolved: its configuration.
            stack: holds the folder's lock from here on.
            overwrite: replace a run that is already there, which is set aside until :meth:`forget_replaced`.

        Raises:
            OutputError: it holds something, and ``overwrite`` was not asked for; another process is working in it; or
                it cannot be written.
        """
        made = path is None
        if path is None:
            with writing(RUNS):
                path = claim(resolved.config.name)
        folder = cls(path)
        folder.state.processes = processes.size()

        def check() -> None:
            if holds_something(path) and not (overwrite and (path / CONFIG_FILE).is_file()):
                raise OutputError(f"{path} is not empty", hint="give another --output")

        with writing(path):
            folder._made = made or not path.exists()
            path.mkdir(parents=True, exist_ok=True)
            check()  # before anything is written into what may be somebody's folder
            stack.enter_context(only_process(path, f"the run {path}"))
            check()  # another process may have worked here until now
            if (path / CONFIG_FILE).is_file():
                if is_barren(path):
                    _empty(path)
                else:
                    _set_aside(path)
            write_json(path / "environment.json", environment())
            folder.save_state()
            resolved.save(path)
        return folder

    @classmethod
    def resume(cls, path: Path, stack: ExitStack) -> RunFolder:
        """An existing run folder to go on with, which other processes are kept out of.

        Args:
            path: the folder.
            stack: holds the folder's lock from here on.

        Raises:
            CheckpointError: its progress file is missing or damaged.
            OutputError: another process is working on this run.
        """
        cls.open(path)
        with writing(path):
            stack.enter_context(only_process(path, f"the run {path}"))
            sweep(path)  # what a killed one left half written
        return cls.open(path)  # what another process has finished in between counts

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run folder, to go on with.

        Raises:
            CheckpointError: its progress file is missing or damaged.
        """
        folder = cls(path)
        try:
            saved = json.loads((path / "progress.json").read_text(encoding="utf-8"))
            folder.state = State(
                stages={key: StageReport(**value) for key, value in saved["stages"].items()},
                scores={key: Score(**value) for key, value in saved["scores"].items()},
                student=bool(saved["student"]),
                processes=int(saved.get("processes", 1)),
            )
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"the progress of the run {path} cannot be read: {error}") from error
        return folder

    @property
    def barren(self) -> bool:
        """Whether the run has done nothing yet that could be gone on from."""
        return is_barren(self.path)

    def discard(self) -> None:
        """Take a barren folder away again, as far as this run has made it; only its lock's holder may.

        A run that was to be replaced is there again as it was. The configuration goes last: killed in between, the
        folder is still one that the next run may take.
        """
        if not (self.barren or is_barren(self.path, but_for=REPLACED)):
            return
        with suppress(OSError):
            _empty(self.path, names=BEFORE_WORK)
            if (self.path / REPLACED).is_dir():
                _take_back(self.path)
                return
            (self.path / LOCK_FILE).unlink(missing_ok=True)
            if self._made:
                self.path.rmdir()

    @contextmanager
    def kept_if_begun(self) -> Iterator[None]:
        """A new run that is refused before it has done anything leaves no folder; one that is stopped can be resumed.

        Unless it was to replace another: that is there again in either case.
        """
        try:
            yield
        except VlsiError as error:
            if not isinstance(error, Interrupted):
                self.discard()
            elif (self.path / REPLACED).is_dir():
                self.discard()
                error.resume, error.hint = None, f"{self.path} holds the run again that was to be replaced"
            raise

    @property
    def replaced_bytes(self) -> int:
        """What the run takes that this one is about to replace."""
        files = (path for path in (self.path / REPLACED).rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files)

    def forget_replaced(self) -> None:
        """Remove the run that this one replaces, now that this one has been found fit to begin."""
        old, going = (
            self.path / REPLACED,
            self.path / f"{REPLACED}.partial",
        )  # which a sweep removes after a kill
        if old.is_dir():
            with writing(self.path):
                old.rename(going)
                shutil.rmtree(going)

    def verbalizers(self, side: str) -> Path:
        """Where the set of ``large`` or ``small`` lives."""
        return self.path / "verbalizers" / side

    @property
    def interaction(self) -> Path:
        """Where the small model's layers after step 2 live."""
        return self.path / "stages" / "interaction"

    def save_state(self) -> None:
        """Write ``progress.json``."""
        value = {
            "stages": {key: asdict(report) for key, report in self.state.stages.items()},
            "scores": {key: asdict(score) for key, score in self.state.scores.items()},
            "student": self.state.student,
            "processes": self.state.processes,
        }
        if processes.is_first():
            write_json(self.path / "progress.json", value)

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file of the folder."""
        if not processes.is_first():
            return
        target = self.path / name
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, value)

    def note_data(self, stage: str, report: dict[str, Any]) -> None:
        """Put what became of a stage's records into ``data.json``."""
        if not processes.is_first():
            return
        file = self.path / "data.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        write_json(file, known | {stage: report})

    def last_line(self, name: str, stage: str) -> dict[str, Any] | None:
        """The last line of a JSON Lines file that belongs to a stage."""
        file = self.path / name
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        found = [value for value in map(json.loads, lines) if value["stage"] == stage]
        return found[-1] if found else None

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Add a line to a JSON Lines file."""
        if not processes.is_first():
            return
        with writing(self.path / name), (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def forget_after(
        self,
        stage: str,
        step: int,
        names: Iterable[str] = ("metrics.jsonl", "matches.jsonl", "samples.jsonl"),
    ) -> None:
        """Drop the lines of a stage past ``step``: steps that a killed run logged and a resumed one repeats."""
        if not processes.is_first():
            return
        for name in names:
            file = self.path / name
            if not file.is_file():
                continue
            with writing(file):
                kept = [
                    line
                    for line in file.read_text(encoding="utf-8").splitlines()
                    if _stays(line, stage, step)
                ]
                with new_file(file) as part:
                    part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _empty(path: Path, names: Collection[str] | None = None) -> None:
    """Remove an old run, its configuration last: killed in between, it can still be told for one.

    Args:
        path: its folder; the lock in it stays.
        names: what to remove; None for everything.
    """
    for old in sorted(path.iterdir(), key=lambda old: old.name == CONFIG_FILE):
        if names is not None and old.name not in names:
            continue
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        elif old.name != LOCK_FILE:
            old.unlink()


def _set_aside(path: Path) -> None:
    """Move a run into a folder inside its own, its configuration last.

    Where that was begun before and cut off by a kill, what lies aside already is the older, and stays.
    """
    aside = path / REPLACED
    aside.mkdir(exist_ok=True)
    for old in sorted(path.iterdir(), key=lambda old: old.name == CONFIG_FILE):
        if old.name in (REPLACED, LOCK_FILE):
            continue
        if not (aside / old.name).exists():
            old.rename(aside / old.name)
        elif old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink()


def _take_back(path: Path) -> None:
    """Undo :func:`_set_aside`."""
    for old in sorted((path / REPLACED).iterdir(), key=lambda old: old.name == CONFIG_FILE):
        old.rename(path / old.name)
    (path / REPLACED).rmdir()


def _stays(line: str, stage: str, step: int) -> bool:
    try:
        value = json.loads(line)
    except ValueError:
        return False  # a kill in the middle of a line
    return not (value["stage"] == stage and value["step"] > step)


def environment() -> dict[str, Any]:
    """Versions of what computes, and of the machine; no paths, names or variables of its user."""
    import torch

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "vlsi": __version__,
        "python": sys.version.split()[0],
        "packages": versions,
        "platform": platform.platform(),
        "cuda_devices": cuda,
        "threads": torch.get_num_threads(),
    }
