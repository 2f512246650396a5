"""The live display: drawn without error on a terminal, gone when the run ends."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from vlsi_cli import events as ev
from vlsi_cli.commands import _output, _progress, _progress_eval, _tables


def test_live_display_shows_losses_and_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, highlight=False, color_system=None)
    monkeypatch.setattr(_output, "speech", lambda: console)
    step = ev.StepDone("interaction", 3, 9, 3.25, {"2": 1.5, "last": 0.5}, {2: 14}, 1e-4, 0.7, 1234.0, None)
    with _progress.RunView() as view:
        view(ev.StageStarted("interaction", "small", 9, 8, first_step=2))
        view(step)
        assert view._live is not None
        view._live.refresh()
        view(ev.Note("a word in between"))
        view(ev.StageEnded("interaction", 75.0, 3.0))
        assert view._live is None
        view(ev.Evaluated("small after", 0.5, 1.0, 20))
    shown = stream.getvalue()
    for word in (
        "interaction (small)",
        "9 steps of 8 records, continuing after step 2",
        "3/9",
        "1.50",
        "14",
        "1,234",
        "a word in between",
        "1 min 15 s",
        "50.0 %",
    ):
        assert word in shown


def test_an_evaluation_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, highlight=False, color_system=None)
    monkeypatch.setattr(_output, "speech", lambda: console)
    with _progress_eval.EvaluationView() as view:
        view(ev.BenchmarkStarted("m[odel]", "mmmu", 12))
        view(ev.AnswersDone(5, 12))
        assert view._bar is not None
        view._bar.refresh()
        view(ev.Warn("a word in between"))
        view(ev.ScoringStarted("mmmu"))
        assert view._bar is None
        view(ev.BenchmarkEnded("m[odel]", "mmmu", 0.25, 12, 7, None))
        view(ev.BenchmarkStarted("m[odel]", "mmvet", 3))
    assert view._bar is None
    for word in (
        "m[odel] on mmmu",
        "5/12",
        "a word in between",
        "0.25 on 12 questions, 7 answers from before",
    ):
        assert word in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.4, "3 s"), (59.9, "1 min 00 s"), (75, "1 min 15 s"), (7400, "2 h 03 min"), (1e6, "11 days 13 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert _progress.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999"), (1234, "1.23k"), (73_405_560_320, "73.4B"), (999_900_000, "1000M")]
)
def test_counts(number: int, text: str) -> None:
    assert _tables.count(number) == text


def test_a_plain_line_each_few_seconds_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    _output.begin()
    with _progress.RunView() as view:
        view(ev.StageStarted("reinforcement", "small", 100, 8))
        for number in range(1, 101):
            now[0] += 1.0
            view(ev.StepDone("reinforcement", number, 100, 1.0, {"last": 1.0}, None, 1e-4, 1.0, 10.0, 5.0))
        view(ev.CheckpointSaved(Path("c"), "reinforcement", 100))
    lines = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("reinforcement ") and "loss" in line
    ]
    assert [int(line.split("/")[0].split()[1]) for line in lines] == [
        1,
        11,
        21,
        31,
        41,
        51,
        61,
        71,
        81,
        91,
        100,
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "variables", "moves"),
    [
        (Terminal, {}, True),
        (Terminal, {"CI": "true"}, False),
        (Terminal, {"CI": "false"}, True),
        (Terminal, {"TERM": "dumb"}, False),
        (io.StringIO, {}, False),
        (io.StringIO, {"FORCE_COLOR": "1"}, False),
    ],
)
def test_bars_move_only_where_somebody_looks(
    stream: type[io.StringIO], variables: dict[str, str], moves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CI", "FORCE_COLOR", "NO_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"TERM": "xterm"} | variables).items():
        monkeypatch.setenv(name, value)
    shown = stream()
    monkeypatch.setattr("sys.stderr", shown)
    with _progress.RunView() as run:
        run(ev.StageStarted("interaction", "small", 9, 8, first_step=0))
    with _progress_eval.EvaluationView() as view:
        view(ev.BenchmarkStarted("m", "mmmu", 12))
    assert ("\r" in shown.getvalue()) is moves
    assert "interaction (small): 9 steps of 8 records" in shown.getvalue()


def test_tables_in_a_log_are_wide_whatever_its_colours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    table = _tables.new_table("Scores", *(f"column-{number:02}" for number in range(14)))
    table.add_row(*(f"value-{number:02}" for number in range(14)))
    _output.data(table)
    assert len(capsys.readouterr().out.splitlines()) == 3, "title, names, values: not turned on its side"


def test_a_log_of_a_long_evaluation_stays_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hours of answers, ten a second: a line every ten seconds for ten minutes, then one a minute."""
    clock, shown = iter(range(10_000)), io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    with _progress_eval.EvaluationView() as view:
        view(ev.BenchmarkStarted("m", "mmmu", 72_000))
        for second in range(7200):
            view(ev.AnswersDone(10 * second, 72_000))
    assert shown.getvalue().count(" answers\n") == pytest.approx(60 + 110, abs=2)
