"""Two processes do what one does: DDP and FSDP2 over gloo on the CPU, in one launch; and the launcher itself.

Equality is up to rounding. Two processes add the same numbers in another order: each sums its own tokens in fp32 before
the sums are added, and padding changes the shapes, and with them the blocks, of matrix products. That is a few units in
the last place of a loss near 6 (2^-21 = 5e-7 each), and AdamW carries it on; 2e-5 leaves ten times of what 20 steps
(here it is 8) were seen to make of it, while a gradient that is off by the number of processes, or one record dealt out
wrongly, differs in the second digit. Matched layers are equal exactly: no draw falls within rounding of a boundary.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.ports import free_port
from tests.runs.conftest import SHORT, lines
from tests.runs.ranks import gradients, states
from tests.tiny import tiny_folder
from vlsi_cli import events
from vlsi_cli.config.loading import load_saved, resolve
from vlsi_cli.config.run import StageConfig
from vlsi_cli.engine.runs import reproduce
from vlsi_cli.engine.runs.distill import run
from vlsi_cli.engine.runs.stages import cut_step
from vlsi_cli.errors import ConfigError, Interrupted

ROOT = Path(__file__).parents[2]
TOLERANCE = 2e-5
STEPS = ("verbalization.steps=2", "interaction.steps=8", "reinforcement.steps=4", "checkpoint_every=7")
#: Records of one process; the run that is alone has twice as many, so that a step is the same.
HALVES = (
    *("verbalization.batch_size=2", "interaction.batch_size=1", "reinforcement.batch_size=2"),
    *("reinforcement.gradient_accumulation=2",),
)


#: Little to do where no figures are compared with the run that is alone.
LITTLE = ("interaction.steps=6", "verbalization.steps=1", "evaluation.data=null")


def sets_of(pair: tuple[Path, Path], *more: str) -> list[str]:
    large, small = pair
    return [f"teacher.id={large}", f"student.id={small}", *SHORT, *STEPS, *more]


@pytest.fixture(scope="module")
def alone(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone") / "run"
    sets = sets_of(pair, "reinforcement.gradient_accumulation=2")
    run(resolve("demo", sets), output=output, events=events.ignore)
    return output


@pytest.fixture(scope="module")
def single(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the settings that each of two has: steps of half as many records."""
    output = tmp_path_factory.mktemp("single") / "run"
    run(resolve("demo", sets_of(pair, *HALVES, *LITTLE)), output=output, events=events.ignore)
    return output


