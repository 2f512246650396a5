"""One adapter a tracker, on top of accelerate's: where it keeps a run, and what it can show beside numbers.

Only the first process of a run makes trackers, so none of them asks accelerate which process this is. accelerate's
state must stand before (its trackers log through it): making an ``Accelerator`` does that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker


class Tracker:
    """A tracker of one run.

    Args:
        folder: the run folder.
        project: what the run belongs to, for trackers that have projects.
        run: the run's name there, the same again after a resume.
        resumed: whether the run was begun by an earlier process.
    """

    name = ""

    def __init__(self, folder: Path, *, project: str, run: str, resumed: bool) -> None:
        self._folder, self._project, self._run, self._resumed = folder, project, run, resumed
        self._inner = self._start()

    def _start(self) -> Any:
        raise NotImplementedError

    def configure(self, values: Mapping[str, Any]) -> None:
        """Tell the resolved configuration: dotted key -> JSON value."""
        plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in values.items()}
        self._inner.store_init_configuration(plain)

    def rewind(self, step: int) -> None:
        """What comes next follows ``step``, whatever was told past it."""

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Tell numbers of a step."""
        self._inner.log(dict(values), step=step)

    def histograms(self, values: Mapping[str, Sequence[int]], step: int) -> None:
        """Tell how often each integer came, name by name."""
        raise NotImplementedError

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        """Tell a table of texts."""
        raise NotImplementedError

    def finish(self) -> None:
        """The run is over, or this process's part of it."""
        self._inner.finish()


class _TensorBoard(TensorBoardTracker):
    main_process_only = False


class TensorBoard(Tracker):
    """Event files in the run folder, under ``tensorboard/``; a new file after a resume, which takes back the steps
    that come again."""

    name = "tensorboard"

    def _start(self, **options: Any) -> Any:
        started = _TensorBoard("tensorboard", self._folder, **options)
        started.start()
        return started

    def configure(self, values: Mapping[str, Any]) -> None:
        """As text, once: TensorBoard's table of hyperparameters would need a folder of its own."""
        if self._resumed:
            return
        rows = [[f"`{key}`", f"`{value}`"] for key, value in values.items()]
        self._inner.log({"configuration": markdown_table(("key", "value"), rows)}, step=0)

    def rewind(self, step: int) -> None:
        """Begin a file that takes back what older ones hold past ``step``."""
        self._inner.finish()
        self._inner = self._start(purge_step=step + 1)

    def histograms(self, values: Mapping[str, Sequence[int]], step: int) -> None:
        """One bin an integer."""
        import numpy as np

        for name, numbers in values.items():
            edges = np.arange(min(numbers), max(numbers) + 2) - 0.5
            self._inner.tracker.add_histogram(name, np.asarray(numbers), global_step=step, bins=edges)
        self._inner.tracker.flush()

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        """As Markdown, which TensorBoard draws."""
        self._inner.log({name: markdown_table(columns, rows)}, step=step)


class Trackio(Tracker):
    """trackio's own folder on this machine (``TRACKIO_DIR``), or whatever its variables name."""

    name = "trackio"

    def _start(self) -> Any:
        started = TrackioTracker(
            self._project,
            name=self._run,
            resume="allow" if self._resumed else "never",
            embed=False,
            auto_log_cpu=False,  # the run tells its own memory, and a thread that polls takes a core's time
        )
        started.start()
        return started

    def finish(self) -> None:
        """Through trackio itself: the run's own ``finish`` leaves it to be finished, and spoken of, once more."""
        import trackio

        trackio.finish()

    def histograms(self, values: Mapping[str, Sequence[int]], step: int) -> None:
        """One bin an integer."""
        import trackio

        made = {name: trackio.Histogram(np_histogram=_bins(numbers)) for name, numbers in values.items()}
        self._inner.log(made, step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        """As trackio's table."""
        import trackio

        table = trackio.Table(columns=list(columns), data=[list(row) for row in rows])
        self._inner.log({name: table}, step=step)


class WandB(Tracker):
    """Weights & Biases, its files in the run folder under ``wandb/``; ``WANDB_MODE=offline`` sends nothing."""

    name = "wandb"

    def _start(self) -> Any:
        started = WandBTracker(
            self._project,
            id=self._run,
            name=self._run,
            dir=str(self._folder),
            resume="allow",
            # Its copy of the terminal would hold the progress display a thousand times over.
            settings={"console": "off"},
        )
        started.start()
        return started

    def histograms(self, values: Mapping[str, Sequence[int]], step: int) -> None:
        """One bin an integer."""
        import wandb

        made = {name: wandb.Histogram(np_histogram=_bins(numbers)) for name, numbers in values.items()}
        self._inner.log(made, step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        """As a table of Weights & Biases."""
        self._inner.log_table(name, columns=list(columns), data=[list(row) for row in rows], step=step)


KINDS: dict[str, type[Tracker]] = {kind.name: kind for kind in (TensorBoard, Trackio, WandB)}


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown; what would break its lines is written otherwise."""
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in (columns, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


def _bins(numbers: Sequence[int]) -> tuple[Any, Any]:
    import numpy as np

    return np.histogram(np.asarray(numbers), bins=np.arange(min(numbers), max(numbers) + 2) - 0.5)
