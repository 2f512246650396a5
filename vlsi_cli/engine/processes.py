"""The processes of a run, one a GPU: who this one is, and how they stay in step.

torchrun and `accelerate launch` start them; :func:`join` makes them a group (NCCL between GPUs, gloo on the host). What
is exchanged here are small host values, over gloo: counts, wishes, errors. Gradients and weights are moved by torch's
own engines. Without a launcher everything here is the identity, and nothing is exchanged.

A run of several processes must not hang, so whatever one process decides alone is made common before it is acted upon:
:func:`together` for a block that may fail anywhere, :func:`on_first` for what the first process does for all.
"""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from vlsi_cli.config import launching
from vlsi_cli.engine import peers
from vlsi_cli.engine.meeting import meeting_place
from vlsi_cli.errors import ConfigError, ProcessError, VlsiError, first_line
from vlsi_cli.events import Events, Lost, ignore

Value = TypeVar("Value")


class Terminated(BaseException):
    """To be raised where the launcher ends this process in order, which it does when another one was killed."""


#: How long a process waits for the others: the first may be writing the checkpoint of a large model meanwhile.
PATIENCE = timedelta(hours=2)
#: How long one waits for another's last words: on a busy machine that one may be far behind.
MOMENT = timedelta(seconds=15)
#: How often a process looks whether its launcher is still there.
LOOK = timedelta(seconds=1)
_ORPHANED = "the launcher of this run was killed"


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else launching.rank()


def size() -> int:
    """Processes of this run."""
    return distributed.get_world_size() if distributed.is_initialized() else launching.size()


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def own_device(device: torch.device, *, chosen: bool) -> torch.device:
    """The device of this process: on a machine with several processes each has a GPU of its own.

    Args:
        device: what the configuration resolves to.
        chosen: whether it names one GPU, ``cuda:1``.

    Raises:
        ConfigError: several processes were to share a GPU.
    """
    if size() == 1 or device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ConfigError(f"several processes cannot share the device '{device}'", hint="use --processes 1")
    if chosen:
        raise ConfigError(
            f"device '{device}' was asked for, but each of {size()} processes needs a GPU of its own",
            hint="use device: auto or cuda, and CUDA_VISIBLE_DEVICES to choose GPUs",
        )
    count = torch.cuda.device_count()
    if launching.local_rank() >= count:
        raise ConfigError(
            f"process {launching.local_rank() + 1} of this machine has no GPU of its own: it has {count}",
            hint="start as many processes as there are GPUs (--processes auto), or use device: cpu",
        )
    return torch.device("cuda", launching.local_rank())


@contextmanager
def joined(device: torch.device, patience: timedelta = PATIENCE, events: Events = ignore) -> Iterator[None]:
    """Be one of the run's processes inside the block, which ends for all of them together; then the group is dissolved.

    Errors of the block that belong to this process alone are marked with its number, so that it, which is otherwise
    silent, tells them; one that the first process has too is left to that. A lost connection to another process, which
    is what its end looks like, becomes one sentence.

    Args:
        device: where this process computes.
        patience: how long a process waits for the others.
        events: told of the loss of another machine, after which this process is ended.

    Raises:
        ProcessError: the others cannot be reached, or one has ended before its time.
    """
    if size() == 1 or distributed.is_initialized():
        yield
        return
    with ending_with_the_launcher() as orphaned, _group(device, patience, orphaned, events):
        yield


@contextmanager
def _group(
    device: torch.device, patience: timedelta, orphaned: threading.Event, events: Events
) -> Iterator[None]:
    """:func:`joined`, of several processes."""
    backend, own = ("cpu:gloo,cuda:nccl", device) if device.type == "cuda" else ("gloo", None)
    store: Any = None
    watched = ExitStack()
    try:
        store, number, count = meeting_place(peers.COMING)
        peers.meet(store, number, count)
        store.set_timeout(patience)
        # over a connection of its own: whoever waits in the store keeps others from using the same one
        end = partial(_end, events=events)
        watched.callback(peers.watch(store.clone(), number, count, end, distributed.is_initialized))
        distributed.init_process_group(
            backend, timeout=patience, store=store, rank=number, world_size=count, device_id=own
        )
    except (ValueError, RuntimeError) as error:
        if orphaned.is_set():
            raise ProcessError(_ORPHANED) from error
        problem = ProcessError(
            f"the {size()} processes of this run cannot reach each other: {first_line(error)}",
            hint="start them with --processes, torchrun or accelerate launch; on several machines, name the network "
            "interface that they share in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME",
        )
        if store is not None:  # the others may be waiting for this one
            _tell(store, str(problem))
            problem.process = rank()  # another one may not know why
        watched.close()
        raise problem from error
    except BaseException:
        watched.close()
        raise
    orderly = False
    try:
        yield
        orderly = True
    except VlsiError as error:
        orderly = error.shared
        if not error.shared:
            _tell(store, str(error))
            if rank() > 0 and _told(store, 0) == str(error):
                error.shared = True
            else:
                error.process = rank()
        raise
    except BaseException as error:
        if not isinstance(error, Terminated) and not (isinstance(error, RuntimeError) and _is_lost(error)):
            _tell(store, str(error))
            raise
        if orphaned.is_set():  # who kept the store
            raise ProcessError(_ORPHANED) from error
        lost = ProcessError(
            "this run was told to end, or another process of it was killed"
            if isinstance(error, Terminated)
            else "another process of this run was killed, and the run cannot go on without it",
            hint="the kernel's log says if memory ran out; then go on from the last checkpoint",
        )
        lost.told = _any_told(store)
        raise lost from error
    finally:
        if orderly:  # else the others wait somewhere, and this process must end for the launcher to end them
            with suppress(Terminated):  # what was to be done is done
                peers.part(store, number, count)
            watched.close()
            distributed.destroy_process_group()


