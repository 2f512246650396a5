"""The trackers of a run: what they are told of it, and the name under which a resume finds the same run there."""

from __future__ import annotations

import json
import re
import shlex
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from vlsi_cli.config.loading import Resolved
from vlsi_cli.config.watching import require_trackers
from vlsi_cli.engine import processes
from vlsi_cli.engine.hub.screening import is_secret
from vlsi_cli.engine.runs import models
from vlsi_cli.engine.runs.folder import RunFolder
from vlsi_cli.engine.trackers import open_trackers
from vlsi_cli.errors import CheckpointError, ConfigError
from vlsi_cli.events import Events

FILE = "trackers.json"
HIDDEN = "(left out)"


@contextmanager
def tracked(resolved: Resolved, folder: RunFolder, events: Events, *, resumed: bool) -> Iterator[Events]:
    """The trackers that the configuration asks for, while the block runs; see :func:`.open_trackers`.

    In a run of several processes the first one has them.

    Args:
        resolved: the configuration.
        folder: of the run; ``trackers.json`` in it keeps the run's name.
        events: who else hears.
        resumed: whether the run folder was there before.

    Raises:
        ConfigError: a tracker is not installed, or does not start.
        CheckpointError: the name under which the run was begun cannot be read.
    """
    watch = resolved.config.watch
    with ExitStack() as stack:
        told = events
        # accelerate's trackers log through accelerate, which first wants to know its device
        if watch.report_to:
            models.new_accelerator(*models.place(resolved.config))
        with processes.together():
            require_trackers(watch.report_to)
            if watch.report_to and processes.is_first():
                known = _known(folder) if resumed else None
                shown = shown_configuration(resolved)
                name = known or f"{_plain(shown['name'])}-{uuid.uuid4().hex[:8]}"
                if known is None:
                    folder.write(FILE, {"run": name})
                opened = open_trackers(
                    watch.report_to,
                    events,
                    folder=folder.path,
                    project=watch.project,
                    run=name,
                    resumed=known is not None,
                    done=sum(report.steps for report in folder.state.stages.values()),
                    configuration=shown,
                )
                try:
                    told = stack.enter_context(opened)
                except ConfigError as error:
                    if not resumed:  # then nothing is left of the run
                        raise
                    again = f"vlsi distill --resume {shlex.quote(str(folder.path))}"
                    error.hint = f"{error.hint}\nthen go on with: {again}"
                    raise
        yield told


def shown_configuration(resolved: Resolved) -> dict[str, Any]:
    """Every leaf of the configuration by its dotted key, with secrets left out."""
    return {key: HIDDEN if _hides(key, value) else value for key, value, _ in resolved.leaves()}


def _hides(key: str, value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    if isinstance(value, Mapping):
        values = list(value.values())
    return any(is_secret(key.rsplit(".", 1)[-1], str(each)) for each in values if each is not None)


def _known(folder: RunFolder) -> str | None:
    file = folder.path / FILE
    if not file.is_file():
        return None
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} cannot be read: {error}", hint="remove it: trackers then get a new run"
        ) from error


def _plain(name: str) -> str:
    """A name that every tracker takes as a run's."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:64] or "run"
