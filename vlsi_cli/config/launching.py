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


def local_size() -> int:
    """Processes of the launch on this machine; 1 without a launcher."""
    return _number("LOCAL_WORLD_SIZE", 1)


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


@cache
def zero_asked() -> Literal[2, 3] | None:
    """The stage of DeepSpeed's ZeRO that accelerate's configuration asks for, or None.

    Taken out of the environment as :func:`fsdp_asked` does. Accumulation, clipping and precision stand in such a
    configuration too; they are the recipe's.

    Raises:
        ConfigError: it asks for what this program does not do with DeepSpeed.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() != "true":
        return None
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file.lower() not in ("", "none"):
        raise ConfigError(
            f"accelerate's configuration names a configuration of DeepSpeed's own, {file}, which is not read: all but "
            "the stage is the recipe's",
            hint="leave deepspeed_config_file out and set zero_stage: 2 or 3 in deepspeed_config",
        )
    for what in ("optimizer", "param"):
        device = os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what.upper()}_DEVICE", "none")
        if device != "none":
            raise ConfigError(
                f"accelerate's configuration offloads to {device} with DeepSpeed, which this program does not do",
                hint=f"set offload_{what}_device: none; `teacher.placement` moves the large model to host memory",
            )
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if stage not in ("2", "3"):
        raise ConfigError(
            f"accelerate's configuration asks for stage {stage} of DeepSpeed's ZeRO; there are 2 and 3",
            hint="set zero_stage: 2 or 3 in deepspeed_config",
        )
    del os.environ["ACCELERATE_USE_DEEPSPEED"]
    return 2 if stage == "2" else 3


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
