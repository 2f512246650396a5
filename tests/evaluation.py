"""Small tasks of every kind for the harness, synthetic rows for its judged ones, and a judge on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vlsi_cli.config import harness
from vlsi_cli.config.benchmarks import Benchmark, table
from vlsi_cli.engine.data.patterns import pattern_record

needs_harness = pytest.mark.skipif(
    harness.installed() is None, reason="lmms-eval is not installed; README.md says how"
)

CODE = """
from PIL import Image

def picture(doc):
    return [Image.open(doc["picture"]).convert("RGB")]

def held(doc):
    import time
    from pathlib import Path
    file = Path(doc["picture"])
    while int(file.stem) >= 4 and not file.with_name("go").exists():
        time.sleep(0.05)
    return picture(doc)

def both(doc):
    return [Image.open(name).convert("RGB") for name in doc["pictures"]]

def choose(doc):
    return doc["question"] + "".join(f" {letter}. {word}" for letter, word in zip("AB", doc["choices"]))

def score(doc, results):
    return {"right": float(results[0].strip().lower().strip(".") == doc["answer"])}

def fail(doc, results):
    raise KeyError("no such field")

def shuffled(data):
    import random
    order = list(range(len(data)))
    random.shuffle(order)
    return data.select(order)

def fill(doc, results):
    import random
    return {"right": float(random.choice("AB") == "A")}
"""
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}.json}}}}
test_split: test
output_type: {kind}
doc_to_visual: !function code.{visual}
doc_to_text: {text}
doc_to_target: answer
{more}
"""
RIGHT = (
    "process_results: !function code.{0}\n"
    "metric_list: [{{metric: right, aggregation: mean, higher_is_better: true}}]"
)
SHORT = "generation_kwargs: {max_new_tokens: 8}"


def write_tasks(folder: Path, count: int = 12) -> Path:
    """A folder of tasks: `open` (an open answer), `choice` (a letter, generated), `likely` (a choice by likelihood),
    `pair` (two pictures), `chance` (shuffles its rows when it is made, and fills in at random), `broken` (its scoring
    fails), `held` (from its fifth question on it waits for the file `go`), `rounds` and `empty`."""
    (folder / "code.py").write_text(CODE, encoding="utf-8")
    rows: list[dict[str, Any]] = []
    for index in range(count):
        puzzle = pattern_record("test", index, questions=("what",))
        file = folder / f"{index}.png"
        puzzle.image.save(file)
        words = [
            puzzle.turns[0].answer,
            pattern_record("test", index + count, questions=("what",)).turns[0].answer,
        ]
        if words[0] == words[1]:
            words[1] = "blue star"
        right = index % 2
        rows.append(
            {
                "picture": str(file),
                "pictures": [str(file), str(folder / "0.png")],
                "question": puzzle.turns[0].text,
                "answer": words[0],
                "choices": words[:: -1 if right else 1],
                "right": right,
            }
        )
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    letters = [{**row, "answer": "ab"[row["right"]]} for row in rows]
    (folder / "letters.json").write_text(json.dumps(letters), encoding="utf-8")
    (folder / "none.json").write_text("[]", encoding="utf-8")

    def task(name: str, more: str, *, data: str = "rows", kind: str = "generate_until", visual: str = "picture",
             text: str = "question") -> None:  # fmt: skip
        filled = TASK.format(name=name, data=data, kind=kind, visual=visual, text=text, more=more)
        (folder / f"{name}.yaml").write_text(filled, encoding="utf-8")

    task("open", f"{RIGHT.format('score')}\n{SHORT}")
    task("choice", f"{RIGHT.format('score')}\n{SHORT}", data="letters", text="!function code.choose")
    likely = "doc_to_choice: choices\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]"
    task("likely", likely, kind="multiple_choice")
    (folder / "likely.yaml").write_text(
        (folder / "likely.yaml").read_text("utf-8").replace("doc_to_target: answer", "doc_to_target: right"),
        "utf-8",
    )
    task("held", f"{RIGHT.format('score')}\n{SHORT}", visual="held")
    task("pair", f"{RIGHT.format('score')}\n{SHORT}", visual="both")
    task("chance", f"{RIGHT.format('fill')}\n{SHORT}\nprocess_docs: !function code.shuffled")
    task("broken", f"{RIGHT.format('fail')}\n{SHORT}")
    task("empty", f"{RIGHT.format('score')}\n{SHORT}", data="none")
    task("rounds", RIGHT.format("score"), kind="generate_until_multi_round")
    return folder


# ---------------------------------------------------------------- judged benchmarks


