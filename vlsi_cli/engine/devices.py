"""Where a run computes and in which numbers: device, precision, attention kernel, seeds.

The words of a recipe ("auto", "bf16", ...) become torch values here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vlsi_cli.errors import ConfigError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ATTENTION = ("auto", "sdpa", "eager", "flash_attention_2")


def resolve_device(name: str = "auto") -> torch.device:
    """The device a recipe's word stands for; ``auto`` is the first of cuda, mps, cpu that this machine has.

    Raises:
        ConfigError: not a device name, or one this machine lacks.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"'{name}' is not a device", hint="use auto, cpu, cuda, cuda:1 or mps") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise ConfigError(
                f"device '{name}' was asked for, but torch {torch.__version__} sees no CUDA device here"
            )
        if (device.index or 0) >= count:
            raise ConfigError(f"device '{name}' was asked for, but this machine has {count} CUDA device(s)")
        return torch.device("cuda", device.index if device.index is not None else torch.cuda.current_device())
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device 'mps' was asked for, but this machine has no Apple GPU that torch can use")
    if device.type not in ("cpu", "mps"):
        raise ConfigError(f"device '{name}' is not supported", hint="use auto, cpu, cuda, cuda:1 or mps")
    return device


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The compute dtype of a precision word on a device.

    ``auto`` is bf16 on a CUDA device with bf16 arithmetic (Ampere and newer), fp16 on an older one, and fp32 on
    CPU and MPS, where half precision is slower or incomplete. Trained parameters stay fp32 in any case
    (:mod:`vlsi_cli.engine.backbones.load`); this is what matrix products compute in.

    Raises:
        ConfigError: unknown word, or fp16 training arithmetic on CPU.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if name not in _DTYPES:
        raise ConfigError(f"'{name}' is not a precision", hint="use auto, bf16, fp16 or fp32")
    if name == "fp16" and device.type == "cpu":
        raise ConfigError(
            "fp16 needs a GPU (its range needs loss scaling, which torch offers there only)",
            hint="use bf16 or fp32 on CPU",
        )
    return _DTYPES[name]


def precision_name(dtype: torch.dtype) -> str:
    """The word of a dtype, the reverse of :func:`resolve_precision`: "bf16", "fp16" or "fp32"."""
    return {dtype: name for name, dtype in _DTYPES.items()}[dtype]


def resolve_attention(name: str, device: torch.device) -> str:
    """The attention implementation to ask transformers for; ``auto`` is torch's own fused kernel (sdpa).

    Raises:
        ConfigError: unknown word, or flash attention away from CUDA or without its package.
    """
    if name not in ATTENTION:
        raise ConfigError(f"'{name}' is not an attention implementation", hint=f"use {', '.join(ATTENTION)}")
    if name == "flash_attention_2":
        from transformers.utils import is_flash_attn_2_available

        if device.type != "cuda" or not is_flash_attn_2_available():
            raise ConfigError(
                f"flash_attention_2 needs a CUDA device and the flash-attn package (device is '{device}')",
                hint="use attn_implementation: auto",
            )
    return "sdpa" if name == "auto" else name


def round_products(allowed: bool, dtype: torch.dtype) -> bool:
    """Whether fp32 products and convolutions on a GPU round their operands to TF32 (10 bits) from here on.

    Only where the run computes in bf16 or fp16 anyway: what is left in fp32 then (verb-FFNs under fp16, parts of the
    vision tower) gains speed and loses nothing that counts. A run in fp32 was asked to be exact, and gradients of
    matched pairs are differences of nearly equal sums. Elsewhere than on NVIDIA GPUs it means nothing.

    Args:
        allowed: what the configuration says.
        dtype: what the run computes in.
    """
    rounded = allowed and dtype != torch.float32 and torch.cuda.is_available()
    torch.set_float32_matmul_precision("high" if rounded else "highest")
    torch.backends.cudnn.allow_tf32 = rounded
    return rounded


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Run a block with torch's generators seeded, and leave them as they were.

    Args:
        seed: the block's seed.
        device: a CUDA device whose generator is to be kept as well; the CPU's always is.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # torch.manual_seed would set the generators of all GPUs, which are not kept
        torch.default_generator.manual_seed(seed)
        for each in devices:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(seed)
        yield
