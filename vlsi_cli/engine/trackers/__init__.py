"""Experiment trackers that hear what a run tells, through accelerate's own; a tracker never stops a run."""

from vlsi_cli.engine.trackers.kinds import KINDS, Tracker
from vlsi_cli.engine.trackers.reporting import Reporting, open_trackers

__all__ = ["KINDS", "Reporting", "Tracker", "open_trackers"]
