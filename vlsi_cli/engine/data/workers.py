"""Records read, decoded and encoded in other processes, ahead of the step that needs them.

Processes rather than threads: templates and image processors run much Python, and a thread that runs Python stops the
one that launches the model's kernels. They are forked from a server process that holds no thread and no device, so they
may be started at any time. A worker ends with the process that started it, however that one ends.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from vlsi_cli.engine.data.apart import FORKSERVER, ApartContext
from vlsi_cli.engine.data.records import BadRecord, Record
from vlsi_cli.engine.data.schedule import Draw, RecordSource
from vlsi_cli.errors import DataError

Item = TypeVar("Item")
Value = TypeVar("Value")
Out = TypeVar("Out", covariant=True)

#: Bytes from which on a record's tensors travel in shared memory; smaller ones are copied through a pipe sooner.
SHARED_FROM = 1 << 18
_ALIGNMENT = 64
#: A scheduler sends them to all processes of a job, a terminal to all it started; the one that trains acts on them.
_NOT_OURS = {
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
}


@dataclass(frozen=True)
class Reader(Generic[Item]):
    """What is done with a draw, here or in a worker.

    Attributes:
        sources: by number; None for one whose records come with their draws.
        encode: what is made of a record; raises BadRecord for one that cannot be used.
        measure: the length of what ``encode`` would make, found without decoding pixels; raises BadRecord.
    """

    sources: Sequence[RecordSource | None]
    encode: Callable[[Record], Item]
    measure: Callable[[Record], int]

    def read(self, draw: Draw) -> Item | BadRecord:
        """The encoded record, or why there is none."""
        return self._made(draw, self.encode)

    def length(self, draw: Draw) -> int | BadRecord:
        """The record's length in tokens, or why it has none."""
        return self._made(draw, self.measure)

    def _made(self, draw: Draw, make: Callable[[Record], Value]) -> Value | BadRecord:
        try:
            record = draw.record
            if record is None:
                source = self.sources[draw.source]
                assert source is not None
                record = source.read(draw.index, draw.epoch)
            return record if isinstance(record, BadRecord) else make(record)
        except BadRecord as bad:
            return bad


class Pending(Protocol[Out]):
    """Something that is being made."""

    def result(self) -> Out:
        """It, once it is there.

        Raises:
            DataError: a worker has ended before its time.
        """

    def cancel(self) -> None:
        """It is not needed any more."""


class Workers:
    """Processes that each have a copy of one object and do its work; without any, it is done here when it is asked for.

    Args:
        doer: what works. It and what it is given have to be picklable, and what it makes too.
        count: processes; started when the first work is given to them.
    """

    def __init__(self, doer: object, count: int = 0) -> None:
        self._doer, self.count = doer, count
        self._executor: ProcessPoolExecutor | None = None
        if count:
            self._prepare()

    def give(self, what: str, *given: Any) -> Pending[Any]:
        """What a method of the object makes of what it is given."""
        if not self.count:
            return _Here(lambda: getattr(self._doer, what)(*given))
        try:
            if self._executor is None:
                self._executor = self._start()
            return _There(self._executor.submit(_work, what, *given))
        except BrokenProcessPool as error:
            raise _ended() from error

    def close(self) -> None:
        """End the processes; what they have begun is thrown away."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)

    def _prepare(self) -> None:
        """Let the server that workers are forked from begin to import what they need, which takes seconds."""
        packed = io.BytesIO()
        pickler = _ModulesPickler(packed)
        pickler.dump(self._doer)
        self._packed = packed.getvalue()
        self._context: Any = ApartContext()
        if FORKSERVER:
            self._context.set_forkserver_preload([__name__, *sorted(pickler.modules)])
            with _deaf():
                resource_tracker.ensure_running()
            with _deaf():  # again: that one opens SIGTERM
                forkserver.ensure_running()

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.count, mp_context=self._context, initializer=_set_up, initargs=(self._packed,)
        )


class Pool(Generic[Item]):
    """Workers that read draws; without any (``count`` 0), draws are read here when they are asked for.

    Args:
        reader: what they do.
        count: worker processes; started when the first draw is given to them.
    """

    def __init__(self, reader: Reader[Item], count: int = 0) -> None:
        self.count = count
        if count:
            # A stream is read here, and its records are sent with their draws.
            away = [None if source is None or source.streamed else source for source in reader.sources]
            reader = Reader(away, reader.encode, reader.measure)
        self._workers = Workers(reader, count)

    def read(self, draw: Draw) -> Pending[Item | BadRecord]:
        """The encoded record of a draw."""
        return self._workers.give("read", draw)

    def length(self, draw: Draw) -> Pending[int | BadRecord]:
        """The length of a draw's record."""
        return self._workers.give("length", draw)

    def close(self) -> None:
        """End the workers; what they have begun is thrown away."""
        self._workers.close()


