from __future__ import annotations

import copy
import errno
import pickle
import traceback
from collections.abc import Callable

import pytest
import torch

from vlsi_cli import errors
from vlsi_cli.errors import ConfigError, Interrupted, did_you_mean


def test_message_is_the_text_and_the_hint_is_apart() -> None:
    error = ConfigError("no such thing", hint="try another")
    assert (str(error), error.hint, error.exit_code) == ("no such thing", "try another", 2)


def test_a_traceback_shows_the_hint_as_it_is_at_last() -> None:
    """Who calls the engine from Python sees no message of the command line."""
    error = ConfigError("no such thing", hint="try another")
    error.add_note("said by somebody else")
    error.hint = "try this\nor that"
    again = pickle.loads(pickle.dumps(error))
    for each in (error, again, copy.copy(error)):
        shown = traceback.format_exception_only(each)
        assert [line.strip() for line in shown[1:]] == [
            "said by somebody else",
            "hint: try this",
            "hint: or that",
        ]
        assert each.hint == "try this\nor that"
    assert traceback.format_exception_only(ConfigError("no hint"))[1:] == []


def test_every_branch_has_its_own_code() -> None:
    kinds = errors.VlsiError.__subclasses__()
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(codes) == len(kinds)
    assert 0 not in codes


def test_interrupted_names_the_command_and_the_signal() -> None:
    error = Interrupted("stopped by SIGTERM", resume="vlsi distill --resume runs/demo-1", exit_code=143)
    assert error.exit_code == 143
    assert error.hint == "resume with: vlsi distill --resume runs/demo-1"
    assert Interrupted("stopped").hint is None


@pytest.mark.parametrize(
    ("word", "options", "near"),
    [
        ("dmo", ["demo", "demo-large"], "demo"),
        ("batchsize", ["batch_size", "steps"], "batch_size"),
        ("Qwen2-VL-2b", ["Qwen2-VL-72B", "Qwen2-VL-2B"], "Qwen2-VL-2B"),
        ("learning-rate", ["learning_rate"], "learning_rate"),
        ("zebra", ["demo", "other"], None),
        ("any", [], None),
    ],
)
def test_did_you_mean(word: str, options: list[str], near: str | None) -> None:
    assert did_you_mean(word, options) == near


def _caught(work: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as raised:
        work()
    return raised.value


def test_memory_that_ran_out_is_known_however_it_is_said() -> None:
    """Real errors where this machine can raise them; the words of the others as their sources have them."""
    real = [_caught(lambda: torch.empty(2**50)), _caught(lambda: bytearray(2**62))]
    said = [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
        ValueError("bad allocation: std::bad_alloc"),
    ]
    assert all(map(errors.is_out_of_memory, [*real, *said]))
    others = [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("shape"), ConfigError("memory")]
    assert not any(map(errors.is_out_of_memory, others))
    assert errors.first_line(MemoryError()) == "MemoryError"
