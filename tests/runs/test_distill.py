"""`vlsi distill` through its real entry point on a tiny pair: what a run leaves, and that a kill costs nothing."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.runs.conftest import SHORT, short
from vlsi_cli import events
from vlsi_cli.config.loading import load_saved
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.runs.distill import run
from vlsi_cli.engine.runs.folder import RunFolder
from vlsi_cli.engine.stages import InteractionStage
from vlsi_cli.engine.teachers import LiveTeacher
from vlsi_cli.engine.training import StageOutput
from vlsi_cli.errors import CheckpointError, Interrupted, OutputError


@pytest.fixture(scope="module")
def whole(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run."""
    output = tmp_path_factory.mktemp("whole") / "run"
    run(short(pair), output=output, events=events.ignore)
    return output


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_a_run_leaves_everything_it_promises(whole: Path) -> None:
    left = {path.name for path in whole.iterdir()}
    assert left >= {
        *(
            "config.yaml",
            "origins.json",
            "environment.json",
            "progress.json",
            "metrics.jsonl",
            "matches.jsonl",
        ),
        *("data.json", "verbalizers", "stages", "answers", "student"),
    }
    steps = [(line["stage"], line["step"]) for line in lines(whole / "metrics.jsonl")]
    assert steps == [
        *(("verbalization-large", n) for n in range(1, 5)),
        *(("verbalization-small", n) for n in range(1, 5)),
        *(("interaction", n) for n in range(1, 6)),
        *(("reinforcement", n) for n in range(1, 6)),
    ]
    assert not any((whole / "checkpoints").iterdir())  # complete stages need none
    progress = json.loads((whole / "progress.json").read_text("utf-8"))
    assert progress["student"] is True
    assert set(progress["scores"]) == {"small before", "large", "small after"}


def test_matches_of_every_micro_batch_are_kept_and_ordered(whole: Path) -> None:
    matches = lines(whole / "matches.jsonl")
    assert len(matches) == 5
    for line in matches:
        assert isinstance(line["matched"], list)
        assert len(line["matched"]) == 2  # two micro-batches a step
        for drawn in line["matched"]:
            chosen = [drawn[layer][0] for layer in ("1", "2", "3")]
            assert chosen == sorted(set(chosen))
            assert all(1 <= layer <= 5 for layer in chosen)


