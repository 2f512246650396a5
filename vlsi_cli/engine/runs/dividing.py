"""What the processes of a run divide among them, by what, and what that does not go with."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch

from vlsi_cli.config import launching
from vlsi_cli.config.run import DistillConfig, Sharding
from vlsi_cli.engine import processes
from vlsi_cli.errors import ConfigError

#: `sharding` -> the stage of DeepSpeed's ZeRO.
_ZERO: dict[Sharding, Literal[2, 3]] = {"zero2": 2, "zero3": 3}


def resolve_sharding(word: Sharding) -> Sharding:
    """What this run divides among its processes: a value of ``sharding`` other than ``auto``.

    Raises:
        ConfigError: accelerate's configuration asks for what this program does not have.
    """
    zero, fsdp = launching.zero_asked(), launching.fsdp_asked()
    if fsdp not in (None, "2"):
        raise ConfigError(
            "accelerate's configuration asks for FSDP 1, and this program divides by FSDP2",
            hint="set fsdp_version: 2 in fsdp_config",
        )
    if processes.size() == 1:
        return "none"
    if word != "auto":
        return word
    if zero is not None:
        return "zero2" if zero == 2 else "zero3"
    return "both" if fsdp else "none"


def zero_stage(sharding: Sharding) -> Literal[2, 3] | None:
    """The stage of DeepSpeed's ZeRO that trains; None: accelerate does."""
    return _ZERO.get(sharding)


def divides_weights(sharding: Sharding) -> bool:
    """Whether what trains lies in pieces, so that it must be gathered to be read."""
    return sharding in ("student", "both", "zero3")


def require_zero(config: DistillConfig, sharding: Sharding, dtype: torch.dtype) -> None:
    """Refuse what does not go with DeepSpeed, before anything is loaded.

    Raises:
        ConfigError: it is not installed, or the configuration has what cannot be had with it.
    """
    if zero_stage(sharding) is None:
        return
    if find_spec("deepspeed") is None:
        raise ConfigError(
            f"`sharding: {sharding}` needs the package deepspeed, which is not installed",
            hint="pip install 'vlsi-cli[deepspeed]'",
        )
    if dtype == torch.float16:
        raise ConfigError(
            f"`sharding: {sharding}` cannot train in fp16: losses are scaled on accelerate only",
            hint="use precision: bf16 or fp32, or sharding: student",
        )
    if config.compile and sharding == "zero3":
        raise ConfigError(
            "`compile` does not go with `sharding: zero3`, whose hooks gather the layers",
            hint="leave compile out, or use sharding: zero2 or student",
        )
