"""JSON documents: the keys that docs/reference/json.md names are those that commands print, and any reader can read."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vlsi_cli.app import app
from vlsi_cli.commands import _output

PAGE = (Path(__file__).resolve().parents[2] / "docs/reference/json.md").read_text(encoding="utf-8")


def named(title: str) -> set[str]:
    """The keys that a section of the page has in its table."""
    section = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert section is not None
    return set(re.findall(r"^\| `(\w+)` \|", section[1], flags=re.MULTILINE))


def printed(command: str) -> Any:
    done = CliRunner().invoke(app, [*command.split(), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_plan() -> None:
    keys, title = named("`vlsi distill --dry-run`, `vlsi plan`"), "distill --dry-run"
    assert set(printed(title)) == keys | {"settings", "problem"}
    plan = printed("plan --device h100")
    assert set(plan) == keys | {"settings", "devices"}
    assert set(plan["devices"][0]) == named("Placement") | named("Advice")
    assert set(plan["stages"][0]) == named("StagePlan")
    assert set(plan["stages"][0]["memory"]) == named("Memory")
    assert set(plan["student"]) == named("SidePlan")
    assert set(plan["student"]["facts"]) == named("ModelFacts")


def test_a_preview() -> None:
    record = printed("data preview --data patterns")
    assert set(record) == named("`vlsi data preview`")
    assert set(record["pieces"][0]) == named("Piece")


def test_a_preview_reads_data_of_ones_own_by_the_defaults(tmp_path: Path) -> None:
    """Not by the demo's recipe, whose records are short, with `--set` or without."""
    file = tmp_path / "long.jsonl"
    talk = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "word " * 600}]
    file.write_text(json.dumps({"messages": talk}))
    plain, changed = (printed(f"data preview {file}{more}") for more in ("", " --set data.shuffle=false"))
    assert plain == changed
    assert plain["tokens"] > 512


def test_answers(tmp_path: Path) -> None:
    asked = f"data answer patterns --limit 1 --replace --model demo/large --output {tmp_path / 'out.jsonl'}"
    assert set(printed(asked)) == named("`vlsi data answer`")
    assert set(printed(f"{asked} --dry-run")) == named("`vlsi data answer --dry-run`")


def test_lists() -> None:
    assert all(f"`{key}`" in PAGE for key in printed("eval --list")[0])
    assert all(f"`{key}`" in PAGE for key in (*printed("recipes ls")[0], *printed("recipes check")[0]))


def test_numbers_that_json_lacks_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    _output.document({"loss": [1.5, math.nan, -math.inf], "where": Path("a")})
    text = capsys.readouterr().out
    assert json.loads(text, parse_constant=pytest.fail) == {"loss": [1.5, None, None], "where": "a"}