@contextmanager
def ending_with_the_launcher() -> Iterator[threading.Event]:
    """Inside the block, be told to end (SIGTERM) when the launcher was killed, which could not say so any more.

    Else its processes would go on unseen, and keep GPUs and the run folder from whoever starts the run again.

    Yields:
        what is set when that has happened.

    Raises:
        ProcessError: it had happened before.
    """
    over, orphaned = threading.Event(), threading.Event()
    if launching.is_orphaned():
        raise ProcessError(_ORPHANED)

    def look() -> None:
        while not over.wait(LOOK.total_seconds()):
            if launching.is_orphaned():
                orphaned.set()
                os.kill(os.getpid(), signal.SIGTERM)
                return

    if launching.is_launched():
        threading.Thread(target=look, name="launcher", daemon=True).start()
    try:
        yield orphaned
    finally:
        over.set()


def gather(value: Value) -> list[Value]:
    """What every process has for ``value``, in their order: a small picklable object."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    distributed.all_gather_object(found, value)
    return found


def gather_ints(values: Sequence[int]) -> list[list[int]]:
    """A few whole numbers of every process, as many from each: quicker than :func:`gather`."""
    if size() == 1:
        return [list(values)]
    own = torch.tensor(list(values), dtype=torch.int64)
    found = [torch.empty_like(own) for _ in range(size())]
    distributed.all_gather(found, own)
    return [each.tolist() for each in found]


def add_up(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on its device; the same tensor when there is one."""
    if size() == 1:
        return tensor
    total = tensor.detach().clone()
    distributed.all_reduce(total)
    return total


def add_up_alike(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on the host and with the same bits on each of them.

    An all-reduce promises no such thing: its algorithm may add the parts in another order for each process. Here all
    parts go to all processes, still in one exchange, and each adds them in their order.
    """
    if size() == 1:
        return tensor.cpu()
    own = tensor.detach().contiguous()
    found = [torch.empty_like(own) for _ in range(size())]
    distributed.all_gather(found, own)
    first, *others = (part.cpu() for part in found)
    for part in others:
        first = first + part
    return first


def wait() -> None:
    """Go on when every process has come here."""
    gather_ints([0])


def on_first(work: Callable[[], Value]) -> Value:
    """Let the first process do something, and give every process what came of it.

    Args:
        work: may raise a VlsiError, which every process then raises; its result is small and picklable.
    """
    if size() == 1:
        return work()
    held: list[Any] = [None, None]
    if is_first():
        try:
            with peers.undisturbed():
                held[0] = work()
        except VlsiError as error:
            held[1] = error
    mine = held[1]
    distributed.broadcast_object_list(held, src=0)
    if held[1] is not None:
        raise _shared(mine or held[1])
    result: Value = held[0]
    return result


@contextmanager
def together() -> Iterator[None]:
    """A block in which each process may fail by itself: when it ends, all have failed or none.

    The error of the first process that has one is everybody's. Inside the block nothing may be exchanged after the
    place that can fail.
    """
    mine: VlsiError | None = None
    try:
        yield
    except VlsiError as error:
        if error.shared or size() == 1:
            raise
        mine = error
    if not any(flag for (flag,) in gather_ints([mine is not None])):
        return
    found = [error for error in gather(mine) if error is not None]
    raise _shared(mine if mine is not None and str(mine) == str(found[0]) else found[0])


def _shared(error: VlsiError) -> VlsiError:
    """The error, known to all processes: the first tells it."""
    known = copy.copy(error)
    known.__cause__, known.__traceback__ = error.__cause__, error.__traceback__
    known.shared = True
    return known


def _end(problem: ProcessError | None, events: Events) -> None:
    """End this process at once; what is to be said of it is said first."""
    if problem is not None:
        problem.process = rank()
    peers.end(problem, lambda: None if problem is None else events(Lost(problem)))


def _tell(store: Any, text: str) -> None:
    """Let the others know that this process ends with a message of its own."""
    with suppress(RuntimeError):  # whoever keeps the store may have ended too
        store.set(f"vlsi/told/{rank()}", text)
        store.set(peers.ENDED, str(rank()))


def _told(store: Any, number: int) -> str | None:
    """What a process said before it ended; one that ends in the same way does so within a moment."""
    key, end = f"vlsi/told/{number}", time.monotonic() + MOMENT.total_seconds()
    with suppress(RuntimeError):
        while not store.check([key]):  # `wait` would write its own words about a timeout to standard error
            if time.monotonic() > end:
                return None
            time.sleep(0.05)
        return str(store.get(key).decode())
    return None


def _any_told(store: Any) -> bool:
    with suppress(RuntimeError):
        return any(store.check([f"vlsi/told/{number}"]) for number in range(size()))
    return False


def _is_lost(error: RuntimeError) -> bool:
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "NCCL")
    return isinstance(error, distributed.DistError) or any(sign in str(error) for sign in signs)