_FIELDS: dict[str, dict[str, Any]] = {
    "qbench": {"id": "0", "option0": "cat", "option1": "dog", "option2": "N/A", "option3": "N/A", "category": "c",
               "correct_choice": "A", "question_concern": 0, "question_type": 0},
    "ai2d": {"options": ["cat", "dog"], "answer": "0"},
    "chartqa": {"answer": "A", "type": "human_test"},
    "pope": {"answer": "yes", "category": "adversarial", "image_source": "s"},
    "mme": {"question_id": "one", "category": "existence", "answer": "Yes"},
    "mmvet": {"capability": "rec"},
    "mmvet_v2": {"id": "v2_0", "capability": "rec", "question": "What is it?<IMG><image_0>"},
    "hallusionbench": {"question_id": "0", "category": "VD", "subcategory": "chart", "set_id": "0", "figure_id": "1",
                       "gt_answer": "1", "gt_answer_details": "It is a cat.", "visual_input": "1"},
    "mathvista": {"pid": "0", "query": "What is it?", "unit": "", "caption": "", "question_type": "multi_choice",
                  "answer_type": "text", "choices": ["cat", "dog"], "answer": "cat", "precision": 0.0,
                  "metadata": {"split": "testmini", "language": "english", "source": "s", "category": "c", "task": "t",
                               "context": "x", "grade": "g", "skills": ["k"]}},
    "mmbench_en": {"index": 1, "hint": "nan", "A": "cat", "B": "dog", "C": "cow", "D": "hen", "answer": "A",
                   "category": "c", "L2-category": "l", "source": "s", "split": "dev"},
    "mmmu": {"id": "validation_Art_1", "question": "<image 1> What?", "options": "['cat', 'dog']", "answer": "A",
             "question_type": "multiple-choice"},
    "mmstar": {"index": 0, "answer": "A", "category": "c", "l2_category": "l", "question": "What? A: cat, B: dog"},
    "seedbench_2_plus": {"question_id": "0", "answer": "A", "question_image_type": "chart", "choice_A": "cat",
                         "choice_B": "dog", "choice_C": "cow", "choice_D": "hen"},
    "blink": {"idx": "0", "sub_task": "Art_Style", "prompt": "What? (A) cat (B) dog", "choices": ["cat", "dog"],
              "answer": "(A)", "explanation": ""},
    "cvbench": {"idx": 0, "type": "2D", "task": "Count", "source": "s", "prompt": "What? (A) cat (B) dog",
                "choices": ["cat", "dog"], "answer": "(A)"},
    "llava_wilder": {"question_id": 0, "Question": "What is it?", "Answer": "A cat."},
}  # fmt: skip
_FIELDS["mmbench_cn"] = _FIELDS["mmbench_en"]
_NUMBERED = ("id", "idx", "index", "pid", "question_id")
_OTHER = {"A": "B", "0": "1", "yes": "no", "Yes": "No", "(A)": "(B)"}
_PICTURES = {"mathvista": "decoded_image", "mmvet_v2": "image_0", "mmmu": "image_1", "blink": "image_1"}


def _rows(name: str, count: int) -> list[dict[str, Any]]:
    """Rows with the fields that the harness's own code for a benchmark reads. Of a multiple choice, or of yes and no,
    every second answer is another; MME's questions come in pairs."""
    made = []
    for n in range(count):
        row = {
            "question_id": f"q{n}",
            "question": "What is in the picture?",
            "answer": "a cat",
            **_FIELDS[name],
        }
        for field in _NUMBERED if name != "mme" else ():
            value = _FIELDS[name].get(field)
            if isinstance(value, int):
                row[field] = value + n
            elif value is not None:
                row[field] = value[:-1] + str(n)
        if n % 2 and name not in ("mathvista", "mmbench_en", "mmbench_cn"):
            for field in ("answer", "correct_choice"):
                row[field] = _OTHER.get(str(row.get(field)), row.get(field))
        made.append(row)
    return made


def with_rows(name: str, folder: Path, count: int = 2) -> Benchmark:
    """A benchmark of the table, the harness's own code and all, asking rows of ours."""
    import datasets
    from PIL import Image

    row = table()[name]
    root = harness.tasks_folder()
    assert root is not None
    folder.mkdir(parents=True, exist_ok=True)
    images = [Image.new("RGB", (32, 8), (40 * n, 90, 200)) for n in range(count)]
    column = _PICTURES.get(name, "image")
    pictures = datasets.Dataset.from_dict(
        {column: images}, features=datasets.Features({column: datasets.Image()})
    )
    rows = datasets.concatenate_datasets([datasets.Dataset.from_list(_rows(name, count)), pictures], axis=1)
    datasets.DatasetDict({str(row.split): rows}).save_to_disk(str(folder / "data"))
    original = root / row.files[0]
    file = folder / f"{name}.yaml"
    file.write_text(
        f"include: {original}\ndataset_path: {folder / 'data'}\ndataset_name: null\n"
        f"dataset_kwargs: {{load_from_disk: true}}\n"
        "generation_kwargs: {max_new_tokens: 3}\n",
        encoding="utf-8",
    )
    return replace(row, tasks=row.tasks[:1], files=(file,), data=None)


class LocalJudge:
    """An OpenAI-compatible server on this machine.

    Attributes:
        mode: `works`, `refuses`, `stalls`, `prose`, `out-of-range`, `busy-once` or `cut-off-once`.
        verdict: what it says when it works.
        asked: the bodies of the questions it got.
    """

    def __init__(self, verdict: str) -> None:
        self.mode, self.verdict = "works", verdict
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = ""
        self.released = threading.Event()

    def answer(self, body: dict[str, Any]) -> tuple[int, str]:
        self.asked.append(body)
        if "Reply with the word" in json.dumps(body):
            return 200, "ready"
        if self.mode == "refuses":
            return 401, ""
        if self.mode == "busy-once" and len(self.asked) == 2:
            return 503, ""
        if self.mode == "stalls":
            self.released.wait(300)
            return 200, self.verdict
        if self.mode == "prose":
            return 200, "I cannot say, since I see\nneither of the pictures."
        return 200, "11 14" if self.mode == "out-of-range" else self.verdict


@contextmanager
def local_judge(verdict: str) -> Iterator[LocalJudge]:
    """A judge that listens on a free port until the block ends."""
    judge = LocalJudge(verdict)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            judge.keys.append(self.headers.get("Authorization"))
            status, text = judge.answer(body)
            reply = {"model": "local-judge", "choices": [{"message": {"role": "assistant", "content": text}}]}
            raw = json.dumps(reply).encode()
            try:
                self.send_response(status)
                cut_off = judge.mode == "cut-off-once" and len(judge.asked) == 2
                self.send_header("Content-Length", str(len(raw) + 9 * cut_off))
                self.end_headers()
                self.wfile.write(raw)
            except BrokenPipeError:
                pass  # who asked has stopped waiting

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield judge
    finally:
        judge.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
