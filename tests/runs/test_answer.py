"""`vlsi data answer`: a large model answers records, and the answers are training records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runs.answering import LARGE, answered, labelled, puzzles, questions, refused, rows, said, vlsi
from vlsi_cli.engine.backbones import quantization
from vlsi_cli.engine.evaluation.generation import Answerer
from vlsi_cli.engine.evaluation.journal import Journal


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    return questions(tmp_path_factory.mktemp("asked"), 20)


@pytest.fixture(scope="module")
def whole(asked: tuple[Path, list[str]]) -> Path:
    """Twenty questions answered in one go, beside their pictures."""
    output = asked[0].parent / "whole.jsonl"
    report = answered(asked[0], *LARGE, "-o", output)
    assert (report["records"], report["answered"], report["generated"]) == (20, 20, 20)
    return output


def test_the_demo_s_large_model_is_right(whole: Path, asked: tuple[Path, list[str]]) -> None:
    found = [texts for (texts,) in said(whole)]
    right = sum(one == other for one, other in zip(found, asked[1], strict=True))
    assert right >= 19  # of 1,000 held-out puzzles it answers 99.9 %


def test_a_record_says_who_answered_it_and_reads_back(whole: Path) -> None:
    row = rows(whole)[3]
    assert row["id"] == "q3"
    assert row["images"] == ["photos/3.png"]
    by = row["answered_by"]
    assert (by["model"], by["temperature"], by["turns"]) == ("demo/large", 0.0, [1])
    settings = json.loads((whole.parent / "whole.work" / "settings.json").read_text("utf-8"))
    assert settings["weights"].startswith(by["weights"])
    assert settings["max_new_tokens"] == 1024
    done = vlsi("data", "preview", whole, "--index", 3, "--json")
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    trained = "".join(piece["text"] for piece in shown["pieces"] if piece["trained"])
    assert trained == row["messages"][1]["content"] + "<|im_end|>"


def test_batches_do_not_change_answers(whole: Path, asked: tuple[Path, list[str]]) -> None:
    for size in ("1", "7"):
        output = asked[0].parent / f"by-{size}.jsonl"
        answered(asked[0], *LARGE, "-o", output, "--batch-size", size)
        assert output.read_bytes() == whole.read_bytes()


def test_neither_batches_nor_workers_change_what_is_said(tmp_path: Path) -> None:
    """Prompts of unlike length, with a picture, with two and without, in an order that is not theirs by length."""
    drawn = puzzles(tmp_path, 8)
    lines = []
    for number, puzzle in enumerate(drawn):
        names = [f"photos/{number}.png", "photos/0.png"][: (number + 1) % 3]
        text = "<image>" * len(names) + "well " * (17 * number % 40) + puzzle.turns[0].text
        lines.append({"messages": [{"role": "user", "content": text}], "images": names})
    lines.insert(4, {"messages": lines[3]["messages"], "images": ["photos/none.png"]})
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    found = []
    for name, more in {"one": (1,), "four": (4,), "workers": (2, "--workers", 2)}.items():
        words = (file, *LARGE, "-o", tmp_path / f"{name}.jsonl", "--max-new-tokens", 6, "--batch-size", *more)
        report = answered(*words)
        assert (report["generated"], report["unusable"]) == (8, {"image-missing": 1})
        journal = sorted((tmp_path / f"{name}.work" / "answers.jsonl").read_text("utf-8").splitlines())
        found.append(((tmp_path / f"{name}.jsonl").read_bytes(), journal, report["examples"]))
    assert found[0] == found[1] == found[2]


def test_draws_depend_on_the_seed_and_the_question_alone(
    asked: tuple[Path, list[str]], tmp_path: Path
) -> None:
    words = (asked[0], "--model", "demo/small", "--temperature", 2, "--max-new-tokens", 4)
    texts = []
    for name, more in {"a": (), "b": ("--batch-size", 3), "c": ("--seed", 1)}.items():
        answered(*words, *more, "-o", tmp_path / f"{name}.jsonl")
        journal = rows(tmp_path / f"{name}.work" / "answers.jsonl")
        texts.append([line["text"] for line in journal])
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert json.loads((tmp_path / "c.work" / "settings.json").read_text("utf-8"))["seed"] == 1


def test_what_was_stopped_goes_on(
    whole: Path, asked: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = asked[0].parent / "stopped.jsonl"
    words = (asked[0], *LARGE, "-o", output, "--batch-size", 4)
    add = Journal.add

    def until_nine(self: Journal, key: str, line: dict[str, Any]) -> None:
        if len(self.lines) == 9:
            raise KeyboardInterrupt
        add(self, key, line)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", until_nine)
        told = refused(130, *words)
    assert "the answers so far are kept" in told
    assert "the same command goes on from here" in told
    assert not output.exists()
    with (asked[0].parent / "stopped.work" / "answers.jsonl").open("a") as file:
        file.write('{"key": "half')  # of a line that was being written
    report = answered(*words)
    assert (report["generated"], report["reused"]) == (11, 9)
    assert output.read_bytes() == whole.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Answerer, "__init__", lambda *_, **__: pytest.fail("nothing is to be asked"))
        report = answered(*words)
    assert (report["generated"], report["reused"], report["records"]) == (0, 20, 20)


def test_only_what_is_new_is_asked(asked: tuple[Path, list[str]], tmp_path: Path) -> None:
    file, _ = questions(tmp_path, 6)
    output = tmp_path / "out.jsonl"
    assert answered(file, *LARGE, "-o", output, "--limit", 3)["records"] == 3
    changed = json.loads(file.read_text("utf-8"))
    changed[1]["conversations"][0]["value"] = "<image>\nHow many circles are there?"
    (tmp_path / "photos" / "0.png").write_bytes((tmp_path / "photos" / "5.png").read_bytes())
    file.write_text(json.dumps(changed), "utf-8")
    report = answered(file, *LARGE, "-o", output)
    assert (report["records"], report["generated"], report["reused"]) == (6, 5, 1)


def test_a_longer_bound_asks_again_what_did_not_end(asked: tuple[Path, list[str]], tmp_path: Path) -> None:
    file, right = questions(tmp_path, 12)
    output = tmp_path / "out.jsonl"
    done = vlsi("data", "answer", file, *LARGE, "-o", output, "--max-new-tokens", 3)
    assert done.exit_code == 0, done.output
    short = {f"q{number}" for number, answer in enumerate(right) if len(answer.split()) < 3}
    kept = [row["id"] for row in rows(output)]
    cut = 12 - len(kept)
    assert 0 < cut < 12
    assert set(kept) <= short
    assert "answer-cut" in done.stdout
    assert f"{cut} answers did not end within 3 tokens" in " ".join(done.stderr.split())
    report = answered(file, *LARGE, "-o", output, "--max-new-tokens", 16)
    assert (report["generated"], report["reused"], report["left_out"]) == (cut, 12 - cut, {})
    assert [texts for (texts,) in said(output)] == right
    again = answered(file, *LARGE, "-o", output, "--max-new-tokens", 3)
    assert (again["generated"], again["left_out"]) == (0, {"answer-cut": cut})
    missing = [number for number in range(12) if f"q{number}" not in kept]
    assert again["examples"]["answer-cut"] == [f"{file}[{number}]" for number in missing[:5]]
    assert "raise --max-new-tokens" in refused(
        3, file, *LARGE, "-o", tmp_path / "none.jsonl", "--max-new-tokens", 1
    )
    assert not (tmp_path / "none.jsonl").exists()


def test_replace_answers_every_turn_behind_the_new_ones(tmp_path: Path) -> None:
    file, right = labelled(tmp_path, 6, turns=3, answer="nonsense")
    output = tmp_path / "out.jsonl"
    assert "--replace" in refused(3, file, *LARGE, "-o", output)
    report = answered(file, *LARGE, "-o", output, "--replace")
    assert (report["answered"], report["kept"]) == (6, 0)
    assert said(output) == right
    assert rows(output)[0]["answered_by"]["turns"] == list(range(1, len(right[0]) + 1))
    assert rows(output)[0]["id"] == "labelled.jsonl:1"


def test_given_answers_are_kept(tmp_path: Path) -> None:
    """Open last turns are answered behind the given ones; records that have all answers stay as they are."""
    file, right = labelled(tmp_path, 4, turns=3)
    full = {
        "source": {"page": 3},
        "messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}],
    }
    blank = {
        "messages": [{"role": "user", "content": "How many circles?"}, {"role": "assistant", "content": " "}]
    }
    with file.open("a") as more:
        more.write(json.dumps(full) + "\n" + json.dumps(blank) + "\nno JSON\n")
    output = tmp_path / "out.jsonl"
    report = answered(file, *LARGE, "-o", output)
    assert (report["answered"], report["kept"], report["generated"]) == (5, 1, 5)
    assert report["unusable"] == {"broken-json": 1}
    assert report["examples"]["broken-json"][0].startswith(f"{file}:7: ")
    assert said(output)[:4] == right
    kept = rows(output)[4]
    assert kept == {"id": "labelled.jsonl:5", **full}
    assert rows(output)[0]["answered_by"]["turns"] == [len(right[0])]
    told = refused(3, file, *LARGE, "-o", output, "--set", "data.on_bad_record=refuse")
    assert (
        f"error: {file}:7: record cannot be used: the line, or entry of an array, is not valid JSON" in told
    )


def test_another_making_is_refused(
    whole: Path, asked: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = whole.read_bytes()
    file = asked[0]
    for words, told in (
        ((file, "--model", "demo/small"), "was made by demo/large (weights "),
        (
            (file, *LARGE, "--temperature", 1),
            "was made with temperature 0.0, and this command has temperature 1.0",
        ),
        ((file, *LARGE, "--replace"), "was made with replace false, and this command has replace true"),
        ((file, *LARGE, "--set", "data.max_pixels=4096"), "max_pixels [null, 4096]"),
        (("patterns", "--limit", 2, "--replace", *LARGE), "was made with"),
    ):
        said = refused(6, *words, "-o", whole)
        assert told in said
        assert "--overwrite" in said
        assert whole.read_bytes() == before
    lone = whole.with_name("lone.jsonl")
    lone.write_bytes(before)
    assert "says how it was made" in refused(6, file, *LARGE, "-o", lone)
    assert not lone.with_name("lone.work").exists()
    report = answered(file, *LARGE, "-o", lone, "--limit", 2, "--overwrite")
    assert (report["generated"], len(rows(lone))) == (2, 2)
    kept = sorted((path.name, path.read_bytes()) for path in lone.with_name("lone.work").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(quantization, "find_spec", lambda _: None)  # a model that cannot be loaded
        refused(2, file, *LARGE, "-o", lone, "--overwrite", "--set", "teacher.quantization=8bit")
    assert kept == sorted((path.name, path.read_bytes()) for path in lone.with_name("lone.work").iterdir())
    report = answered(file, *LARGE, "--temperature", 0.1, "-o", lone, "--limit", 2, "--overwrite")
    assert (report["generated"], report["reused"]) == (2, 0)
    assert [row["answered_by"]["temperature"] for row in rows(lone)] == [0.1, 0.1]


def test_pictures_elsewhere_are_named_from_their_folder(
    asked: tuple[Path, list[str]], tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    done = vlsi("data", "answer", asked[0], *LARGE, "-o", output, "--limit", 2)
    root = asked[0].parent.resolve()
    assert f"--set data.sources.0.image_root={root}" in done.stdout.replace("\n", "")
    assert rows(output)[0]["images"] == ["photos/0.png"]
    assert not (tmp_path / "out.images").exists()
    shown = vlsi("data", "preview", output, "--set", f"data.sources.0.image_root={root}")
    assert shown.exit_code == 0, shown.output


def test_the_small_model_learns_from_the_file(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Puzzles are no files: their pictures are kept beside the output, each once."""
    output = tmp_path / "answers.jsonl"
    report = answered(
        "patterns", *LARGE, "--replace", "--limit", 4, "--set", "data.sources.0.turns=2", "-o", output
    )
    assert report["image_root"] is None
    assert len(list((tmp_path / "answers.images").rglob("*.png"))) == 4
    large, small = pair
    words = (
        "--recipe",
        "demo",
        "--teacher",
        large,
        "--student",
        small,
        "--data",
        output,
        "-o",
        tmp_path / "run",
    )
    sets = ("verbalization=null", "interaction=null", "evaluation.data=null", "reinforcement.steps=2")
    more = [
        word
        for each in (*sets, "reinforcement.batch_size=2", "data.on_bad_record=refuse")
        for word in ("--set", each)
    ]
    done = vlsi("distill", *words, *more)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run" / "student" / "config.json").is_file()
