"""Packages that only some configurations need, asked for before anything is loaded or written."""

from __future__ import annotations

from importlib.util import find_spec

from vlsi_cli.config.run import DistillConfig
from vlsi_cli.config.watching import require_trackers
from vlsi_cli.errors import ConfigError


def require_extras(config: DistillConfig) -> None:
    """Refuse a run whose packages are not all installed: adapters are needed only hours after the start.

    Raises:
        ConfigError: one is missing, named with the way to install it.
    """
    require_trackers(config.watch.report_to)
    large = config.teacher
    if (
        large is not None
        and large.cache is None
        and large.quantization != "none"
        and not _has("bitsandbytes")
    ):
        raise ConfigError(
            f"{large.quantization} weights need the package bitsandbytes, which is not installed",
            hint="pip install 'vlsi-cli[quant]'",
        )
    trained = (config.interaction, config.reinforcement)
    if any(stage is not None and stage.train == "lora" for stage in trained) and not _has("peft"):
        raise ConfigError(
            "LoRA needs the peft package, which is not installed", hint="pip install 'vlsi-cli[peft]'"
        )


def _has(package: str) -> bool:
    return find_spec(package) is not None
