"""The first command of the README: the whole method on the shipped pair, in a process of its own, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlsi_cli.engine.data.patterns import pattern_record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """`vlsi distill --json` without any other argument: run folder, report, and what was said on stderr."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "vlsi_cli", "distill", "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "demo-1", json.loads(done.stdout), done.stderr


def last_terms(run: Path, stage: str) -> dict[str, float]:
    """Mean loss per target layer over the last ten steps of a stage."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    tail = [row["terms"] for row in rows if row["stage"] == stage][-10:]
    return {layer: sum(terms[layer] for terms in tail) / len(tail) for layer in tail[0]}


def test_the_small_model_does_better_after_than_before(demo: tuple[Path, dict[str, Any], str]) -> None:
    _, report, _ = demo
    scores = {score["who"]: score for score in report["scores"]}
    assert scores["large"]["accuracy"] >= 0.9
    assert scores["small after"]["accuracy"] >= scores["small before"]["accuracy"] + 0.05
    assert scores["small after"]["loss"] < scores["small before"]["loss"]


@pytest.mark.parametrize("side", ["large", "small"])
def test_what_layers_can_say_grows_with_depth(demo: tuple[Path, dict[str, Any], str], side: str) -> None:
    """Arithmetic of the paper's figures: each layer's verbalizer learns alone, so deeper layers end lower."""
    terms = last_terms(demo[0], f"verbalization-{side}")
    losses = [terms[layer] for layer in sorted(terms, key=int)]
    assert len(losses) >= 3
    assert losses == sorted(losses, reverse=True)


PLAIN = """
import json, sys
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil
folder, asked = sys.argv[1], json.load(sys.stdin)
model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
tokenizer, eyes = AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessorPil.from_pretrained(folder)
said = []
for picture, question in asked:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    chat = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    seen = eyes(images=[Image.open(picture)], return_tensors="pt")
    tokens = int(seen["image_grid_thw"].prod()) // eyes.merge_size**2
    text = text.replace("<|image_pad|>", "<|image_pad|>" * tokens)
    inputs = tokenizer(text, return_tensors="pt")
    kinds = (inputs["input_ids"] == model.config.image_token_id).int()
    out = model.generate(**inputs, **seen, mm_token_type_ids=kinds, max_new_tokens=40, do_sample=False)
    said.append(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
assert not any(name.startswith("vlsi") for name in sys.modules)
print(json.dumps(said))
"""


def test_the_student_answers_through_plain_transformers(
    demo: tuple[Path, dict[str, Any], str], tmp_path: Path
) -> None:
    """Pictures and questions put to it without any code of this package: the answers that the run wrote down."""
    run, _, _ = demo
    answers = json.loads((run / "answers" / "small-after.json").read_text("utf-8"))[:12]
    asked = []
    for number, answer in enumerate(answers):
        puzzle = pattern_record("test", int(answer["record"].rsplit("-", 1)[1]))
        puzzle.image.save(tmp_path / f"{number}.png")
        asked.append([str(tmp_path / f"{number}.png"), puzzle.turns[0].text])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLAIN, str(run / "student")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [answer["prediction"] for answer in answers]


def test_progress_without_a_terminal_is_plain_lines(demo: tuple[Path, dict[str, Any], str]) -> None:
    said = demo[2]
    assert "\x1b[" not in said
    for stage in ("verbalization", "interaction", "reinforcement"):
        assert f"{stage} " in said
