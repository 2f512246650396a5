"""What belongs to a whole process and a run changes: noted before the run, and put back after it.

A command is alone in its process. A run that is called from Python is a guest there: whoever calls it has seeds,
threads and perhaps an accelerator of their own.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from vlsi_cli.errors import ConfigError

#: Variables that a run sets or takes out: for accelerate, DeepSpeed and the hub.
_VARIABLES = ("ACCELERATE_", "DS_ACCELERATOR", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")

_held = threading.RLock()


@contextmanager
def left_as_found(device: torch.device | None = None) -> Iterator[None]:
    """Let the block change what is the process's own, and put it back however the block ends.

    Kept are the random states of Python, of NumPy, of torch on the host and on ``device``; torch's number of threads;
    whether fp32 products are rounded to TF32; the current GPU; the variables of the environment that a run touches; and
    accelerate's state, which is one for a whole process: the block finds it empty, as its own, and who had made an
    ``Accelerator`` before finds theirs again.

    Blocks of one thread may stand inside each other; two threads would take what the other has changed for what was
    there before, and draw from one random state.

    Args:
        device: where the block computes; None for no GPU. The generators of other GPUs are not kept, since asking for
            them would take memory there.

    Raises:
        ConfigError: such a block is under way in another thread.
    """
    if not _held.acquire(blocking=False):
        raise ConfigError(
            "a run is under way in another thread of this process, and they would change each other's random numbers",
            hint="wait for it, or start the other one in a process of its own",
        )
    try:
        with _kept(device):
            yield
    finally:
        _held.release()


@contextmanager
def _kept(device: torch.device | None) -> Iterator[None]:
    """:func:`left_as_found`, where nobody else is."""
    gpu = device if device is not None and device.type == "cuda" else None
    threads, drawn, arrays = torch.get_num_threads(), random.getstate(), np.random.get_state()
    # back without a context on the GPU that was current, which would take memory there in each process of a run
    current = torch.cuda.device(gpu) if gpu is not None else nullcontext()
    variables = _variables()
    states = [kind._shared_state for kind in (AcceleratorState, PartialState, GradientState)]
    held = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        with current, torch.random.fork_rng(devices=[] if gpu is None else [gpu]), _products_kept():
            yield
    finally:
        for state, before in zip(states, held, strict=True):
            state.clear()
            state.update(before)
        for name in _variables().keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)
        random.setstate(drawn)
        np.random.set_state(arrays)
        torch.set_num_threads(threads)


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}


@contextmanager
def _products_kept() -> Iterator[None]:
    """The rounding of fp32 products and convolutions, by whichever of torch's two ways each was set.

    The older way refuses to tell what was set in the newer one.
    """
    host: Any = torch.backends.mkldnn  # half of them unknown to their types
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    products = _told(torch.get_float32_matmul_precision)
    newer = None if products is not None else (matmul.fp32_precision, host.matmul.fp32_precision)
    convolutions = _told(lambda: cudnn.allow_tf32)
    newer_too = None if convolutions is not None else (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision)
    try:
        yield
    finally:
        if newer is None:
            torch.set_float32_matmul_precision(products)
        else:
            matmul.fp32_precision, host.matmul.fp32_precision = newer
        if newer_too is None:
            cudnn.allow_tf32 = convolutions
        else:
            cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = newer_too


def _told(get: Callable[[], Any]) -> Any:
    try:
        return get()
    except RuntimeError:
        return None
