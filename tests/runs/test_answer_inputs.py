"""`vlsi data answer`: other data than files of questions, bad input, a full disk, and several processes."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.image_server import HOST, ImageServer
from tests.runs.answering import LARGE, answered, labelled, puzzles, questions, refused, rows, said, vlsi
from tests.tiny import tiny_folder
from vlsi_cli.engine.data import fetching
from vlsi_cli.engine.evaluation.labelling import Labeller


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    return questions(tmp_path, 3)[0]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("questions.json -o out.jsonl", 2, "no model is named that answers"),
        ("--recipe demo-large -o out.jsonl --limit 2", 2, "no model is named that answers"),
        ("questions.json -o out.jsonl --set teacher.placement=disk", 2, "teacher.id is not given"),
        ("--model demo/large -o out.jsonl", 2, "no data are given"),
        ("questions.json --model demo/large", 2, "Missing option '--output'"),
        ("questions.json --model demo/large -o out.json", 2, "such as out.jsonl"),
        ("questions.json --model demo/large -o photos", 2, "records are written as JSON Lines"),
        ("none.json --model demo/large -o out.jsonl", 3, "none.json"),
        ("patterns --model demo/large -o out.jsonl", 2, "draws puzzles without end"),
        ("photos --model demo/large -o out.jsonl", 3, "said with --prompt"),
        ("questions.json --prompt why --model demo/large -o out.jsonl", 2, "questions.json is no folder"),
        ("--recipe demo --prompt why -o out.jsonl", 2, "no folder is named"),
        (
            "text -p why --model demo/large -o out.jsonl",
            3,
            "text holds no pictures, but .json 1, .safetensors 1",
        ),
        ("questions.json --model demo/large -o out.jsonl -- --nnodes 2", 2, "after -- need --processes"),
        ("questions.json --model nowhere/at-all -o out.jsonl", 4, "nowhere/at-all"),
        (
            "questions.json --model text -o out.jsonl",
            4,
            "'text' is a text-only model ('qwen2'): it cannot see images",
        ),
        ("questions.json --model demo/large -o out.jsonl --temperature -1", 2, "--temperature"),
        ("questions.json --model demo/large -o out.jsonl --temperature inf", 2, "temperature"),
        ("questions.json --model demo/large -o out.jsonl --batch-size 0", 2, "--batch-size is '0'"),
        ("questions.json --model demo/large -o out.jsonl --think", 2, "demo/large knows no thoughts"),
        (
            "questions.json --model demo/large -o questions.json/out.jsonl",
            6,
            "questions.json is not a folder",
        ),
        (
            "questions.json --model demo/large -o out.jsonl --set data.sources.0.image_root=photos",
            3,
            "nothing can be answered, 3 records cannot be used (image-missing 3); the first: ",
        ),
    ],
)
@pytest.mark.usefixtures("asked")
def test_bad_input_ends_in_one_sentence(
    words: str, code: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "text" / "model.safetensors").touch()
    before = sorted(path.name for path in tmp_path.iterdir())
    assert told in refused(code, *words.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_data_are_not_written_over(asked: Path) -> None:
    lines = asked.with_suffix(".jsonl")
    lines.write_text("".join(json.dumps(row) + "\n" for row in json.loads(asked.read_text("utf-8"))))
    assert "is one of the data" in refused(2, lines, *LARGE, "-o", lines, "--overwrite")


def test_bad_pictures_are_counted_and_named(asked: Path, tmp_path: Path) -> None:
    data = json.loads(asked.read_text("utf-8"))
    (tmp_path / "photos" / "bad.png").write_bytes(b"no picture")
    for image in ("photos/bad.png", "photos/none.png", "../out.png", "https://example.org/a.png"):
        data.append({**data[0], "image": image})
    asked.write_text(json.dumps(data))
    output = tmp_path / "out.jsonl"
    done = vlsi("data", "answer", asked, *LARGE, "-o", output)
    assert done.exit_code == 0, done.output
    assert "4 records are not in the file, and the report says why" in done.stderr
    for reason in ("image-unreadable", "image-missing", "image-escape", "image-url"):
        assert f"{reason}: {asked}[" in done.stdout
    assert len(rows(output)) == 3
    dry = vlsi("data", "answer", asked, *LARGE, "-o", tmp_path / "other.jsonl", "--dry-run", "--json")
    plan = json.loads(dry.stdout)
    assert (plan["answerable"], plan["kept"]) == (4, 0)  # pictures are not opened
    assert sum(plan["unusable"].values()) == 3
    assert not (tmp_path / "other.work").exists()


@pytest.mark.parametrize("place", ["journal", "file"])
def test_a_full_disk_is_told(
    place: str, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def full(self: Path, mode: str = "r", *more: Any, **settings: Any) -> Any:
        if mode == ("a" if place == "journal" else "w") and self.suffix == ".jsonl":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(self, mode, *more, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        told = refused(6, asked, *LARGE, "-o", tmp_path / "out.jsonl")
    assert "cannot be written: no space is left on the disk" in told
    assert not list(tmp_path.glob("*out*.jsonl"))
    report = answered(asked, *LARGE, "-o", tmp_path / "out.jsonl")
    assert (report["records"], report["reused"]) == (3, 0 if place == "journal" else 3)


@pytest.mark.parametrize("change", ["another question", "no JSON"])
def test_data_that_change_meanwhile_are_told(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer must not come to stand behind another question."""
    file, _ = labelled(tmp_path, 3, turns=1)
    before = file.read_text("utf-8")
    label = Labeller.run

    def run(self: Labeller, records: Any) -> Any:
        found = label(self, records)
        old, new = {"another question": ("<image>", "<image>A"), "no JSON": ('"messages"', '"messages?')}[
            change
        ]
        lines = before.splitlines(keepends=True)
        file.write_text("".join([*lines[:-1], lines[-1].replace(old, new)]), "utf-8")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Labeller, "run", run)
        told = refused(3, file, *LARGE, "-o", tmp_path / "out.jsonl")
    assert "the data have changed while they were answered" in told
    assert not (tmp_path / "out.jsonl").exists()
    file.write_text(before, "utf-8")
    assert answered(file, *LARGE, "-o", tmp_path / "out.jsonl")["reused"] == 3


