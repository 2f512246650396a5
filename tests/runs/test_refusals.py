"""Bad input to a real run: one sentence that names both sides, the documented exit code, nothing half written."""

from __future__ import annotations

import json
import shutil
import signal
from collections import namedtuple
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.runs.conftest import short
from tests.tiny import tiny_folder
from vlsi_cli import events
from vlsi_cli.config import asking
from vlsi_cli.config.folders import require_free
from vlsi_cli.config.loading import Resolved, load_saved, resolve
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.runs.distill import run
from vlsi_cli.engine.runs.folder import RunFolder
from vlsi_cli.errors import (
    CompatibilityError,
    ConfigError,
    DataError,
    Interrupted,
    ModelError,
    OutputError,
    TrainingError,
    VlsiError,
)


def refused(resolved: Resolved, output: Path, kind: type[VlsiError], *, begun: bool = False) -> VlsiError:
    """The error of a run; one that ends before its first step leaves no folder that would block the next try."""
    with pytest.raises(kind) as raised:
        run(resolved, output=output, events=events.ignore)
    assert "\n" not in raised.value.message
    assert not (output / "student").exists()
    assert output.exists() == begun
    assert begun or "--resume" not in str(raised.value.hint)
    return raised.value


def test_another_tokenizer(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = tiny_folder("qwen2_vl", tmp_path / "other", layers=6, tokenizer_text="zebra quux xylophone " * 9)
    error = refused(short((other, pair[1])), tmp_path / "run", CompatibilityError)
    assert str(other) in error.message
    assert str(pair[1]) in error.message
    assert error.exit_code == 5


def test_more_small_than_large_targets(pair: tuple[Path, Path], tmp_path: Path) -> None:
    error = refused(short(pair, "teacher.targets.layers=[2]"), tmp_path / "run", CompatibilityError)
    assert "3" in error.message
    assert "1" in error.message


def test_a_target_beyond_the_model(pair: tuple[Path, Path], tmp_path: Path) -> None:
    error = refused(short(pair, "student.targets.layers=[1,4]"), tmp_path / "run", CompatibilityError)
    assert "4 decoder layers" in error.message


def test_another_family(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = tiny_folder("llava_onevision", tmp_path / "llava", layers=6)
    refused(short((other, pair[1])), tmp_path / "run", CompatibilityError)


@pytest.mark.parametrize("alone", [False, True])
def test_a_small_model_with_experts(alone: bool, tmp_path: Path) -> None:
    """It trains with a large model or without one."""
    experts = tiny_folder("qwen3_vl_moe", tmp_path / "experts", layers=4)
    sets = ("teacher=null", "verbalization=null", "interaction=null") if alone else ()
    error = refused(short((experts, experts), *sets), tmp_path / "run", CompatibilityError)
    assert f"'{experts}' is made of experts (6 a layer)" in error.message


def test_bits_of_experts(tmp_path: Path) -> None:
    """Whether bitsandbytes is installed or not."""
    experts = tiny_folder("qwen3_vl_moe", tmp_path / "experts", layers=4)
    with pytest.raises(ConfigError, match="nearly all of this model is in experts"):
        load_backbone(str(experts), quantization="8bit")


def test_no_such_model(pair: tuple[Path, Path], tmp_path: Path) -> None:
    error = refused(short((tmp_path / "nowhere", pair[1])), tmp_path / "run", ModelError)
    assert "nowhere" in error.message


def messages(tmp_path: Path, *rows: object) -> str:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), "utf-8")
    return f"data={{sources: [{{kind: messages, path: {file}}}]}}"


GOOD = {"messages": [{"role": "user", "content": "Which shape?"}, {"role": "assistant", "content": "circle"}]}
PICTURE = {
    "messages": [
        {
            "role": "user",
            "content": [{"type": "image", "image": "bad.png"}, {"type": "text", "text": "What?"}],
        },
        {"role": "assistant", "content": "circle"},
    ]
}


def test_a_broken_line_is_named_with_its_number(pair: tuple[Path, Path], tmp_path: Path) -> None:
    data = messages(tmp_path, GOOD, "{oops\n")
    sets = (data, "data.on_bad_record=refuse", "data.shuffle=false")
    error = refused(short(pair, *sets), tmp_path / "run", DataError, begun=True)  # the first record is good
    assert f"vlsi distill --resume {tmp_path / 'run'}" in str(error.hint)
    assert "data.jsonl:2" in error.message or "line 2" in error.message


def test_an_unreadable_image_is_counted_and_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    said: list[str] = []

    def watch(event: object) -> None:
        if isinstance(event, events.Warn):
            said.append(event.text)

    run(short(pair, messages(tmp_path, GOOD, PICTURE)), output=tmp_path / "run", events=watch)
    report = json.loads((tmp_path / "run" / "data.json").read_text("utf-8"))
    assert report["reinforcement"]["reasons"]["image-unreadable"]["count"] == 1
    assert any("image-unreadable 1" in text for text in said)


