"""Files and folders that are whole or not there, and what is swept after a kill."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.quick import real_fsync
from vlsi_cli.engine import files
from vlsi_cli.engine.outlets import is_outlet
from vlsi_cli.engine.places import require_writable
from vlsi_cli.errors import OutputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_takes_the_place_of_another_at_its_end_only(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for text in ("one", "two"):
        with files.new_folder(target) as partial:
            (partial / "a.txt").write_text(text)
            assert not target.exists() or (target / "a.txt").read_text() == "one"
        assert (target / "a.txt").read_text() == text
        assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_is_replaced_with_and_without_a_swap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    if not swaps:
        monkeypatch.setattr(files, "_swap", lambda a, b: False)
    new, target = tmp_path / "new", tmp_path / "old"
    for path in (new, target):
        path.mkdir()
        (path / "a.txt").write_text(path.name)
    files.replace_folder(new, target)
    assert names(tmp_path) == ["old"]
    assert (target / "a.txt").read_text() == "new"


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    with pytest.raises(OutputError, match="no space is left"), files.new_folder(target):
        raise OSError(28, "No space left on device")
    with pytest.raises(OutputError, match="no space is left"), files.new_file(tmp_path / "a.json"):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == ["model"]


def test_a_file_that_cannot_be_read_is_not_told_as_one_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.new_file(tmp_path / "a.json"):
        (tmp_path / "data.json").read_text()
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("kind", ["pipe", "stream", "link"])
def test_what_is_no_file_is_written_into_and_not_replaced(tmp_path: Path, kind: str) -> None:
    """A device (/dev/null), a pipe with a name, and /dev/stdout, whatever stands behind it."""
    target = tmp_path / "pipe.jsonl"
    os.mkfifo(target)
    reader = os.open(target, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(target, os.O_WRONLY)
    if kind == "stream":
        target = Path(f"/proc/self/fd/{writer}")
    elif kind == "link":
        target = tmp_path / "stdout"
        target.symlink_to(f"/proc/self/fd/{writer}")
    before = names(tmp_path)
    try:
        require_writable(target)
        with files.new_file(target, flush=False) as part:
            part.write_text("all of it\n")
            assert os.path.realpath(part.parent) != str(tmp_path)
        assert os.read(reader, 100) == b"all of it\n"
    finally:
        os.close(reader)
        os.close(writer)
    assert names(tmp_path) == before
    assert not (tmp_path / "pipe.jsonl").is_file()


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path, there: bool) -> None:
    (tmp_path / "disk").mkdir()
    for name in ("a.json", "model"):
        (tmp_path / f"to-{name}").symlink_to(Path("disk", name))
        (tmp_path / f"link-{name}").symlink_to(f"to-{name}")
    if there:
        (tmp_path / "disk" / "a.json").write_text("old")
        (tmp_path / "disk" / "model").mkdir()
        (tmp_path / "disk" / "model" / "old.txt").touch()
    require_writable(tmp_path / "link-a.json")
    files.write_json(tmp_path / "link-a.json", 1)
    with files.new_folder(tmp_path / "link-model") as partial:
        (partial / "a.txt").touch()
        assert partial.parent == tmp_path / "disk"
    assert all(path.is_symlink() for path in tmp_path.iterdir() if path.name != "disk")
    assert names(tmp_path / "disk") == ["a.json", "model"]
    assert (tmp_path / "disk" / "a.json").read_text() == "1\n"
    assert names(tmp_path / "disk" / "model") == ["a.txt"]


def test_a_link_that_leads_nowhere_is_told_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").symlink_to("b.json")
    (tmp_path / "b.json").symlink_to("a.json")
    for write in (require_writable, lambda path: files.write_json(path, 1)):
        with pytest.raises(OutputError, match=r"/a\.json cannot be written: .*symbolic links"):
            write(tmp_path / "a.json")
    (tmp_path / "file").touch()
    (tmp_path / "c.json").symlink_to("file/c.json")
    with pytest.raises(OutputError, match=r"c\.json cannot be written: .*file is not a folder"):
        require_writable(tmp_path / "c.json")
    assert names(tmp_path) == ["a.json", "b.json", "c.json", "file"]


def test_a_file_where_a_folder_is_to_be(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    told = pytest.raises(OutputError, match="run cannot be written: there is a file of that name")
    with told, files.writing(tmp_path / "run"):
        (tmp_path / "run").mkdir(parents=True, exist_ok=True)


def test_what_is_a_file_is_no_outlet(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert not any(is_outlet(tmp_path / name) for name in ("a", "b", "none", ""))
    assert is_outlet(Path(os.devnull))
    with Path("/proc/self/maps").open("rb") as opened:
        assert is_outlet(Path(f"/dev/fd/{opened.fileno()}"))
    with (tmp_path / "a").open("rb") as opened:  # as of `--bad /dev/fd/3 3> a`
        assert is_outlet(Path(f"/dev/fd/{opened.fileno()}"))


def test_half_folders_of_the_dead_are_swept_and_those_of_the_living_stay(tmp_path: Path) -> None:
    for name in (".model-dead.partial", ".model-gone.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"half")
    (tmp_path / ".progress-x.partial.json").write_text("{")
    (tmp_path / ".gitignore").write_text("*")
    with files.new_folder(tmp_path / "inside" / "live") as living:
        (living / ".config-y.partial.json").write_text("{")
        files.sweep(tmp_path)
        assert names(tmp_path) == [".gitignore", "inside"]
        assert names(living) == [".config-y.partial.json"]


def test_the_next_writer_of_a_folder_sweeps_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / ".model-dead.partial").mkdir()
    (tmp_path / ".other-dead.partial").mkdir()
    (tmp_path / ".model-gone.old").mkdir()
    with files.new_folder(tmp_path / "model"):
        pass
    assert names(tmp_path) == [".other-dead.partial", "model"]


def test_an_old_folder_that_a_kill_left_without_a_successor_is_put_back(tmp_path: Path) -> None:
    (tmp_path / ".model-x.old" / "model").mkdir(parents=True)
    with pytest.raises(OutputError), files.new_folder(tmp_path / "model"):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == ["model"]


def test_a_sweep_puts_such_a_folder_back_too(tmp_path: Path) -> None:
    (tmp_path / "inside" / ".model-x.old" / "model" / "weights").mkdir(parents=True)
    files.sweep(tmp_path)
    assert names(tmp_path / "inside") == ["model"]
    assert names(tmp_path / "inside" / "model") == ["weights"]


def test_a_scratch_folder_goes_with_its_block_or_with_the_next_sweep(tmp_path: Path) -> None:
    with files.scratch(tmp_path / "made") as room:
        (room / "note").write_text("x")
        files.sweep(tmp_path)  # of a living process: stays
        assert (room / "note").exists()
    assert list((tmp_path / "made").iterdir()) == []
    room.mkdir()  # as if the process had been killed in the block
    files.sweep(tmp_path)
    assert list((tmp_path / "made").iterdir()) == []


def test_files_and_the_list_of_their_names_reach_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is renamed is flushed before, and the folder that lists it after."""
    done: list[str] = []
    sync, rename = real_fsync, os.rename

    def syncing(handle: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        sync(handle)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "rename", lambda a, b, **k: (done.append("rename"), rename(a, b, **k)))
    with files.new_folder(tmp_path / "model") as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "a.txt").write_text("a")
    assert done.index("sync a.txt") < done.index("rename") < done.index(f"sync {tmp_path.name}")
    assert done.index("sync sub") < done.index("rename")


@pytest.mark.skipif(files.fcntl is None, reason="no such locks here")
def test_a_file_system_without_locks_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some that are shared over a network."""

    def refuse(handle: int, kind: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with files.only_process(tmp_path, "the run"), files.new_folder(tmp_path / "model"):
        pass
    assert names(tmp_path) == [".lock", "model"]


def test_a_lock_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with (
        pytest.raises(OutputError, match=r"\.lock cannot be written"),
        files.only_process(tmp_path, "the run"),
    ):
        pass
