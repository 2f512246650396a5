"""Watching a run through its real entry point: trackers, sample answers, and a step that is not finite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from tests.runs.conftest import lines, short
from vlsi_cli import events as ev
from vlsi_cli.app import app
from vlsi_cli.config.loading import load_saved
from vlsi_cli.engine.data.patterns import pattern_record
from vlsi_cli.engine.runs import reproduce
from vlsi_cli.engine.runs.distill import run
from vlsi_cli.errors import CheckpointError, TrainingError

WATCHED = (
    "watch.report_to=[tensorboard]",
    "watch.samples=2",
    "watch.samples_every=3",
    "watch.samples_max_new_tokens=4",
)
EXPLODES = "optimizer.learning_rate=1.0e+30"


def test_a_watched_and_broken_run_ends_as_the_unwatched_one(
    pair: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    """Trackers and sample answers change no weight, and the resumed run goes on in the same tracker run."""
    output = tmp_path / "run"
    heard: list[ev.Event] = []

    def break_down(event: ev.Event) -> None:
        heard.append(event)
        if isinstance(event, ev.StepDone) and (event.stage, event.step) == ("interaction", 4):
            raise RuntimeError("pulled the plug")  # step 4 is told, its checkpoint not yet written

    with pytest.raises(RuntimeError, match="pulled the plug"):
        run(short(pair, *WATCHED), output=output, events=break_down)
    run(load_saved(output), output=output, events=heard.append, resume=True)

    ours, theirs = (load_file(folder / "student/model.safetensors") for folder in (output, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (output / "matches.jsonl").read_text() == (whole / "matches.jsonl").read_text()

    read = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    steps = {"verbalization-large": (0, 4), "verbalization-small": (4, 4), "interaction": (8, 5)}
    for key, (before, count) in (steps | {"reinforcement": (13, 5)}).items():
        wanted = [line for line in lines(output / "metrics.jsonl") if line["stage"] == key]
        told = read.Scalars(f"{key}/loss")
        assert [one.step for one in told] == [before + n + 1 for n in range(count)], key
        assert [one.value for one in told] == pytest.approx([line["loss"] for line in wanted])
    shares = [one.value for one in read.Scalars("interaction/teacher_share")]
    assert all(0 < share < 1 for share in shares)
    scores = json.loads((output / "progress.json").read_text("utf-8"))["scores"]
    (after,) = read.Scalars("held_out/small_after/loss")
    assert (after.step, after.value) == (18, pytest.approx(scores["small after"]["loss"]))
    assert {"interaction/matched_layers/1", "interaction/matched_layers/3"} <= set(read.Tags()["histograms"])

    taken = lines(output / "samples.jsonl")
    places = [(one["stage"], one["step"]) for one in taken]
    assert places == [
        *[("verbalization-small", 3)] * 2,
        *[("verbalization-small", 4)] * 2,
        *[("interaction", 3)] * 2,
        *[("interaction", 5)] * 2,
    ], "each once, in order: those that came again were dropped first"
    assert {tuple(one["answers"]) for one in taken} == {("1", "2", "3", "last")}  # type: ignore[call-overload]
    _, split, _, number = str(taken[0]["record"]).split("-")
    assert (
        taken[0]["question"] == pattern_record(split, int(number)).turns[-1].text
    )  # no words of the template
    assert taken[0]["reference"]
    line = next(one for one in lines(output / "metrics.jsonl") if one["stage"] == "interaction")
    assert 0 < line["teacher_seconds"] < line["seconds"]  # type: ignore[operator]
    assert line["peak_memory_bytes"] >= line["memory_bytes"] > 0  # type: ignore[operator]
    assert set(line["matched"]) == {"1", "2", "3"}  # type: ignore[call-overload]


@pytest.mark.parametrize("matched", [True, False])
def test_a_step_of_the_interaction_that_is_not_finite_runs_again(
    pair: tuple[Path, Path], tmp_path: Path, matched: bool
) -> None:
    """An absurd rate ruins the weights in the first step; the second one is kept, and gives the same again.

    Where layers are matched by divergence, that fails before there is a loss; a uniform match gets one.
    """
    output = tmp_path / "run"
    sets = ["verbalization.steps=1", f"interaction.{EXPLODES}", "evaluation.data=null"]
    sets += [] if matched else ["interaction.matching.strategy=uniform"]
    what = "the divergence of .* is nan" if matched else "the loss of 1, 2, 3, last is not finite"
    with pytest.raises(TrainingError, match=rf"^step 2 of interaction: {what} \(learning rate") as raised:
        run(short(pair, *sets), output=output, events=ev.ignore)
    bundle = output / "failures" / "interaction-00000002"
    assert f"vlsi distill --reproduce {bundle}" in str(raised.value.hint)
    assert {path.name for path in bundle.iterdir()} == {
        *("failure.json", "config.yaml"),
        *("batches.safetensors", "trained.safetensors", "random.safetensors"),
    }
    facts = json.loads((bundle / "failure.json").read_text("utf-8"))
    records = [one["records"] for one in facts["micro_batches"]]
    assert [len(each) for each in records] == [2, 2]

    found = reproduce.run(bundle, events=ev.ignore)
    assert found.same
    assert (found.message is not None) is matched
    assert [list(one.records) for one in found.micro_batches] == records
    if not matched:
        assert set(found.terms) == {"1", "2", "3", "last"}
        assert not any(torch.tensor(list(found.terms.values())).isfinite())

    good = load_file(bundle / "trained.safetensors")
    save_file({name: torch.zeros_like(t) for name, t in good.items()}, bundle / "trained.safetensors")
    with pytest.raises(CheckpointError, match=r"is damaged: trained\.safetensors has another hash"):
        reproduce.run(bundle, events=ev.ignore)


def test_reproducing_from_the_command_line(pair: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "run"
    sets = (
        *("teacher=null", "verbalization=null", "interaction=null", "evaluation.data=null"),
        *(f"reinforcement.{EXPLODES}", "reinforcement.gradient_accumulation=2", "reinforcement.batch_size=2"),
    )
    command = ["distill", "--recipe", "demo", "--student", str(pair[1]), "--output", str(output)]
    for each in sets:
        command += ["--set", each]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == TrainingError.exit_code, done.output
    (bundle,) = (output / "failures").iterdir()
    assert f"--reproduce {bundle}" in " ".join(done.stderr.split())

    again = CliRunner().invoke(app, ["distill", "--reproduce", str(bundle)])
    assert again.exit_code == 0, again.output
    assert "the step gives what it gave" in again.stdout
    assert "all trained parameters are finite before the step; the largest magnitude is" in again.stdout
    spoken = CliRunner().invoke(app, ["distill", "--reproduce", str(bundle), "--json"])
    document = json.loads(spoken.stdout)
    assert document["same"] is True
    assert set(document["terms"]) == {"last"}
    assert not torch.isfinite(torch.tensor(float(document["terms"]["last"])))
    assert len(document["micro_batches"]) == 2

    refused = CliRunner().invoke(app, ["distill", "--reproduce", str(bundle), "--seed", "3"])
    assert refused.exit_code == 2
    assert "but --seed was given too" in refused.stderr
    nothing = CliRunner().invoke(app, ["distill", "--reproduce", str(output)])
    assert nothing.exit_code == CheckpointError.exit_code
    assert "holds no failed step" in nothing.stderr


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlsi_cli.config.watching.find_spec", lambda name: None)
    output = tmp_path / "run"
    command = ["distill", "--report-to", "wandb", "--output", str(output)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "report to wandb, but the package wandb is not installed" in " ".join(done.stderr.split())
    assert not output.exists()
    unknown = CliRunner().invoke(app, ["distill", "--report-to", "tensorbord", "--output", str(output)])
    assert unknown.exit_code == 2
    assert "tensorboard" in unknown.stderr


@pytest.mark.parametrize(
    ("setting", "package"),
    [("interaction.train=lora", "peft"), ("teacher.quantization=8bit", "bitsandbytes")],
)
def test_a_package_that_a_later_stage_needs_is_named_before_anything_is_made(
    setting: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlsi_cli.config.extras.find_spec", lambda name: None)
    output = tmp_path / "run"
    done = CliRunner().invoke(app, ["distill", "--set", setting, "--output", str(output)])
    assert done.exit_code == 2
    assert package in done.stderr
    assert "which is not installed" in " ".join(done.stderr.split())
    assert "vlsi-cli[" in done.stderr
    assert not output.exists()


def test_a_picture_that_the_text_names_is_told_once(pair: tuple[Path, Path], tmp_path: Path) -> None:
    def talk(text: str) -> str:
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "red"}]
        return json.dumps({"id": text[:5], "messages": messages}) + "\n"

    data = tmp_path / "data.jsonl"
    told: list[str] = []
    for rows, wanted in (([talk("Which?")], 0), ([talk("Which?"), talk("Is <img>a.png</img> red?")], 1)):
        data.write_text("".join(rows))
        words = ("teacher=null", "verbalization=null", "interaction=null", "evaluation.data=null")
        sets = ("reinforcement.steps=3", f"data={{sources: [{{kind: messages, path: {data}}}]}}")

        def note(event: ev.Event) -> None:
            if isinstance(event, ev.Warn):
                told.append(event.text)

        run(short(pair, *words, *sets), output=tmp_path / str(wanted), events=note)
        assert [text for text in told if "<img>" in text] == [
            "data: the text of Is <i holds <img>...</img>, which is trained on as words, and no picture is read there; "
            "`vlsi data check` counts such records"
        ] * wanted