def test_the_student_is_a_stock_checkpoint(whole: Path, pair: tuple[Path, Path]) -> None:
    """Plain transformers loads it, without this package, and it gives the logits of the model that was trained."""
    code = (
        "import sys, json, torch; from transformers import AutoModelForImageTextToText, AutoTokenizer\n"
        "folder = sys.argv[1]\n"
        "model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "ids = tokenizer('A red circle', return_tensors='pt')['input_ids']\n"
        "logits = model.eval()(input_ids=ids).logits\n"
        "assert not any(name.startswith('vlsi') for name in sys.modules)\n"
        "print(json.dumps({'sum': logits.double().sum().item(), 'ids': ids.tolist(), "
        "'odd': [sorted(map(str, info[k])) for k in ('missing_keys', 'unexpected_keys')]}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(whole / "student")],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["odd"] == [[], []]

    from vlsi_cli.engine.backbones.load import load_backbone

    ours = load_backbone(str(whole / "student"))
    with torch.no_grad():
        logits = ours.model(input_ids=torch.tensor(said["ids"])).logits
    assert logits.double().sum().item() == said["sum"]
    base, student = (
        load_file(pair[1] / "model.safetensors"),
        load_file(whole / "student" / "model.safetensors"),
    )
    assert set(base) == set(student)
    for name, tensor in base.items():
        assert torch.equal(tensor, student[name]) is (".visual" in name or "visual." in name)


def test_the_processor_travels_byte_for_byte(whole: Path, pair: tuple[Path, Path]) -> None:
    for file in pair[1].iterdir():
        if file.name not in ("config.json", "generation_config.json", "model.safetensors"):
            assert (whole / "student" / file.name).read_bytes() == file.read_bytes()


KILL = """
import os, signal, sys
from vlsi_cli.config.loading import load_saved, resolve
from vlsi_cli.engine.runs.distill import run
from vlsi_cli.events import StepDone
output, stage, side, step, number = sys.argv[1:6]
seen = []
def watch(event):
    if type(event).__name__ == "StageStarted":
        seen.append((event.stage, event.side))
    if isinstance(event, StepDone) and seen[-1] == (stage, side) and event.step == int(step):
        os.kill(os.getpid(), int(number))
run(resolve("demo", sys.argv[6:]), output=__import__("pathlib").Path(output), events=watch)
"""


def broken(
    output: Path, pair: tuple[Path, Path], stage: str, side: str, step: int, number: int, *more: str
) -> int:
    """A run in a process of its own that sends itself a signal after a step."""
    large, small = pair
    sets = [f"teacher.id={large}", f"student.id={small}", *SHORT, *more]
    done = subprocess.run(
        [sys.executable, "-c", KILL, str(output), stage, side, str(step), str(int(number)), *sets],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    return done.returncode


@pytest.mark.parametrize(
    ("stage", "side", "step"),
    [
        ("verbalization", "large", 3),
        ("verbalization", "small", 1),
        ("interaction", "small", 3),
        ("reinforcement", "small", 5),
    ],
)
def test_killed_and_resumed_is_as_if_never_killed(
    whole: Path, pair: tuple[Path, Path], tmp_path: Path, stage: str, side: str, step: int
) -> None:
    """SIGKILL after a step that has no checkpoint of its own; then every weight is equal, bit for bit."""
    output = tmp_path / "run"
    assert broken(output, pair, stage, side, step, signal.SIGKILL) == -signal.SIGKILL
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
    volatile = {"seconds"}
    for a, b in zip(lines(output / "metrics.jsonl"), lines(whole / "metrics.jsonl"), strict=True):
        assert {k: v for k, v in a.items() if k not in volatile} == {
            k: v for k, v in b.items() if k not in volatile
        }


def test_adapters_resume_too(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """LoRA with dropout in both steps, killed inside the first and the second: the same student as unbroken."""
    sets = (
        *("interaction.train=lora", "interaction.lora.rank=2", "interaction.lora.dropout=0.2"),
        *("reinforcement.train=lora", "reinforcement.lora.rank=2", "reinforcement.lora.dropout=0.2"),
    )
    run(short(pair, *sets), output=tmp_path / "whole", events=events.ignore)
    for stage in ("interaction", "reinforcement"):
        output = tmp_path / stage
        assert broken(output, pair, stage, "small", 3, signal.SIGKILL, *sets) == -signal.SIGKILL
        run(load_saved(output), output=output, events=events.ignore, resume=True)
        ours, theirs = (load_file(tmp_path / n / "student/model.safetensors") for n in (stage, "whole"))
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
    with RunFolder.open(whole).held(), pytest.raises(OutputError, match="another process is working"):
        run(load_saved(whole), output=whole, events=events.ignore, resume=True)


def test_the_teacher_is_gone_before_the_last_step(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What accelerate, optimizers or hooks keep alive would stand beside the small model in step 3."""
    teachers: list[weakref.ref[LiveTeacher]] = []
    init = LiveTeacher.__init__

    def note(self: LiveTeacher, *args: object, **kwargs: object) -> None:
        teachers.append(weakref.ref(self))
        init(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(LiveTeacher, "__init__", note)
    alive: list[bool] = []

    def watch(event: object) -> None:
        if isinstance(event, events.StepDone) and event.stage == "reinforcement":
            alive.append(teachers[0]() is not None)

    run(short(pair), output=tmp_path / "run", events=watch)
    assert alive == [False] * 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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


def test_a_complete_run_resumes_to_its_report(whole: Path) -> None:
    before = (whole / "student" / "model.safetensors").read_bytes()
    report = run(load_saved(whole), output=whole, events=events.ignore, resume=True)
    assert (whole / "student" / "model.safetensors").read_bytes() == before
    assert [score.who for score in report.scores] == ["small before", "small after", "large"]


def test_a_damaged_checkpoint_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert broken(output, pair, "reinforcement", "small", 3, signal.SIGKILL) == -signal.SIGKILL
    file = output / "checkpoints" / "reinforcement-00000002" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="reinforcement-00000002 is damaged"):
        run(load_saved(output), output=output, events=events.ignore, resume=True)


@pytest.mark.parametrize(
    "sets",
    [
        (
            "interaction.train=lora",
            "reinforcement.train=lora",
            "interaction.lora.rank=2",
            "reinforcement.lora.rank=2",
        ),
        (
            "verbalizer.architecture=decoder",
            "interaction.matching.strategy=bottom-k",
            "interaction.matching.k=3",
        ),
        (
            "interaction.features=true",
            "interaction.intermediate=l2",
            "interaction.last=l2",
            "verbalization=null",
        ),
        ("interaction.intermediate=none", "verbalization=null"),
        ("interaction.intermediate=ce", "interaction.last=ce"),
        ("interaction=null", "verbalization=null", "teacher=null"),
        (
            "interaction.gradient_checkpointing=true",
            "reinforcement.gradient_checkpointing=true",
            "precision=bf16",
        ),
    ],
    ids=[
        "lora",
        "decoder verbalizers",
        "features",
        "last-layer distillation",
        "cross-entropy alone",
        "plain SFT",
        "bf16",
    ],
)
def test_other_arms_run_through_the_same_code(
    pair: tuple[Path, Path], tmp_path: Path, sets: tuple[str, ...]
) -> None:
    report = run(short(pair, *sets), output=tmp_path / "run", events=events.ignore)
    assert (report.student / "model.safetensors").is_file()
    assert report.stages[-1].stage == "reinforcement"
    trained = load_file(report.student / "model.safetensors")
    base = load_file(pair[1] / "model.safetensors")
    assert set(trained) == set(base)
    assert any(not torch.equal(trained[name], base[name].to(trained[name].dtype)) for name in base)


def test_a_trained_set_of_the_teacher_is_reused(pair: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    path = whole / "verbalizers" / "large"
    report = run(short(pair, f"teacher.verbalizers={path}"), output=tmp_path / "run", events=events.ignore)
    assert (report.stages[0].stage, report.stages[0].side) == ("verbalization", "small")
    ours = load_file(tmp_path / "run" / "student" / "model.safetensors")
    theirs = load_file(whole / "student" / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
