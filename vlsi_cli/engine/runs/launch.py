"""Start a command in several processes, by torchrun's own launcher, and end as they end."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from vlsi_cli.config.launching import Count
from vlsi_cli.engine import peers
from vlsi_cli.errors import ConfigError, ProcessError

#: Signals that torchrun hands on to the processes, each of which then saves and ends.
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")
#: Seconds that they get for it before they are killed: the checkpoint of a large model takes its time.
PATIENCE = 900
#: How long all processes may have ended without the launcher's noticing, and how often that is looked for.
STUCK, LOOK = timedelta(seconds=60), timedelta(seconds=5)
#: How words of torchrun begin that say where processes meet.
_MEETS = ("rdzv", "master", "standalone")
_MEETING = (
    "see what the other machines say; each needs the same command. Where that one does not know itself by this name or "
    "address, give it with --master-addr and --master-port instead, and --node-rank 0, 1, ... on each"
)


def launch(processes: Count, words: Sequence[str], launcher: Sequence[str] = ()) -> int:
    """Run ``vlsi WORDS`` in several processes on this machine, or as this machine's part of several.

    Standard input, output and error are theirs; only the first of them speaks. Ctrl-C and the other signals of
    :data:`SIGNALS` reach all of them.

    Args:
        processes: how many on this machine; ``auto``: one a GPU, or one where there is none.
        words: the command line behind ``vlsi``.
        launcher: more for torchrun, such as ``--nnodes 2 --rdzv-endpoint host:29400``.

    Returns:
        The exit code of the process that failed first, 0 when none did, 128 and its number after a signal.

    Raises:
        ConfigError: an argument that torchrun does not have.
        ProcessError: one was killed, and none of the others could say so; or the machines did not meet.
    """
    with _mute():
        import torch
        from torch.distributed import DistError, DistStoreError, run
        from torch.distributed.elastic.multiprocessing import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousTimeoutError

    count = processes if processes != "auto" else max(torch.cuda.device_count(), 1)
    parser = run.get_args_parser()
    known = parser.format_help()
    own = [f"--nproc-per-node={count}"]
    if "--shutdown-timeout" in known:  # torch 2.13 and newer; older ones wait half a minute
        own.append(f"--shutdown-timeout={PATIENCE}")
    if "--signals-to-handle" in known:
        own.append(f"--signals-to-handle={','.join(SIGNALS)}")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            arguments = parser.parse_args([*own, *launcher, "--module", "vlsi_cli", *words])
    except SystemExit:
        cause = complaint.getvalue().strip().splitlines()[-1:] or ["they are not torchrun's"]
        raise ConfigError(
            f"the launcher's arguments after -- cannot be used: {cause[0].split('error: ')[-1]}",
            hint="`torchrun --help` lists them",
        ) from None
    if arguments.training_script != "vlsi_cli":
        raise ConfigError(
            f"'{arguments.training_script}' after -- is not an argument of torchrun",
            hint="`torchrun --help` lists them",
        )
    if _is_alone(arguments) and not any(word.strip("-").startswith(_MEETS) for word in launcher):
        arguments.standalone = True  # else some versions meet at one port for all, where another run may be
    # It would tell of every process that ended what that process has told itself. Its loggers have levels of their own.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    threads = max((os.cpu_count() or 1) // count, 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    try:
        with _not_stuck():
            run.run(arguments)
    except ChildFailedError as failed:
        ended = _by_time(failed.failures)
        mute = any(each.local_rank == 0 and each.exitcode < 0 for each in ended)
        if mute and all(each.exitcode < 0 or each.exitcode == ProcessError.exit_code for each in ended):
            lost = next(each for each in ended if each.exitcode < 0)
            here = "" if _is_alone(arguments) else " on this machine"
            raise ProcessError(
                f"process {lost.local_rank} of {count}{here} was ended by "
                f"{signal.Signals(-int(lost.exitcode)).name}",
                hint="the kernel's log says if memory ran out; what was written is kept",
            ) from None
        return _cause([int(each.exitcode) for each in ended])
    except (RendezvousTimeoutError, DistStoreError):  # the second: where machines were numbered by hand
        raise ProcessError(
            f"{arguments.nnodes} machines were to meet at {_place(arguments)}, and did not within the time for it",
            hint=_MEETING,
        ) from None
    except (RendezvousError, DistError) as error:
        raise ProcessError(
            f"the launcher at {_place(arguments)}, where the machines of this run meet, cannot be reached, or has "
            "ended",
            hint=_MEETING,
        ) from error
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


@contextlib.contextmanager
def _not_stuck() -> Iterator[None]:
    """Let the launcher end after its processes even where it waits for the answer of a machine that is gone.

    It asks the store several times a second, and the system may hope for an answer for a quarter of an hour.
    """
    over = threading.Event()

    def look() -> None:
        times = 0  # not by the clock: the launcher may have been stopped with its job meanwhile
        while not over.wait(LOOK.total_seconds()):
            codes = peers.children_ended()
            times = 0 if codes is None else times + 1
            if codes is not None and times > STUCK / LOOK:
                os._exit(_cause(codes))

    threading.Thread(target=look, name="not stuck", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _is_alone(arguments: Any) -> bool:
    return str(arguments.nnodes) in ("1", "1:1")


def _place(arguments: Any) -> str:
    """Where the machines meet, in torchrun's two ways of saying it."""
    return str(arguments.rdzv_endpoint or f"{arguments.master_addr}:{arguments.master_port}")


@contextlib.contextmanager
def _mute() -> Iterator[None]:
    """Import torch so that its C++ side keeps its traces to itself; only here: the processes may say what they like."""
    name = "TORCH_CPP_LOG_LEVEL"
    if name in os.environ or "torch" in sys.modules:
        yield
        return
    os.environ[name] = "FATAL"  # whatever fails is raised as an error too
    try:
        yield
    finally:
        del os.environ[name]


def _by_time(failures: dict[int, Any]) -> list[Any]:
    return [failures[rank] for rank in sorted(failures, key=lambda r: (failures[r].timestamp, r))]


def _cause(codes: list[int]) -> int:
    """The code that says why: not that of a process that was ended, or lost another; signals are negative here."""
    own = [code for code in codes if code > 0 and code != ProcessError.exit_code]
    code = [*own, *filter(None, codes), 0][0]
    return code if code >= 0 else 128 - code
