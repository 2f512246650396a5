"""How a run is watched: which trackers hear of it, and whether its layers answer questions on the way."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

from pydantic import Field, field_validator

from vlsi_cli.config.base import Config
from vlsi_cli.errors import ConfigError

TrackerName = Literal["tensorboard", "trackio", "wandb"]


class WatchConfig(Config):
    """Watching changes nothing of what is trained."""

    report_to: tuple[TrackerName, ...] = ()
    """Trackers that are told of every step, beside the files of the run folder: `tensorboard`, `trackio`,
    `wandb`."""
    project: str = Field(default="vlsi", min_length=1)
    """The project that the run belongs to, for trackers that have projects (trackio, wandb)."""
    samples: int = Field(default=0, ge=0)
    """Held-out questions that each layer of the small model answers on the way, in verbalization and
    interaction; 0: none."""
    samples_every: int = Field(default=100, ge=1)
    """Optimizer steps between these answers; they are also taken after the last step of a stage."""
    samples_max_new_tokens: int = Field(default=32, ge=1)
    """Longest of these answers."""

    @field_validator("report_to", mode="before")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        """One name stands for a list of one, and a name given twice counts once."""
        names = [value] if isinstance(value, str) else value
        return tuple(dict.fromkeys(names)) if isinstance(names, list | tuple) else names


def require_trackers(names: tuple[TrackerName, ...]) -> None:
    """Refuse, before anything is loaded, a tracker whose package is not installed.

    Raises:
        ConfigError: it is not.
    """
    for name in names:
        if find_spec(name) is None:
            extra = name if name == "wandb" else "'vlsi-cli[track]'"
            raise ConfigError(
                f"the run is to report to {name}, but the package {name} is not installed",
                hint=f"pip install {extra}, or leave --report-to {name} out",
            )