@pytest.fixture(scope="module")
def unbroken(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes would have made of them: one, with steps of twice as many records."""
    output = tmp_path_factory.mktemp("unbroken") / "run"
    sets = sets_of(pair, "reinforcement.gradient_accumulation=2", *LITTLE)
    run(resolve("demo", sets), output=output, events=events.ignore)
    return output


@pytest.fixture(scope="module")
def launch(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that two processes have to show, in one launch."""
    folder = tmp_path_factory.mktemp("launch")
    sets = sets_of(pair, *HALVES)
    (folder / "sets.json").write_text(json.dumps({"whole": sets, "short": [*sets, *LITTLE]}), "utf-8")
    begun_by_one(folder / "one-to-two", *sets, *LITTLE)
    tiny_folder("qwen3_vl_moe", folder / "experts", layers=2)
    launched("tests.runs.ranks", str(folder), str(pair[1]))
    return folder


def begun_by_one(output: Path, *sets: str) -> None:
    """A run that stops in its last stage, for two processes to go on with."""
    with pytest.raises(Interrupted):
        run(resolve("demo", sets), output=output, events=stop_in("reinforcement", 2))


def launched(module: str, *words: str) -> None:
    """Run a module as two processes, both of which must end well."""
    port, command = free_port(), [sys.executable, "-m", module, *words]
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ
            | {"RANK": str(n), "LOCAL_RANK": str(n), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for n in range(2)
    ]
    try:
        said = [process.communicate(timeout=1500)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)


def stop_in(stage: str, step: int) -> events.Events:
    import signal

    def watch(event: object) -> None:
        if isinstance(event, events.StepDone) and (event.stage, event.step) == (stage, step):
            signal.raise_signal(signal.SIGTERM)

    return watch


def found(launch: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((launch / "found.json").read_text("utf-8"))
    return values


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_train_as_one(alone: Path, launch: Path, way: str) -> None:
    """Same losses, gradient norms, counts and matched layers at every step, and the same student."""
    ours, theirs = lines(launch / way / "metrics.jsonl"), lines(alone / "metrics.jsonl")
    assert [(a["stage"], a["step"]) for a in ours] == [(b["stage"], b["step"]) for b in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert (a["response_tokens"], a["input_tokens"]) == (b["response_tokens"], b["input_tokens"])
        assert a["terms"] == pytest.approx(b["terms"], abs=TOLERANCE)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    assert (launch / way / "matches.jsonl").read_text() == (alone / "matches.jsonl").read_text()
    student, other = (load_file(at / "student/model.safetensors") for at in (launch / way, alone))
    assert max(float((student[name] - other[name]).abs().max()) for name in other) < TOLERANCE
    scores = [json.loads((at / "progress.json").read_text())["scores"] for at in (launch / way, alone)]
    for who, score in scores[1].items():
        assert scores[0][who]["accuracy"] == score["accuracy"]
        assert scores[0][who]["loss"] == pytest.approx(score["loss"], abs=TOLERANCE)
        assert answered(launch / way, who) == answered(alone, who)


def answered(run: Path, who: str) -> list[str]:
    file = run / "answers" / f"{who.replace(' ', '-')}.json"
    return [answer["record"] for answer in json.loads(file.read_text("utf-8"))]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_process_without_pictures_or_responses(pair: tuple[Path, Path], launch: Path, way: str) -> None:
    """Its gradients are those of one process with the batches of both, vision tower included, and nothing hangs."""
    expected = gradients(str(pair[1]), divided=False, alone=True)
    for rank in range(2):
        steps = torch.load(launch / f"{way}-{rank}.pt", weights_only=True)
        for ours, theirs in zip(steps, expected, strict=True):
            assert set(theirs) <= set(
                ours
            )  # divided, what no batch uses has a gradient of zeros instead of none
            for name, gradient in ours.items():
                wanted = theirs.get(name, torch.zeros_like(gradient))
                assert torch.allclose(gradient, wanted, atol=1e-6, rtol=1e-4), name


def test_experts_are_divided(launch: Path) -> None:
    """Each process has a piece of every tensor of three dimensions, and both say what the whole model says."""
    whole = states(launch / "experts", divided=False)
    for rank in range(2):
        assert torch.equal(torch.load(launch / f"experts-{rank}.pt"), whole)


def test_begun_by_two_and_ended_by_one(launch: Path, unbroken: Path) -> None:
    """One process of two was told to stop; both did, inside a step, which is as if it had not begun. One goes on."""
    said = found(launch)["stopped"]
    assert said == ["143: stopped after step 4 of 6 of interaction; a checkpoint is saved"] * 2
    output = launch / "two-to-one"
    notes: list[str] = []

    def listen(event: object) -> None:
        if isinstance(event, events.Note):
            notes.append(event.text)

    run(load_saved(output), output=output, events=listen, resume=True)
    assert any("written by 2 processes and this run has 1" in note for note in notes)
    # The matches are drawn for other micro-batches now: steps have the same records, and losses that are near.
    ours, theirs = lines(output / "metrics.jsonl"), lines(unbroken / "metrics.jsonl")
    for a, b in zip(ours, theirs, strict=True):
        assert (a["stage"], a["step"], a["response_tokens"]) == (b["stage"], b["step"], b["response_tokens"])
        assert a["loss"] == pytest.approx(b["loss"], rel=0.05)


def test_begun_by_one_and_ended_by_two(launch: Path, single: Path) -> None:
    """Where nothing is matched, steps do not know how their records were cut: as if one had gone on."""
    ours, theirs = (lines(at / "metrics.jsonl") for at in (launch / "one-to-two", single))
    for a, b in zip(ours, theirs, strict=True):
        assert a["response_tokens"] == b["response_tokens"]
        assert a["terms"] == pytest.approx(b["terms"], abs=TOLERANCE)
    student, other = (load_file(at / "student/model.safetensors") for at in (launch / "one-to-two", single))
    assert max(float((student[name] - other[name]).abs().max()) for name in other) < TOLERANCE


def test_what_one_process_meets_ends_all(launch: Path) -> None:
    values = found(launch)
    assert values["gathered"] == [{"rank": 0}, {"rank": 1}]
    assert values["met again"] == [0, 1]
    error = {"kind": "DataError", "shared": True}
    assert values["alone fails"] == [error | {"message": "the second process has no data"}] * 2
    assert values["first fails"] == [error | {"message": "the first process has no data"}] * 2
    for each in values["not finite"]:
        assert each["kind"] == "TrainingError"
        assert each["shared"]
        assert "step 1 of interaction: the loss of last is not finite" in each["message"]


def test_one_process_runs_again_what_two_did(launch: Path) -> None:
    """The step that was spoilt from outside: alone it has the same matches, and no loss that is not finite."""
    (bundle,) = (launch / "nan" / "failures").iterdir()
    again = reproduce.run(bundle, events=events.ignore)
    assert again.processes == 2
    assert len(again.micro_batches) == 2  # gradient_accumulation; each of what both processes fed at once
    assert set(again.terms) == set(again.terms_then) == {"1", "2", "3", "last"}
    spoilt = again.terms.pop("last")
    assert (math.isfinite(spoilt), math.isfinite(again.terms_then["last"])) == (True, False)
    assert not again.same
    assert again.terms == {name: pytest.approx(again.terms_then[name], rel=TOLERANCE) for name in again.terms}


@pytest.mark.parametrize(
    ("size", "accumulation", "before", "now", "cut"),
    [
        (4, 16, 8, 8, (4, 16)),
        (4, 16, 8, 1, (4, 128)),
        (4, 1, 1, 2, (2, 1)),
        (4, 3, 2, 6, (4, 1)),
        (3, 2, 2, 4, (3, 1)),
    ],
)
def test_a_step_keeps_its_records(
    size: int, accumulation: int, before: int, now: int, cut: tuple[int, int]
) -> None:
    settings = StageConfig(steps=1, batch_size=size, gradient_accumulation=accumulation)
    assert cut_step(settings, before, now) == cut


def test_records_that_cannot_be_shared_evenly() -> None:
    with pytest.raises(ConfigError, match="64 records a step, which 7 cannot share evenly") as error:
        cut_step(StageConfig(steps=1, batch_size=4, gradient_accumulation=8), 2, 7)
    assert error.value.hint == "resume with 1, 2 or 4 processes"


def vlsi(*words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "vlsi_cli", *words]
    return subprocess.run(
        program,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_the_command_starts_them_and_ends_as_they_end(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """One voice, one report, one run folder; then an error of both, told once, with its exit code."""
    sets = [word for text in sets_of(pair, *HALVES, "evaluation.data=null") for word in ("--set", text)]
    short = [
        *sets,
        "--set",
        "interaction=null",
        "--set",
        "reinforcement=null",
        "--set",
        "verbalization.steps=1",
    ]
    output = tmp_path / "run"
    done = vlsi(
        "distill", *short, "--output", str(output), "--json", "--processes", "2", "--", "--max-restarts=0"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == str(output)
    assert done.stderr.count("run folder:") == 1
    assert json.loads((output / "progress.json").read_text())["processes"] == 2
    failed = vlsi("distill", *short, "-o", str(tmp_path / "other"), "--precision", "fp16", "--processes", "2")
    assert failed.returncode == 2
    assert failed.stderr.count("error: fp16 needs a GPU") == 1
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes", "0"], "--processes is '0'"),
        (["--", "--nnodes=2"], "arguments after -- need --processes"),
        (["--processes", "2", "--", "--nodes", "3"], "the launcher's arguments after -- cannot be used"),
        (["--processes", "2", "--", "train.py"], "'train.py' after -- is not an argument of torchrun"),
    ],
)
def test_wrong_words(words: list[str], message: str, tmp_path: Path) -> None:
    done = vlsi("distill", "--output", str(tmp_path / "run"), *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "run").exists()
