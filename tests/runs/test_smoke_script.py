"""The smoke test of docs/ci.md, on a recipe and records as a reader may have them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.examples import run_example
from vlsi_cli.engine.data.patterns import pattern_record

RECIPE = """
name: mine
teacher: {id: Qwen/Qwen2-VL-7B-Instruct, targets: {start: 2, stride: 4}, quantization: 8bit, verbalizers: /data/large}
student: {id: Qwen/Qwen2-VL-2B-Instruct, targets: {start: 2, stride: 4}}
data: {sources: [{kind: llava, path: /data/everything.json, records: 50000}], max_length: 2048}
verbalization: {epochs: 1, batch_size: 4, gradient_accumulation: 128}
interaction: {epochs: 1, batch_size: 4, gradient_accumulation: 128, gradient_checkpointing: true, train: lora}
reinforcement: {epochs: 0.5, batch_size: 4, gradient_accumulation: 128, train: lora}
evaluation: {data: {sources: [{kind: llava, path: /data/held-out.json}]}}
watch: {samples: 4, report_to: [wandb]}
precision: bf16
device: cuda
"""


def test_a_recipe_and_records_of_ones_own(tmp_path: Path) -> None:
    lines = []
    for number in range(6):
        puzzle = pattern_record("train", number)
        puzzle.image.save(tmp_path / f"{number}.png")
        turns = [("human", f"<image>\\n{puzzle.turns[0].text}"), ("gpt", puzzle.turns[0].answer)]
        talk = [{"from": who, "value": text} for who, text in turns]
        lines.append(json.dumps({"id": str(number), "image": f"{number}.png", "conversations": talk}))
    (tmp_path / "sample.jsonl").write_text("\n".join(lines))
    (tmp_path / "mine.yaml").write_text(RECIPE)
    given = {"RECIPE": "mine.yaml", "DATA": "sample.jsonl", "DEVICE": "h100"}
    done = run_example("ci-smoke.sh", tmp_path, given)
    assert done.returncode == 0, done.stderr
    assert "mine.yaml: valid" in done.stdout
    assert "6 of 6 records can be used" in done.stdout
    assert (tmp_path / "runs/ci/student/model.safetensors").is_file()
    log = done.stderr.splitlines()
    assert sum(" 2/2, loss " in line for line in log) == 4, "two steps of each of the four stages"
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr

    (tmp_path / "3.png").write_bytes(b"no picture")
    done = run_example("ci-smoke.sh", tmp_path, given)
    assert done.returncode == 3, done.stderr
    assert "5 of 6 records can be used" in done.stdout
