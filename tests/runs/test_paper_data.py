"""The paper's data as they are published: every source of a recipe is read without being rewritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from typer.testing import CliRunner

from vlsi_cli.app import app


def llava(id: str, image: str | None = None) -> dict[str, Any]:
    """A record as LLaVA, ShareGPT4V, ALLaVA, MiniGemini and SMR write them."""
    question = "<image>\nWhat is it?" if image else "What is it?"
    talk = [{"from": "human", "value": question}, {"from": "gpt", "value": "A square."}]
    return {"id": id, "conversations": talk} | ({"image": image} if image else {})


def docowl(image: str) -> dict[str, Any]:
    """A record as mPLUG's DocDownstream and DocReason write them."""
    talk = [
        {"role": "user", "content": "<|image|>What is it?"},
        {"role": "assistant", "content": "A square."},
    ]
    return {"image": [image], "messages": talk, "task_name": "qa_sft", "dataset_name": "DocVQA"}


def lay_out(root: Path) -> None:
    """One record a source, in the files and forms of the layout that the recipes name."""
    for place in (
        "sharegpt4o/1.jpg",
        "sam/images/1.jpg",
        "coco/train2017/1.jpg",
        "ALLaVA-4V/allava_vflan/images/1.jpg",
        "docvqa/images/1.png",
        "arxivqa/images/1.jpg",
        "imgs/DUE_Benchmark/DocVQA/pngs/1.png",
        "geo3k/train/1.png",
        "geoqa_plus/1.png",
        "images/1.jpg",
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), "red").save(root / place)
    listed: dict[str, list[dict[str, Any]]] = {
        "sharegpt4o.jsonl": [llava("0", "sharegpt4o/1.jpg")],
        "sharegpt4v_instruct_gpt4-vision_cap100k.json": [llava("0", "sam/images/1.jpg")],
        "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json": [
            llava("0", "coco/train2017/1.jpg"),
            llava("1"),
        ],
        "allava_vflan.jsonl": [llava("0", "ALLaVA-4V/allava_vflan/images/1.jpg")],
        "Evol-Instruct-GPT4-Turbo-143K.json": [llava("0")],
        "minigemini_documents.jsonl": [llava("0", "docvqa/images/1.png")],
        "SMR.json": [llava("0", "arxivqa/images/1.jpg")],
        "train.jsonl": [docowl("./imgs/DUE_Benchmark/DocVQA/pngs/1.png")],
        "detailed_explanation.jsonl": [docowl("./imgs/DUE_Benchmark/DocVQA/pngs/1.png")],
        "MathInstruct.json": [{"source": "a", "instruction": "1 + 1?", "output": "2"}],
    }
    for name, records in listed.items():
        lines = [json.dumps(record) for record in records]
        text = "\n".join(lines) if name.endswith("l") else f"[{', '.join(lines)}]"
        (root / name).write_text(text + "\n")
    asked = {"question": "How many? <image1>", "options": [], "answer": "3", "image": "images/1.jpg"}
    tables = {
        "gllava_align.parquet": {k: v for k, v in llava("0", "geo3k/train/1.png").items() if k != "id"},
        "gllava_qa.parquet": {k: v for k, v in llava("0", "geoqa_plus/1.png").items() if k != "id"},
        "mathvision.parquet": asked,
        "mathplus.parquet": {"instruction": "1 + 1?", "output": "2"},
    }
    for name, row in tables.items():
        pq.write_table(pa.Table.from_pylist([row]), root / name)


def test_every_source_is_read_as_it_is_published(tmp_path: Path) -> None:
    root = tmp_path / "data"
    lay_out(root)
    words = ["data", "check", "--recipe", "qwen2-vl-7b-to-2b", "--model", "demo/small", "--workers", "0"]
    words += ["--set", f"data.root={root}", "--strict", "--json"]
    done = CliRunner().invoke(app, words, prog_name="vlsi")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [source["usable"] for source in report["sources"]] == [1, 1, 2, *[1] * 11]
    assert [source["with_images"] for source in report["sources"]] == [1, 1, 1, 1, 0, *[1] * 7, 0, 0]
