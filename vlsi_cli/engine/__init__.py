"""The shared core: models, data and the work. It never prints and never parses arguments."""

from __future__ import annotations
