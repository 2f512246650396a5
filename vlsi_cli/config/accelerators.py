"""Accelerators that a plan can be made for: memory and dense bf16 arithmetic from their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from vlsi_cli.errors import ConfigError, did_you_mean

GIB = 2**30


@dataclass(frozen=True)
class Accelerator:
    """One device.

    Attributes:
        name: what `--device` calls it.
        memory: bytes.
        teraflops: dense bf16 (fp16 where it has no bf16) with fp32 sums, as its maker states it; 0 when not known.
    """

    name: str
    memory: int
    teraflops: float


ACCELERATORS: tuple[Accelerator, ...] = (
    Accelerator("t4", 15 * GIB, 65),
    Accelerator("l4", 22 * GIB, 121),
    Accelerator("rtx-3090", 24 * GIB, 71),
    Accelerator("rtx-4090", 24 * GIB, 165),
    Accelerator("a100-40", 40 * GIB, 312),
    Accelerator("l40s", 45 * GIB, 362),
    Accelerator("a100-80", 80 * GIB, 312),
    Accelerator("h100", 80 * GIB, 989),
    Accelerator("h200", 140 * GIB, 989),
    Accelerator("b200", 178 * GIB, 2250),
    Accelerator("mi300x", 191 * GIB, 1307),
)


def accelerator(word: str) -> Accelerator:
    """The device of a name, or of a plain amount of memory such as ``48GiB``.

    Raises:
        ConfigError: neither.
    """
    known = {device.name: device for device in ACCELERATORS}
    name = word.casefold().replace("_", "-")
    if name in known:
        return known[name]
    if name.endswith(("gib", "gb")) and name.rstrip("gib").replace(".", "", 1).isdigit():
        return Accelerator(
            word, int(float(name.rstrip("gib")) * (GIB if name.endswith("gib") else 10**9)), 0.0
        )
    near = did_you_mean(name, known)
    raise ConfigError(
        f"no device is named '{word}'",
        hint=(f"did you mean {near}? " if near else "")
        + f"give an amount of memory such as 48GiB, or one of {', '.join(known)}",
    )