def test_columns_of_a_table_without_answers(tmp_path: Path) -> None:
    """Pictures of a table are bytes: they are kept beside the file."""
    from datasets import Dataset, Features, Image, Value

    drawn = puzzles(tmp_path, 4)
    pictures = [{"bytes": (tmp_path / "photos" / f"{n}.png").read_bytes(), "path": None} for n in range(4)]
    columns = {"q": [puzzle.turns[0].text for puzzle in drawn], "pic": pictures}
    table = Dataset.from_dict(columns, features=Features({"q": Value("string"), "pic": Image()}))
    table.to_parquet(tmp_path / "table.parquet")
    shutil.rmtree(tmp_path / "photos")
    sets = ("--set", "data.sources.0.columns={question: q, image: pic}")
    output = tmp_path / "out" / "answers.jsonl"
    answered(tmp_path / "table.parquet", *sets, *LARGE, "-o", output)
    assert said(output) == [[puzzle.turns[0].answer] for puzzle in drawn]
    assert vlsi("data", "preview", output).exit_code == 0
    done = vlsi("data", "preview", tmp_path / "table.parquet", *sets)
    assert done.exit_code == 3
    assert "names no column of the answers" in done.stderr
    assert "vlsi data answer" in done.stderr


def test_pictures_behind_addresses_are_fetched_where_that_is_allowed(
    asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, output = json.loads(asked.read_text("utf-8")), tmp_path / "out.jsonl"
    with ImageServer() as server:
        monkeypatch.setattr(fetching, "WORLD", server.network())
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        for number, row in enumerate(data):
            server.pages[f"/{number}.png"] = (tmp_path / row["image"]).read_bytes()
            row["image"] = f"http://{HOST}/{number}.png"
        asked.write_text(json.dumps(data))
        assert "image-url 3" in refused(3, asked, *LARGE, "-o", output)
        assert not server.asked
        fetch = ("--set", "data.image_urls.fetch=true")
        report = answered(asked, *LARGE, "-o", output, *fetch)
        assert (report["records"], report["image_root"]) == (3, None)
        assert [row["images"] for row in rows(output)] == [[row["image"]] for row in data]
        before = len(server.asked)
        assert answered(asked, *LARGE, "-o", output, *fetch)["reused"] == 3
        assert len(server.asked) == before == 3


def test_streamed_and_stored_tables_and_files_together(tmp_path: Path) -> None:
    """Each source has its own pictures; where all lie is one folder, beside the output or above it."""
    from datasets import Dataset

    file, right = questions(tmp_path / "files", 3)
    drawn = puzzles(tmp_path / "table", 2)
    pairs = [[{"user": puzzle.turns[0].text, "assistant": None}] for puzzle in drawn]
    names = [[f"photos/{number}.png"] for number in range(2)]
    Dataset.from_dict({"texts": pairs, "images": names}).to_parquet(tmp_path / "table" / "rows.parquet")
    words = [word for place in (file, tmp_path / "table" / "rows.parquet") for word in ("--data", place)]
    output = tmp_path / "out" / "all.jsonl"
    report = answered(*words, "--set", "data.sources.1.streaming=true", *LARGE, "-o", output)
    assert said(output) == [[answer] for answer in right] + [[puzzle.turns[0].answer] for puzzle in drawn]
    assert report["image_root"] == str(tmp_path.resolve())
    root = ("--set", f"data.sources.0.image_root={report['image_root']}")
    for index in range(5):
        assert vlsi("data", "preview", output, *root, "--index", index).exit_code == 0


def test_a_folder_of_pictures_and_one_question(tmp_path: Path) -> None:
    """The file lies among them: it reads back, and is no picture of the next time."""
    output = tmp_path / "photos" / "train.jsonl"
    puzzles(tmp_path, 3)
    (tmp_path / "photos" / "deep").mkdir()
    shutil.copy(tmp_path / "photos" / "1.png", tmp_path / "photos" / "deep" / "again.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "photos" / "notes.txt").touch()
    words = (tmp_path / "photos", "--prompt", "How many circles are there?", *LARGE, "-o", output)
    plan = json.loads(vlsi("data", "answer", *words, "--dry-run", "--json").stdout)
    assert (plan["answerable"], plan["passed_over"]) == (5, {".txt": 1})
    more = ("--data", "patterns", "--replace", "--limit", 6)  # their pictures are kept beside the file
    done = vlsi("data", "answer", *words, *more)
    assert done.exit_code == 0, done.output
    assert "no pictures, and passed over: .txt 1" in done.stdout
    kept = rows(output)
    assert [row["images"] for row in kept[:4]] == [["0.png"], ["1.png"], ["2.png"], ["deep/again.png"]]
    assert kept[3]["id"] == "photos/deep/again.png"
    assert kept[1]["messages"] == kept[3]["messages"]
    assert {texts[0] for texts in said(output)[:4]} <= {"zero", "one", "two", "three", "four", "five"}
    assert vlsi("data", "preview", output, "--index", 3).exit_code == 0
    report = answered(*words, *more)
    assert (report["generated"], report["records"], report["passed_over"]) == (0, len(kept), {".txt": 1})
    assert "(asked 'How many circles are there?')" in refused(6, *words[:2], "Why?", *words[3:], *more)
    source = f"data.sources=[{{kind: images, path: {tmp_path / 'photos'}, prompt: why}}]"
    told = vlsi("distill", "--set", source, "--dry-run")
    assert told.exit_code == 3
    assert "have no answers to train on" in told.stderr


def test_prompts_that_are_too_long_say_what_to_do(asked: Path, tmp_path: Path) -> None:
    told = refused(3, asked, *LARGE, "-o", tmp_path / "out.jsonl", "--set", "data.max_length=8")
    assert "no record could be answered (too-long 3); the first: " in told
    assert "raise data.max_length" in told


def test_a_recipe_gives_model_and_data(tmp_path: Path) -> None:
    report = answered("--recipe", "demo", "--limit", 2, "--replace", "-o", tmp_path / "a.jsonl")
    assert (report["records"], report["settings"]["model"]) == (2, "demo/large")
    words = ("--recipe", "demo", "--set", "teacher.revision=main", "--model", "demo/small", "--limit", 1)
    report = answered(*words, "--replace", "-o", tmp_path / "b.jsonl", "--max-new-tokens", 32)
    assert (report["settings"]["model"], report["settings"]["revision"]) == ("demo/small", "main")


def test_a_model_whose_layers_are_read_from_the_disk_says_the_same(asked: Path, tmp_path: Path) -> None:
    folder = tiny_folder("qwen2_vl", tmp_path / "model", layers=2, hidden=32)
    words = (asked, "--model", folder, "--max-new-tokens", 4, "--temperature", 1)
    lines = []
    for place in ("device", "disk"):
        vlsi(
            "data", "answer", *words, "-o", tmp_path / f"{place}.jsonl", "--set", f"teacher.placement={place}"
        )
        lines.append((tmp_path / f"{place}.work" / "answers.jsonl").read_bytes())
    assert lines[0] == lines[1] != b""


def test_the_whole_may_move_while_it_is_begun(tmp_path: Path) -> None:
    file, _ = questions(tmp_path / "here", 3)
    answered(file, *LARGE, "-o", file.with_name("out.jsonl"), "--limit", 2)
    moved = (tmp_path / "here").rename(tmp_path / "there")
    report = answered(moved / file.name, *LARGE, "-o", moved / "out.jsonl")
    assert (report["generated"], report["reused"]) == (1, 2)


def test_two_commands_at_once_are_one_too_many(asked: Path, tmp_path: Path) -> None:
    from vlsi_cli.engine.files import only_process

    (tmp_path / "out.work").mkdir()
    with only_process(tmp_path / "out.work", "the test"):
        assert "another process is working on" in refused(6, asked, *LARGE, "-o", tmp_path / "out.jsonl")


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    """The demo's large model is as right there; draws do not depend on the batch. Rounding may turn near ties."""
    file, right = questions(tmp_path, 20)
    answered(file, *LARGE, "--device", "cuda", "-o", tmp_path / "out.jsonl")
    assert (
        sum(texts == [answer] for texts, answer in zip(said(tmp_path / "out.jsonl"), right, strict=True))
        >= 19
    )
    words = (file, "--model", "demo/small", "--device", "cuda", "--precision", "fp32", "--temperature", 1)
    drawn = []
    for size in (1, 20):
        output = tmp_path / f"{size}.jsonl"
        vlsi("data", "answer", *words, "--max-new-tokens", 3, "--batch-size", size, "-o", output)
        lines = rows(tmp_path / f"{size}.work" / "answers.jsonl")
        drawn.append([line["text"] for line in lines])
    assert sum(one == other for one, other in zip(*drawn, strict=True)) >= 19


def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    file, _ = questions(tmp_path, 7)
    rows_ = json.loads(file.read_text("utf-8"))
    rows_[3]["image"] = "photos/none.png"
    file.write_text(json.dumps(rows_))
    one = answered(file, *LARGE, "-o", tmp_path / "one.jsonl", "--batch-size", 1)
    answered(file, *LARGE, "-o", tmp_path / "two.jsonl", "--batch-size", 1, "--limit", 2)
    words = ["data", "answer", file, *LARGE, "-o", tmp_path / "two.jsonl", "--batch-size", 1, "--json"]
    command = [sys.executable, "-m", "vlsi_cli", *map(str, words), "--processes", "2", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout)  # one document: one process speaks
    assert (two["generated"], two["reused"]) == (4, 2)
    for key in ("records", "answered", "unusable", "examples", "left_out"):
        assert one[key] == two[key]
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert sorted(path.name for path in (tmp_path / "two.work").glob("answers*")) == ["answers.jsonl"]
