"""Signals as a wish: what counts, what comes twice, and what is put back."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vlsi_cli.engine.runs.stopping import keeping_answers
from vlsi_cli.engine.training.signals import HEEDED, heed_signals
from vlsi_cli.errors import Interrupted


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_each_becomes_a_wish_with_its_exit_code(number: str, code: int) -> None:
    before = [signal.getsignal(each) for each in HEEDED]
    with heed_signals() as wish:
        assert wish.signal is None
        signal.raise_signal(signal.Signals[number])
        assert wish.signal == signal.Signals[number]
        assert wish.exit_code == code
    assert [signal.getsignal(each) for each in HEEDED] == before


def test_what_schedulers_send_may_come_again_and_the_first_counts() -> None:
    with heed_signals() as wish:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            signal.raise_signal(number)
        assert wish.exit_code == 138


def test_a_second_ctrl_c_stops_at_once() -> None:
    with heed_signals() as wish:
        signal.raise_signal(signal.SIGTERM)
        assert wish.signal is not None
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_handler_that_python_does_not_know_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a program written in C, which Python runs inside of, has installed its own: it cannot be put back."""
    known = signal.getsignal

    def getsignal(number: int) -> object:
        return None if number == signal.SIGINT else known(number)

    before = known(signal.SIGINT)
    monkeypatch.setattr(signal, "getsignal", getsignal)
    with heed_signals() as wish:
        assert known(signal.SIGINT) is before
        signal.raise_signal(signal.SIGTERM)
        assert wish.exit_code == 143
    assert known(signal.SIGINT) is before


def test_work_that_is_told_to_end_twice_ends_in_order() -> None:
    """As where a scheduler tells all processes of a job, and the launcher among them passes it on."""
    whole: list[str] = []

    @contextmanager
    def held() -> Iterator[None]:
        try:
            yield
        finally:
            signal.raise_signal(signal.SIGTERM)
            whole.append("closed")

    with pytest.raises(Interrupted) as caught, keeping_answers(), held():
        signal.raise_signal(signal.SIGTERM)
    assert (caught.value.exit_code, whole) == (143, ["closed"])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
