"""Which process of a launch this is, as torchrun and `accelerate launch` say it in the environment."""

from __future__ import annotations

import os
from functools import cache
from typing import Literal

from vlsi_cli.errors import ConfigError

Count = int | Literal["auto"]
#: Who started this process, noted early: a launcher may be killed while torch is still being imported.
PARENT = os.getppid()


def rank() -> int:
    """This process's number among all of the launch, from 0; 0 without a launcher."""
    return _number("RANK", 0)


def size() -> int:
    """Processes of the launch, on all machines; 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """This process's number among those on its machine, from 0: the GPU that is its own."""
    return _number("LOCAL_RANK", 0)


def is_launched() -> bool:
    """Whether torchrun started this process, by itself or for accelerate; a cluster may number machines in its way."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_orphaned() -> bool:
    """Whether a launcher started this process and is gone."""
    return is_launched() and os.getppid() != PARENT


@cache
def fsdp_asked() -> str | None:
    """The version of FSDP that accelerate's configuration asks for, or None.

    It is taken out of the environment, since accelerate and transformers would act upon it too, and each divides
    another way.
    """
    asked = os.environ.pop("ACCELERATE_USE_FSDP", "").lower() == "true"
    return os.environ.get("FSDP_VERSION", "1") if asked else None


def processes(word: str | None) -> Count | None:
    """The value of `--processes`.

    Raises:
        ConfigError: neither a number from 1 nor ``auto``.
    """
    if word is None:
        return None
    if word == "auto":
        return "auto"
    if not word.isdecimal() or int(word) < 1:
        raise ConfigError(f"--processes is '{word}', and should be a whole number from 1, or auto")
    return int(word)


def _number(name: str, otherwise: int) -> int:
    try:
        return int(os.environ.get(name, otherwise))
    except ValueError:
        raise ConfigError(
            f"the environment variable {name} is '{os.environ[name]}', where launchers put a number",
            hint=f"unset {name}, or start vlsi with --processes, torchrun or accelerate launch",
        ) from None
