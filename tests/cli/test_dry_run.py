"""``vlsi distill --dry-run``: the whole plan, offline, and the exit code that the run would have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.hub_client import vlsi
from vlsi_cli.config import reach

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_dry_run_of_the_papers_pair_is_offline_and_complete() -> None:
    done = vlsi("distill", "--teacher", "Qwen/Qwen2-VL-72B", "--student", "2b", "--dry-run")
    assert done.exit_code == 4, done.output
    small = "2, 6, 10, 14, 18, 22, 26"
    large = ", ".join(str(layer) for layer in range(2, 80, 4))
    assert f"target layers, small: {small} of 28" in done.stdout
    assert f"target layers, large: {large} of 80" in done.stdout
    assert re.search(r"student\.id +Qwen/Qwen2-VL-2B-Instruct +--student", done.stdout)
    assert re.search(r"interaction\.lora\.rank +64 +recipe qwen2-vl-72b-to-2b", done.stdout)
    assert re.search(r"verbalizer\.architecture +verb-ffn +default", done.stdout)
    assert "hf download Qwen/Qwen2-VL-72B" in done.stdout
    assert "data/SMR.json" in done.stdout
    assert done.stderr.startswith("error: this run needs ")
    assert "HF_HUB_OFFLINE forbids fetching" in done.stderr


def test_dry_run_as_json() -> None:
    done = vlsi(
        "distill", "--teacher", "Qwen/Qwen2-VL-72B", "--student", "2b", "--dry-run", "--json", "--seed", "3"
    )
    plan = json.loads(done.stdout)
    assert plan["student"]["targets"] == [2, 6, 10, 14, 18, 22, 26]
    assert plan["teacher"]["targets"] == list(range(2, 80, 4))
    assert plan["settings"]["seed"] == {"value": 3, "origin": "--seed"}
    assert plan["student"]["facts"]["parameters"] == 2_208_985_600
    memory = plan["stages"][0]["memory"]
    assert memory["total"] == sum(size for part, size in memory.items() if part != "total")


def test_dry_run_without_arguments_is_the_demo() -> None:
    plan = json.loads(vlsi("distill", "--dry-run", "--json").stdout)
    assert (plan["recipe"], plan["teacher"]["id"], plan["student"]["id"]) == (
        "demo",
        "demo/large",
        "demo/small",
    )
    assert all(need["present"] for need in plan["needs"])


@pytest.mark.parametrize(
    ("words", "offline", "code", "problem"),
    [
        # of the hub: no fault of the recipe, unless fetching is forbidden
        ("--teacher Qwen/Qwen2-VL-7B --student 2b --data someone/set", "0", 0, None),
        (
            "--teacher Qwen/Qwen2-VL-7B --student 2b --data someone/set",
            "1",
            4,
            "teacher: Qwen/Qwen2-VL-7B",
        ),
        # what nothing can fetch, with and without more that is missing
        ("--data none.json", "0", 3, "none.json"),
        ("--teacher Qwen/Qwen2-VL-7B --student 2b", "0", 3, "data/SMR.json"),
        ("--recipe demo --student ./none", "0", 4, "student: ./none"),
        ("--teacher-cache none", "0", 4, "none"),
        ("--output other", "0", 6, "other is not empty and not a run folder"),
    ],
)
def test_dry_run_ends_as_the_run_would_and_asks_no_network(
    words: str, offline: str, code: int, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(
        reach.urllib.request, "urlopen", lambda *_, **__: pytest.fail("the network was asked")
    )
    Path("other").mkdir()
    Path("other/notes.txt").touch()
    shown, document = (vlsi("distill", *words.split(), "--dry-run", *more) for more in ((), ("--json",)))
    assert shown.exit_code == document.exit_code == code, shown.output
    assert shown.stdout.startswith("Plan of ")
    assert "note: memory is an estimate" in shown.stdout  # the last part: all of it is there
    plan = json.loads(document.stdout)  # one document
    assert plan["needs"]
    assert shown.stderr == document.stderr
    assert "--dry-run" not in shown.stderr
    if problem is None:
        assert (plan["problem"], shown.stderr) == (None, "")
        assert not all(need["present"] for need in plan["needs"])
    else:
        assert problem in plan["problem"]
        assert shown.stderr.startswith(f"error: {plan['problem']}")


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    vlsi("distill", "--dry-run")
    assert not list(tmp_path.iterdir())
