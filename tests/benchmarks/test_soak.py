"""The soak: its lines, and one run of seconds that is watched and stopped."""

from __future__ import annotations

import sys

import pytest

from benchmarks import soak


def test_a_line_and_its_error() -> None:
    """A slope by hand; residuals that stay on one side for long count for fewer points."""
    hours = [n / 60 for n in range(24)]
    line = soak.fit(hours, [3 + 2 * hour for hour in hours])
    assert (line.slope, line.error) == (pytest.approx(2), pytest.approx(0, abs=1e-9))
    shaking = soak.fit(hours, [(-1) ** n for n in range(24)])
    stepping = soak.fit(hours, [1 if n < 6 or n >= 18 else -1 for n in range(24)])
    assert abs(shaking.slope) < 2 * shaking.error
    assert stepping.error > 2 * shaking.error
    with pytest.raises(ValueError, match="three points, not 2"):
        soak.fit([0, 1], [0, 1])


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_one_run_is_watched_and_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = ["soak.py", "--minutes", "0.1", "--window", "1", "--stage", "verbalization"]
    monkeypatch.setattr(sys, "argv", program)
    soak.main()
    shown = capsys.readouterr().out
    assert "minutes of verbalization in one run" in shown
    assert "| resident memory, MiB |" in shown
