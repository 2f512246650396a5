"""The fault suite within reach of CI: 58 kills, and every other fault once. ``python -m tests.faults`` does more."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.faults.__main__ import NEEDS, OTHERS, SHARES

pytestmark = [
    pytest.mark.skipif(
        sys.platform != "linux", reason="forks, CPU clocks of children and file locks are Linux's"
    ),
    pytest.mark.slow,
]


def suite(*words: str) -> str:
    program = [sys.executable, "-m", "tests.faults", *words]
    done = subprocess.run(
        program, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=3000
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(3100)
@pytest.mark.parametrize("command", SHARES)
def test_killed_commands_go_on_to_the_same_end(command: str) -> None:
    missing = [need for need in NEEDS.get(command, ()) if find_spec(need) is None]
    if missing:
        pytest.skip(f"needs {missing[0]}, which is not installed")
    said = suite("--only", command, "--kills", str(SHARES[command]))
    found = re.search(rf"\| {command} \| (\d+) \|", said)
    assert found is not None, said
    assert int(found[1]) >= SHARES[command], said
    if command == "distill":  # every stage was hit
        fell = dict(re.findall(r"distill, ([\w -]+): (\d+)", said))
        assert len(fell) == 6
        assert all(int(count) > 0 for count in fell.values()), said


@pytest.mark.timeout(3100)
def test_other_faults_end_in_a_sentence_and_lose_nothing() -> None:
    said = suite("--only", OTHERS)
    assert said.count("\n| ") >= 8, said
