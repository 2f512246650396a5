"""The package as a guest in somebody's process: what it takes, what it leaves, and what it says."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

import vlsi_cli as vlsi
from tests.invariants.tree import ROOT
from tests.pairs import tiny_pair
from vlsi_cli.engine.runs.surroundings import left_as_found
from vlsi_cli.errors import CheckpointError, ConfigError, DataError

#: Fine-tuning alone, which is the quickest run.
SHORT = {
    "teacher": None,
    "verbalization": None,
    "interaction": None,
    "reinforcement": {"steps": 2, "batch_size": 1},
    "evaluation": None,
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_pair(tmp_path_factory.mktemp("pair"))


def _process() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False)["state"]["key"].tolist(),
        "threads": torch.get_num_threads(),
        "products": (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32),
        "variables": dict(os.environ),
        "signals": [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)],
        "gradients": torch.is_grad_enabled(),
    }


def test_a_run_inside_an_event_loop_leaves_the_process_as_it_was(
    pair: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = Accelerator(cpu=True, gradient_accumulation_steps=3)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)  # the recipe asks for one
    torch.backends.cudnn.allow_tf32 = True
    try:
        before, seen = _process(), list[vlsi.events.Event]()

        async def cell() -> vlsi.Report:
            return vlsi.distill(
                "demo", student=pair[1], overrides=SHORT, output=tmp_path / "run", events=seen.append
            )

        report = asyncio.run(cell())
        assert _process() == before
    finally:
        torch.set_num_threads(threads)
    assert own.state.initialized
    assert own.gradient_state.num_steps == 3
    assert not own.state.use_distributed
    assert capfd.readouterr() == ("", "")
    assert report.student == tmp_path / "run/student"
    steps = [event for event in seen if isinstance(event, vlsi.events.StepDone)]
    assert [event.step for event in steps] == [1, 2]
    origins = json.loads((tmp_path / "run/origins.json").read_text())["origins"]
    assert (origins["reinforcement.steps"], origins["student.id"]) == ("overrides", "--student")


def test_a_run_that_its_watcher_ends_goes_on_in_another_thread(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    class Enough(Exception):
        pass

    def watch(event: vlsi.events.Event) -> None:
        if isinstance(event, vlsi.events.StepDone) and event.step == 2:
            raise Enough

    longer = {**SHORT, "reinforcement": {"steps": 3, "batch_size": 1}, "checkpoint_every": 1}
    with pytest.raises(Enough):
        vlsi.distill("demo", student=pair[1], overrides=longer, output=tmp_path / "run", events=watch)
    assert vlsi.read_run(tmp_path / "run").student is None
    steps: list[int] = []

    def again(event: vlsi.events.Event) -> None:
        if isinstance(event, vlsi.events.StepDone):
            steps.append(event.step)

    thread = threading.Thread(target=lambda: vlsi.distill(resume=tmp_path / "run", events=again))
    thread.start()
    thread.join()
    assert steps == [2, 3]
    run = vlsi.read_run(tmp_path / "run")
    assert run.finished
    assert [line["step"] for line in run.metrics("reinforcement")] == [1, 2, 3]
    assert run.metrics("interaction") == run.matches() == run.samples() == []
    assert run.config.reinforcement is not None
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"stage": "reinf')
    assert len(run.metrics()) == 3  # the run is writing the fourth
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write("\n{}\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl:4 is damaged"):
        run.metrics()


def test_layers_say_what_transformers_hidden_states_say(pair: tuple[Path, Path]) -> None:
    """The logit lens by hand: the final norm and the head on every hidden state, at each place before a token."""
    reader = vlsi.load_layers(pair[1], logit_lens=True)
    picture = Image.new("RGB", (16, 24), "blue")
    states = reader.read(picture, "What is shown?", "A blue square")
    assert states.layers == (1, 2, 3, 4)

    inner = reader._backbone
    record = [{"type": "image"}, {"type": "text", "text": "What is shown?"}]
    talk = [{"role": "user", "content": record}, {"role": "assistant", "content": "A blue square"}]
    text = reader.processor.apply_chat_template(talk)
    inputs = reader.processor(text=[text], images=[picture], return_tensors="pt")
    with torch.no_grad():
        found = reader.model(**inputs, output_hidden_states=True).hidden_states
        normed = [inner.final_norm(state) for state in found[1:-1]]  # the last is normed already
        logits = torch.stack([inner.head(state[0]) for state in (*normed, found[-1])])
    logits = logits[:, :, : states.vocabulary].log_softmax(-1)
    ids = inputs["input_ids"][0]
    end = int((ids == states.targets[-1]).nonzero()[-1])
    places = slice(end - len(states.targets), end)
    assert torch.equal(ids[end - len(states.targets) + 1 : end + 1], states.targets)
    # fp32 sums in another order
    close = {"rtol": 1e-4, "atol": 1e-4}
    for number, layer in enumerate(states.layers):
        torch.testing.assert_close(states.log_distribution(layer), logits[number, places], **close)
    chosen = logits[:, places].gather(2, states.targets.expand(4, -1)[..., None])[..., 0]
    torch.testing.assert_close(states.log_probabilities(), chosen, **close)
    values, ids = states.likeliest(3)
    torch.testing.assert_close(values, logits[:, places].topk(3).values, **close)
    assert ids.shape == (4, len(states.targets), 3)
    with pytest.raises(ValueError, match="layer 7 was not read"):
        states.log_distribution(7)


def test_records_are_read_as_one_by_one_and_alike_by_two_models(pair: tuple[Path, Path]) -> None:
    large, small = (vlsi.load_layers(each, layers=[2]) for each in pair)
    data = {"kind": "patterns", "split": "test"}
    together = list(small.read_data(data, samples=3, batch_size=2))
    apart = list(small.read_data(data, samples=3, batch_size=1))
    assert [len(each.records) for each in together] == [2, 1]
    ours = torch.cat([each.states for each in together], 1)
    # batches pad, and sums come in another order
    torch.testing.assert_close(ours, torch.cat([each.states for each in apart], 1), rtol=1e-4, atol=1e-4)
    theirs = list(large.read_data(data, samples=3, batch_size=2))
    for a, b in zip(together, theirs, strict=True):
        assert (a.records, a.rows.tolist(), a.targets.tolist()) == (
            b.records,
            b.rows.tolist(),
            b.targets.tolist(),
        )


def test_a_question_without_a_picture(pair: tuple[Path, Path]) -> None:
    found = vlsi.load_layers(pair[1], layers=[1]).answers(None, "Why?", max_new_tokens=2)
    assert [len(each.tokens) for each in found.layers] == [2, 2]


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: vlsi.distill(overrides={"interaction.stpes": 3}), ConfigError, "overrides: unknown key 'stpes'"),
        (lambda: vlsi.distill(overrides={"interaction.steps": "x"}), ConfigError, "overrides: interaction.steps"),
        (lambda: vlsi.distill(teacher="demo/large"), ConfigError, "--teacher is given without --student"),
        (lambda: vlsi.distill(resume="nowhere", seed=0), ConfigError, "but --seed was given too"),
        (lambda: vlsi.distill(resume="auto", overwrite=True), ConfigError, "--resume auto would"),
        (lambda: vlsi.distill(skip_damaged=True), ConfigError, "there is no --resume"),
        (lambda: vlsi.distill(data={"kind": "paterns"}), ConfigError, "kind: input should be"),
        (lambda: vlsi.match_layers(at="start"), ConfigError, "--at is about a run"),
        (lambda: vlsi.match_layers(run="nowhere", teacher="a"), ConfigError, "--run brings its own models"),
        (lambda: vlsi.match_layers(samples=0), ConfigError, "samples is 0, and must be"),
        (lambda: vlsi.match_layers(ends=10), ConfigError, "a share of the steps, at most 0.5"),
        (lambda: vlsi.load_layers("demo/small").answers(None, "a", place=0), ConfigError, "place is 0"),
        (lambda: [*vlsi.load_layers("demo/small").read_data("patterns", samples=2.5)], ConfigError, "samples is 2.5"),
        (lambda: vlsi.load_layers("demo/small", layers=[9]), ConfigError, "there is no layer 9"),
        (lambda: vlsi.load_layers("demo/small", layers=[0]), ConfigError, "there is no layer 0"),
        (lambda: vlsi.distill("demo", report_to="no"), ConfigError, "report_to.0: input should be .*, not 'no'"),
        (lambda: vlsi.evaluate([]), ConfigError, "models: input should hold one at least, not"),
        (lambda: vlsi.load_layers("demo/small").answers("nowhere.png"), DataError, "no picture nowhere.png"),
        (lambda: vlsi.load_layers("demo/small").answers(None, "<|im_end|>"), ConfigError, "a control token"),
        (lambda: vlsi.load_layers("demo/small").read(None, "a", " "), DataError, "without text"),
        (lambda: [*vlsi.load_layers("demo/small").read_data({"kind": "no"})], ConfigError, "sources.0.kind"),
        (lambda: vlsi.read_run("nowhere"), CheckpointError, "it does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_a_sentence(
    call: Callable[[], object],
    kind: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        call()
    assert not any(tmp_path.iterdir())


NEWER = """
import torch
from vlsi_cli.engine.devices import round_products
from vlsi_cli.engine.runs.surroundings import left_as_found
torch.backends.cuda.matmul.fp32_precision = "tf32"
torch.backends.cudnn.conv.fp32_precision = "tf32"
with left_as_found():
    round_products(True, torch.float32)
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "tf32"
"""


def test_rounding_that_was_set_in_the_newer_way_is_put_back() -> None:
    """In a process of its own: torch does not let go of which way was used."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", NEWER], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_second_run_in_another_thread_is_refused(tmp_path: Path) -> None:
    refused: list[ConfigError] = []

    def second() -> None:
        try:
            vlsi.distill("demo", overrides=SHORT, output=tmp_path / "run")
        except ConfigError as error:
            refused.append(error)

    with left_as_found(), left_as_found():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "under way in another thread" in str(refused[0])
    assert not any(tmp_path.iterdir())


def test_what_launchers_ask_for_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two runs in one process takes the variables out."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    with left_as_found():
        del os.environ["ACCELERATE_USE_FSDP"]
        os.environ["DS_ACCELERATOR"] = "cpu"
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    assert "DS_ACCELERATOR" not in os.environ


@pytest.mark.gpu
def test_the_gpu_draws_on_as_it_would_have() -> None:
    device = torch.device("cuda", 0)
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state(device)
    with left_as_found(device):
        torch.manual_seed(0)
        torch.rand(4, device=device)
    assert torch.equal(torch.cuda.get_rng_state(device), before)
