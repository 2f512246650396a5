"""docs/python.md does what it says: its blocks run one after the other, and its names are those of the package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import vlsi_cli
from tests.invariants.tree import ROOT
from tests.python.kit import TEXT, shown


def test_the_blocks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    held: dict[str, Any] = {}
    ran = [exec(code, held) for code, need in shown() if need is None]
    assert len(ran) == TEXT.count("\n```python\n") - 1  # that of the evaluation has a test of its own
    said = capfd.readouterr()
    assert "did you mean steps?" in said.out
    # those are transformers' own, where the page itself loads models with it
    assert [line for line in said.err.split("\n") if line.strip() and "Loading weights" not in line] == []

    stages = [each["stage"] for each in held["curve"]]
    assert stages == ["verbalization"] * 4 + ["interaction"] * 3 + ["reinforcement"] * 2
    assert held["report"].student == Path("runs/first/student")
    assert held["reader"].layers == (1, 3, 5, 6)
    assert held["reader"].verbalizers is not None
    assert held["lens"].verbalizers is None
    assert tuple(held["tuned"].layers) == (2, 4, 6)
    assert held["tuned"].verbalizers == Path("runs/lens/verbalizers/small")
    assert [each.layer for each in held["found"].layers] == [1, 3, 5, 6]
    assert all(len(each.candidates) == 3 for each in held["found"].candidates)
    tokens = len(held["states"].targets)
    assert held["of_the_response"].shape == (4, tokens)
    assert held["everything"].shape == (tokens, held["states"].vocabulary)
    assert held["watched"].layers == (3, 5, 6)
    assert held["seen"][0].shape == (3,)
    assert not torch.equal(*held["seen"])
    assert held["model"].training
    taken = vlsi_cli.load_layers(held["model"], processor="runs/first/student", verbalizers="runs/first")
    assert (taken.verbalizers, taken.later_head) == (Path("runs/first/verbalizers/small-after"), True)
    assert held["divergences"].shape == (3, 5)
    assert held["mean"].shape == (4, 6)
    assert len(held["losses"]) == len(held["matches"]) == 3
    assert held["run"].finished


def test_the_page_names_what_is_public() -> None:
    table = TEXT.rpartition("| for | names |")[2]
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(vlsi_cli.__all__)


def test_every_public_name_is_there_and_typed() -> None:
    """What programs look up is what type checkers are told."""
    source = (ROOT / "vlsi_cli/__init__.py").read_text(encoding="utf-8")
    told = set(re.findall(r"import (\w+) as \1$", source, flags=re.MULTILINE))
    assert told == set(vlsi_cli.__all__) - {"__version__"}
    for name in vlsi_cli.__all__:
        assert getattr(vlsi_cli, name) is not None
        assert name in dir(vlsi_cli)
    with pytest.raises(AttributeError, match="has no attribute 'distil'"):
        vlsi_cli.distil  # noqa: B018