def test_an_unreadable_image_is_refused_when_asked(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    data = messages(tmp_path, PICTURE, GOOD)
    sets = (data, "data.on_bad_record=refuse", "data.shuffle=false")
    error = refused(short(pair, *sets), tmp_path / "run", DataError)
    assert "bad.png" in error.message


def test_empty_data(pair: tuple[Path, Path], tmp_path: Path) -> None:
    error = refused(short(pair, messages(tmp_path)), tmp_path / "run", DataError)
    assert "data.jsonl" in error.message


def test_data_of_which_nothing_can_be_used(pair: tuple[Path, Path], tmp_path: Path) -> None:
    error = refused(short(pair, messages(tmp_path, PICTURE)), tmp_path / "run", DataError)
    assert "image-missing" in error.message


def test_epochs_of_endless_data(pair: tuple[Path, Path], tmp_path: Path) -> None:
    sets = [
        f"teacher.id={pair[0]}",
        f"student.id={pair[1]}",
        "verbalization.epochs=1",
        "evaluation.samples=2",
    ]
    error = refused(resolve("demo", sets), tmp_path / "run", ConfigError)
    assert "no end" in error.message


def test_no_space(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    error = refused(short(pair), tmp_path / "run", OutputError)
    assert "0.00 GiB free" in error.message


def test_an_output_that_cannot_be_written(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = refused(short(pair), tmp_path / "file" / "run", OutputError)
    assert str(tmp_path / "file" / "run") in error.message


def test_an_output_that_holds_something(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(OutputError, match="not empty"):
        run(short(pair), output=tmp_path, events=events.ignore)
    with pytest.raises(OutputError, match="not empty"):
        run(short(pair), output=tmp_path, events=events.ignore, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_loss_that_explodes_ends_the_run(pair: tuple[Path, Path], tmp_path: Path) -> None:
    wild = (
        "interaction=null",
        "verbalization=null",
        "teacher=null",
        "reinforcement.steps=40",
        "reinforcement.optimizer.learning_rate=1e30",
        "reinforcement.optimizer.warmup_steps=0",
    )
    error = refused(short(pair, *wild), tmp_path / "run", TrainingError, begun=True)
    assert "not finite" in error.message


def test_a_folder_whose_run_was_killed_before_it_did_anything_is_taken(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """SIGKILL while the models were loaded; unless the process lives, or somebody has put a file there."""
    output, mended = tmp_path / "run", short(pair, "seed=5")
    with ExitStack() as stack:
        RunFolder.create(output, short(pair), stack, overwrite=False)
        with pytest.raises(OutputError, match="another process is working on the run"):
            run(mended, output=output, events=events.ignore)
    assert (output / "config.yaml").is_file()
    with ExitStack() as stack:
        RunFolder.create(output, mended, stack, overwrite=False)
    assert load_saved(output).config.seed == 5
    (output / "notes.txt").write_text("keep me")
    with pytest.raises(OutputError, match="not empty"):
        run(mended, output=output, events=events.ignore)
    assert (output / "notes.txt").read_text() == "keep me"


def test_a_refused_run_takes_nothing_away_that_is_not_its_own(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """An empty folder that was there before stays; so does a run that is resumed and refused."""
    output, wrong = tmp_path / "run", short(pair, messages(tmp_path))
    output.mkdir()
    with pytest.raises(DataError):
        run(wrong, output=output, events=events.ignore)
    assert list(output.iterdir()) == []
    with ExitStack() as stack:
        RunFolder.create(output, wrong, stack, overwrite=False)
    with pytest.raises(DataError) as refusal:
        run(wrong, output=output, events=events.ignore, resume=True)
    assert (output / "config.yaml").is_file()
    assert "--resume" in str(refusal.value.hint)


def listing(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != ".lock"
    }


def test_a_run_is_replaced_only_by_one_that_can_begin(
    pair: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    """With --overwrite: refused, stopped while it loads, or killed there, the old run is not lost."""
    output = tmp_path / "run"
    shutil.copytree(whole, output)
    before = listing(output)
    with pytest.raises(DataError):
        run(short(pair, messages(tmp_path)), output=output, events=events.ignore, overwrite=True)
    assert listing(output) == before

    def stop(event: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as stopped:
        run(short(pair), output=output, events=stop, overwrite=True)
    assert stopped.value.resume is None
    assert "holds the run again that was to be replaced" in str(stopped.value.hint)
    assert listing(output) == before

    new = short(
        pair, "seed=7", "verbalization=null", "interaction=null", "teacher=null", "evaluation.data=null"
    )
    with ExitStack() as stack:
        RunFolder.create(output, new, stack, overwrite=True)  # and then killed
    with pytest.raises(OutputError, match="already holds a run"):
        require_free(output)
    with ExitStack() as stack:
        RunFolder.create(output, new, stack, overwrite=True).discard()
    assert listing(output) == before
    run(new, output=output, events=events.ignore, overwrite=True)
    assert not (output / ".replaced").exists()
    assert load_saved(output).config.seed == 7
    assert (output / "metrics.jsonl").read_text().count("\n") == 5


def test_runs_that_begin_together_without_a_folder_get_one_each(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both were told that they may begin before either had made its folder; a refused one leaves none."""
    monkeypatch.chdir(tmp_path)
    first, second = (asking.run_folder(short(pair), output=None, resume=None, overwrite=False) for _ in "ab")
    assert first == second == (None, False)
    with ExitStack() as stack:
        folders = [RunFolder.create(None, short(pair), stack, overwrite=False) for _ in range(2)]
        assert [folder.path for folder in folders] == [Path("runs/demo-1"), Path("runs/demo-2")]
        folders[1].discard()
    with pytest.raises(ModelError):
        run(short(pair, f"student.id={tmp_path}/none"), output=None, events=events.ignore)
    assert listing(Path("runs")).keys() == {f"demo-1/{name}" for name in listing(Path("runs/demo-1"))}
