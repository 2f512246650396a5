"""A run that is stopped, killed or damaged: nothing is lost, and what is resumed ends bit for bit the same."""

from __future__ import annotations

import json
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.runs.conftest import lines, short
from tests.runs.killed import At, kill
from vlsi_cli import events
from vlsi_cli.config.loading import load_saved
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.runs.distill import run
from vlsi_cli.engine.runs.folder import RunFolder
from vlsi_cli.engine.runs.parts import RunParts
from vlsi_cli.engine.runs.watch import VOLATILE
from vlsi_cli.engine.stages import InteractionStage
from vlsi_cli.engine.training import StageOutput
from vlsi_cli.engine.training.signals import Wish
from vlsi_cli.errors import CheckpointError, Interrupted, OutputError

ADAPTERS = (
    *("interaction.train=lora", "interaction.lora.rank=2", "interaction.lora.dropout=0.2"),
    *("reinforcement.train=lora", "reinforcement.lora.rank=2", "reinforcement.lora.dropout=0.2"),
)
#: Where runs are killed, and what each is told besides.
AT: dict[str, tuple[At, tuple[str, ...]]] = {
    "first": (("verbalization", "large", 3), ()),
    "second": (("verbalization", "small", 1), ()),
    # the run that it is compared with has no workers
    "third": (("interaction", "small", 3), ("data.workers=1",)),
    "last": (("reinforcement", "small", 5), ()),
    "adapters, first": (("interaction", "small", 3), ADAPTERS),
    "adapters, last": (("reinforcement", "small", 3), ADAPTERS),
    "damaged": (("reinforcement", "small", 3), ()),
}