class _Here(Generic[Value]):
    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make

    def result(self) -> Value:
        return self._make()

    def cancel(self) -> None:
        pass


class _There:
    """What a worker makes. It is taken out of shared memory as it arrives: each piece of that is an open file."""

    def __init__(self, future: Future[_Parcel]) -> None:
        self._future: Future[_Parcel] | None = future
        self._opened: Future[Any] = Future()
        future.add_done_callback(self._arrived)

    def _arrived(self, future: Future[_Parcel]) -> None:
        self._future = None
        try:
            self._opened.set_result(future.result().open())
        except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
            self._opened.set_exception(error)

    def result(self) -> Any:
        try:
            return self._opened.result()
        except BrokenProcessPool as error:
            raise _ended() from error

    def cancel(self) -> None:
        future = self._future
        if future is not None:
            future.cancel()


def _ended() -> DataError:
    return DataError(
        "a process that reads data ended unexpectedly: it was killed, ran out of memory, or a library crashed in it",
        hint="fewer workers (data.workers, or --workers) and a smaller data.prefetch need less memory; with 0 workers "
        "there are no such processes",
    )


@contextmanager
def _deaf() -> Iterator[None]:
    """What is started inside the block does not hear the signals that are meant for the process that trains."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_OURS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---------------------------------------------------------------- in a worker


_doer: Any = None


def _set_up(doer: bytes) -> None:
    global _doer  # the only state that a worker has
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C goes to all; the process that trains ends the others
    parent = multiprocessing.parent_process()
    assert parent is not None
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_OURS)
        threading.Thread(target=_end_when_told, args=(parent.pid,), daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):  # who sends SIGTERM cannot be known
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)  # as many workers as wanted, not as many times the cores
    _doer = pickle.loads(doer)
    if transformers := sys.modules.get("transformers"):
        transformers.logging.set_verbosity_error()  # it would speak into the run's progress


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _end_when_told(parent: int) -> None:
    """Heed SIGTERM from the process that trains only: schedulers send it to every process of a job at once."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(1)


def _work(what: str, *given: Any) -> _Parcel:
    return _Parcel.of(getattr(_doer, what)(*given))


class _ModulesPickler(pickle.Pickler):
    """Notes where the classes of what it pickles are defined."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.modules: set[str] = set()

    def reducer_override(self, thing: Any) -> Any:
        self.modules.add((thing if isinstance(thing, type) else type(thing)).__module__)
        return NotImplemented


class _Pickler(pickle.Pickler):
    """Tensors as arrays, whose memory can travel apart."""

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, Tensor):
            return torch.from_numpy, (thing.numpy(),)
        return NotImplemented


@dataclass(frozen=True)
class _Parcel:
    """A value on its way: everything but its tensors pickled, and the tensors' bytes, in shared memory if many."""

    frame: bytes
    sizes: tuple[int, ...]
    body: Tensor | np.ndarray[Any, Any]

    @classmethod
    def of(cls, value: Any) -> _Parcel:
        frame, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
        _Pickler(frame, protocol=5, buffer_callback=buffers.append).dump(value)
        parts = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
        sizes = tuple(len(part) for part in parts)
        total = sum(map(_padded, sizes))
        body = torch.empty(total, dtype=torch.uint8)
        if total >= SHARED_FROM:
            with suppress(RuntimeError):  # little shared memory, as in many containers: through the pipe then
                body.share_memory_()
        room, start = body.numpy(), 0
        for part in parts:
            room[start : start + len(part)] = part
            start += _padded(len(part))
        return cls(frame.getvalue(), sizes, body if body.is_shared() else room)

    def open(self) -> Any:
        """The value, in memory of its own."""
        whole = self.body.clone().numpy() if isinstance(self.body, Tensor) else self.body
        views, start = [], 0
        for size in self.sizes:
            views.append(whole[start : start + size].data)
            start += _padded(size)
        return pickle.loads(self.frame, buffers=views)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
