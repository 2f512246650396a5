"""Where a run may write, and which run `--resume auto` goes on with."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vlsi_cli.config import folders
from vlsi_cli.config.loading import Resolved, resolve
from vlsi_cli.errors import CheckpointError, OutputError

MADE = resolve("demo")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(folder: str, resolved: Resolved = MADE, *, finished: bool = False, begun: bool = True) -> Path:
    path = Path(folder)
    resolved.save(path)
    scores: dict[str, object] = {"small before": {}} if begun else {}
    progress = {
        "student": finished,
        "stages": {},
        "scores": scores | ({"small after": {}} if finished else {}),
    }
    (path / "progress.json").write_text(json.dumps(progress))
    return path


def test_auto_starts_where_there_is_nothing(tmp_path: Path) -> None:
    assert folders.to_go_on_with(None, MADE) is None
    assert folders.to_go_on_with(tmp_path / "new", MADE) is None


def test_auto_takes_the_highest_number_that_is_unfinished_and_of_the_same_configuration() -> None:
    run("runs/demo-2")
    wanted = run("runs/demo-10")
    os.utime(wanted, (0, 0))  # the oldest by the clock
    run("runs/demo-11", finished=True)
    run("runs/demo-12", resolve("demo", ["seed=5"]))
    (run("runs/demo-13") / "config.yaml").write_text("{")
    Path("runs/demo-14").mkdir()
    assert folders.to_go_on_with(None, MADE) == wanted
    assert folders.to_go_on_with(None, resolve("demo", ["seed=6"])) is None


def test_auto_with_an_output_goes_on_with_what_is_in_it_even_if_complete() -> None:
    assert folders.to_go_on_with(run("mine", finished=True), MADE) == Path("mine")


def test_auto_refuses_another_configuration_and_names_the_key() -> None:
    with pytest.raises(OutputError, match="another configuration: seed is 0 there, 5 here") as refused:
        folders.to_go_on_with(run("mine"), resolve("demo", ["seed=5"]))
    assert "--resume mine" in str(refused.value.hint)


def test_auto_refuses_a_damaged_run_in_the_output() -> None:
    path = run("mine")
    (path / "config.yaml").write_text("{")
    with pytest.raises(CheckpointError, match="configuration of the run mine is damaged"):
        folders.to_go_on_with(path, MADE)


def test_what_a_kill_leaves_before_the_configuration_is_no_run_and_in_nobodys_way() -> None:
    path = Path("mine")
    path.mkdir()
    for name in (".lock", "environment.json", ".config.partial.yaml", "progress.json"):
        (path / name).write_text("half")
    folders.require_free(path)
    (path / "notes.txt").write_text("keep me")
    with pytest.raises(OutputError, match="not empty and not a run folder"):
        folders.require_free(path)


def test_a_run_that_has_done_nothing_is_in_nobodys_way() -> None:
    """It was refused, or killed before its first step, and the configuration may have been mended since."""
    path, other = run("mine", begun=False), resolve("demo", ["seed=5"])
    assert folders.is_barren(path)
    assert folders.to_go_on_with(path, other) is None
    assert folders.to_go_on_with(path, MADE) == path
    folders.require_free(path)


@pytest.mark.parametrize(
    "work",
    ["metrics.jsonl", "checkpoints", "failures", "verbalizers", "answers", "notes.txt", "progress.json"],
)
def test_a_run_that_has_done_something_is_kept(work: str) -> None:
    """Steps, checkpoints, results, somebody's own file; and a progress file that cannot be read says nothing."""
    path = run("mine", begun=False)
    (path / work).write_text("") if "." in work else (path / work).mkdir()
    assert not folders.is_barren(path)
    with pytest.raises(OutputError, match="already holds a run"):
        folders.require_free(path)
    with pytest.raises(OutputError, match="another configuration"):
        folders.to_go_on_with(path, resolve("demo", ["seed=5"]))


def test_weights_need_a_name_that_safetensors_can_read(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="its name is not UTF-8"):
        folders.require_free(tmp_path / os.fsdecode(b"caf\xe9"))
    folders.require_free(tmp_path / "café ☃")


def test_run_folders(tmp_path: Path) -> None:
    assert folders.claim("demo") == Path("runs/demo-1")
    assert Path("runs/demo-1").is_dir()
    Path("runs/demo-2").symlink_to("away")  # taken, though it leads nowhere
    Path("runs/demo-4").mkdir()
    assert [folders.claim("demo"), folders.claim("demo")] == [Path("runs/demo-3"), Path("runs/demo-5")]
    assert folders.claim("a/b c") == Path("runs/a-b-c-1")
    run = tmp_path / "run"
    folders.require_free(run)
    run.mkdir()
    folders.require_free(run)
    (run / "other.txt").touch()
    with pytest.raises(OutputError, match="not a run folder"):
        folders.require_free(run, overwrite=True)
    (run / "config.yaml").touch()
    with pytest.raises(OutputError, match="already holds a run") as caught:
        folders.require_free(run)
    assert f"--resume {run}" in (caught.value.hint or "")
    folders.require_free(run, overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        folders.require_free(run / "other.txt")


def test_runs_that_begin_at_one_moment_get_a_folder_each() -> None:
    together = threading.Barrier(8)

    def begin() -> list[Path]:
        together.wait()
        return [folders.claim("demo") for _ in range(20)]

    with ThreadPoolExecutor(8) as pool:
        begun = [pool.submit(begin) for _ in range(8)]
    found = [path for each in begun for path in each.result()]
    assert set(found) == {Path(f"runs/demo-{number}") for number in range(1, 161)}