@pytest.fixture(scope="module")
def killed(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that got SIGKILL after a step, each of its own."""
    outputs = {name: tmp_path_factory.mktemp("killed") / "run" for name in AT}
    kill(pair, {outputs[name]: how for name, how in AT.items()})
    return outputs


@pytest.mark.parametrize("name", ["first", "second", "third", "last"])
def test_killed_and_resumed_is_as_if_never_killed(whole: Path, killed: dict[str, Path], name: str) -> None:
    """SIGKILL after a step that has no checkpoint of its own; then every weight is equal, bit for bit."""
    output = killed[name]
    assert not (output / "student").exists()
    run(load_saved(output), output=output, events=events.ignore, resume=True)
    for name in (
        *("student/model.safetensors", "verbalizers/large/verbalizers.safetensors"),
        *("verbalizers/small/verbalizers.safetensors", "verbalizers/small-after/verbalizers.safetensors"),
        "stages/interaction/layers.safetensors",
    ):
        ours, theirs = load_file(output / name), load_file(whole / name)
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert (output / "matches.jsonl").read_text() == (whole / "matches.jsonl").read_text()
    for a, b in zip(lines(output / "metrics.jsonl"), lines(whole / "metrics.jsonl"), strict=True):
        assert {k: v for k, v in a.items() if k not in VOLATILE} == {
            k: v for k, v in b.items() if k not in VOLATILE
        }


def test_adapters_resume_too(pair: tuple[Path, Path], killed: dict[str, Path], tmp_path: Path) -> None:
    """LoRA with dropout in both steps, killed inside the first and the second: the same student as unbroken."""
    run(short(pair, *ADAPTERS), output=tmp_path / "whole", events=events.ignore)
    theirs = load_file(tmp_path / "whole/student/model.safetensors")
    for output in (killed["adapters, first"], killed["adapters, last"]):
        run(load_saved(output), output=output, events=events.ignore, resume=True)
        ours = load_file(output / "student/model.safetensors")
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_stop_inside_a_step_drops_that_step(
    whole: Path, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked between two micro-batches of step 4: a checkpoint of step 3, and the same end as without the stop."""
    output, seen = tmp_path / "run", []

    def watch(event: object) -> None:
        if isinstance(event, events.StepDone) and event.stage == "interaction":
            seen.append(event.step)

    forward = InteractionStage.forward

    def interrupting(self: InteractionStage, batch: Batch) -> StageOutput:
        if seen == [1, 2, 3]:
            seen.append(0)
            signal.raise_signal(signal.SIGTERM)
        return forward(self, batch)

    monkeypatch.setattr(InteractionStage, "forward", interrupting)
    with pytest.raises(Interrupted, match="after step 3 of 5 of interaction"):
        run(short(pair), output=output, events=watch)
    monkeypatch.undo()
    run(load_saved(output), output=output, events=events.ignore, resume=True)
    ours, theirs = (load_file(folder / "student/model.safetensors") for folder in (output, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_what_a_kill_between_writes_leaves_is_mended(
    whole: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """After the artifact of a stage and before its mark; and half a folder left behind."""
    output = tmp_path / "run"
    shutil.copytree(whole, output)
    progress = json.loads((output / "progress.json").read_text("utf-8"))
    progress["student"] = False
    for key in ("interaction", "reinforcement"):
        del progress["stages"][key]
    del progress["scores"]["small after"]
    (output / "progress.json").write_text(json.dumps(progress), "utf-8")
    half = output / "checkpoints" / ".interaction-00000004-abc.partial"
    half.mkdir(parents=True)
    run(load_saved(output), output=output, events=events.ignore, resume=True)
    assert not half.exists()
    ours, theirs = (load_file(folder / "student/model.safetensors") for folder in (output, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert (output / "metrics.jsonl").read_text("utf-8").count("\n") == 18


def test_two_processes_cannot_work_on_one_run(whole: Path) -> None:
    with ExitStack() as stack:
        RunFolder.resume(whole, stack)
        with pytest.raises(OutputError, match="another process is working"):
            run(load_saved(whole), output=whole, events=events.ignore, resume=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_wish_to_stop_leaves_a_checkpoint_and_the_command(
    pair: tuple[Path, Path], tmp_path: Path, number: signal.Signals
) -> None:
    output = tmp_path / "run"

    def watch(event: object) -> None:
        if isinstance(event, events.StepDone) and event.stage == "interaction" and event.step == 3:
            signal.raise_signal(number)

    with pytest.raises(Interrupted, match="after step 3 of 5 of interaction") as stopped:
        run(short(pair), output=output, events=watch)
    assert stopped.value.exit_code == 128 + number
    assert stopped.value.resume == f"vlsi distill --resume {output}"
    assert [path.name for path in (output / "checkpoints").iterdir()][-1:] != []
    assert (output / "checkpoints" / "interaction-00000003").is_dir()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # handlers are put back


def test_a_second_wish_to_stop_is_heard_at_once(pair: tuple[Path, Path], tmp_path: Path) -> None:
    def twice(event: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped at once") as stopped:
        run(short(pair), output=tmp_path / "run", events=twice)
    assert stopped.value.resume == f"vlsi distill --resume {tmp_path / 'run'}"


def test_a_finished_student_is_read_as_the_configuration_says(whole: Path) -> None:
    """With its attention; its precision is that of the run, in which it was written and measured."""
    config = load_saved(whole).config
    chosen = {"attn_implementation": "eager", "dtype": "fp32", "revision": "v1", "vision_memory": 0.5}
    student = config.student.model_copy(update=chosen)
    config = config.model_copy(update={"student": student, "precision": "bf16"})
    read = RunParts(config, RunFolder.open(whole), Wish()).student
    assert read.model.config._attn_implementation == "eager"
    assert read.vision_memory is not None
    assert {parameter.dtype for parameter in read.model.parameters()} == {torch.bfloat16}


def test_a_complete_run_resumes_to_its_report(whole: Path) -> None:
    before = (whole / "student" / "model.safetensors").read_bytes()
    report = run(load_saved(whole), output=whole, events=events.ignore, resume=True)
    assert (whole / "student" / "model.safetensors").read_bytes() == before
    assert [score.who for score in report.scores] == ["small before", "small after", "large"]


def test_a_damaged_checkpoint_is_named_and_skipped_when_asked(whole: Path, killed: dict[str, Path]) -> None:
    output = killed["damaged"]
    file = output / "checkpoints" / "reinforcement-00000002" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="reinforcement-00000002 is damaged"):
        run(load_saved(output), output=output, events=events.ignore, resume=True)
    told: list[str] = []

    def watch(event: object) -> None:
        if isinstance(event, events.Warn):
            told.append(event.text)

    run(load_saved(output), output=output, events=watch, resume=True, skip_damaged=True)
    assert "reinforcement-00000002 is damaged" in told[0]
    ours, theirs = (load_file(folder / "student/model.safetensors") for folder in (output, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
