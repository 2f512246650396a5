"""What docs/python.md shows of evaluation; beside the other tests that need the harness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vlsi_cli
from tests.evaluation import needs_harness
from tests.python.kit import shown
from vlsi_cli.errors import ConfigError, ModelError

pytestmark = needs_harness


def test_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    held: dict[str, Any] = {"vlsi": vlsi_cli}
    (code,) = [code for code, need in shown() if need == "lmms_eval"]
    drawn = np.random.get_state(legacy=False)["state"]
    exec(code, held)
    (result,) = held["scores"].results
    assert (result.model, result.benchmark, result.n) == ("demo/small", "patterns", 3)
    assert result.score is not None
    assert (tmp_path / "runs/eval/report.json").is_file()
    said = capsys.readouterr()
    assert said.out.startswith("demo/small patterns ")
    assert said.err == ""
    np.testing.assert_equal(np.random.get_state(legacy=False)["state"], drawn)  # the harness seeds it
    vlsi_cli.evaluate("demo/small", limit=1, output="runs/eval", batch_size=1, events=print)
    told = [line.partition("(")[0] for line in capsys.readouterr().out.splitlines()]
    assert told[0] == "BenchmarkStarted"
    assert "BenchmarkEnded" in told  # while the harness's own words go to a file
    assert "BenchmarkEnded" not in (tmp_path / "runs/eval/harness.log").read_text()
    with pytest.raises(ConfigError, match="unknown key 'limt'") as caught:
        vlsi_cli.evaluate(limt=3)
    assert caught.value.hint == "did you mean limit?"
    with pytest.raises(ConfigError, match="limit: input should be greater than 0"):
        vlsi_cli.evaluate(limit=0)
    with pytest.raises(ModelError, match="there is no such folder"):
        vlsi_cli.evaluate(tmp_path / "nothing", output=tmp_path / "other")
    assert not (tmp_path / "other").exists()
