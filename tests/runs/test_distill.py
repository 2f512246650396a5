"""`vlsi distill` through its real entry point on a tiny pair: what a run leaves, and that a kill costs nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.runs.conftest import lines, short
from tests.templates import ALWAYS_THINKING
from tests.tiny import tiny_folder
from vlsi_cli import events
from vlsi_cli.engine.runs.distill import run
from vlsi_cli.engine.teachers import LiveTeacher


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
        (
            "interaction.intermediate=jsd",
            "interaction.last=reverse-kld",
            "interaction.temperature=2",
            "interaction.weights.answers=0.5",
        ),
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
        "other divergences and the answers",
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


def test_a_student_that_always_thinks_is_told_of(tmp_path: Path) -> None:
    """Its template cannot be told that the data have no thoughts, which then train it to have none."""
    model = tiny_folder("qwen3_5", tmp_path / "model")
    (model / "chat_template.jinja").write_text(ALWAYS_THINKING, "utf-8")
    heard: list[object] = []
    sets = ("interaction=null", "verbalization=null", "teacher=null", "reinforcement.steps=1")
    run(short((model, model), *sets, "evaluation.data=null"), output=tmp_path / "run", events=heard.append)
    notes = [each.text for each in heard if isinstance(each, events.Note)]
    assert (
        f"every prompt of {model} asks for thoughts (<think>); a response without any is trained to say none"
        in notes
    )


def test_a_trained_set_of_the_teacher_is_reused(pair: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    path = whole / "verbalizers" / "large"
    report = run(short(pair, f"teacher.verbalizers={path}"), output=tmp_path / "run", events=events.ignore)
    assert (report.stages[0].stage, report.stages[0].side) == ("verbalization", "small")
    ours = load_file(tmp_path / "run" / "student" / "model.safetensors")
    theirs = load_file(whole / "student" / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
