"""Puzzles as files of questions, for `vlsi data answer`: pictures in a folder, with and without answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from vlsi_cli.app import app
from vlsi_cli.engine.data.patterns import PatternRecord, pattern_record

LARGE = ("--model", "demo/large")


def vlsi(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="vlsi")


def answered(*words: object) -> dict[str, Any]:
    """The report of `vlsi data answer WORDS`."""
    done = vlsi("data", "answer", *words, "--json")
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def refused(code: int, *words: object) -> str:
    """What `vlsi data answer WORDS` says when it ends with a code."""
    done = vlsi("data", "answer", *words)
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done.stderr


def puzzles(folder: Path, count: int, *, turns: int = 1) -> list[PatternRecord]:
    """Draw puzzles; their pictures go into ``folder/photos``."""
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    drawn = [pattern_record("test", index, turns=turns) for index in range(count)]
    for index, puzzle in enumerate(drawn):
        puzzle.image.save(folder / "photos" / f"{index}.png")
    return drawn


def questions(folder: Path, count: int) -> tuple[Path, list[str]]:
    """A LLaVA-style file of questions without answers, and the right ones."""
    drawn = puzzles(folder, count)
    rows = [
        {
            "id": f"q{index}",
            "image": f"photos/{index}.png",
            "conversations": [{"from": "human", "value": f"<image>\n{puzzle.turns[0].text}"}],
        }
        for index, puzzle in enumerate(drawn)
    ]
    file = folder / "questions.json"
    file.write_text(json.dumps(rows), "utf-8")
    return file, [puzzle.turns[0].answer for puzzle in drawn]


def labelled(
    folder: Path, count: int, *, turns: int, answer: str | None = None
) -> tuple[Path, list[list[str]]]:
    """A file of chat messages whose answers are all ``answer``, and the right ones; the last is missing for None."""
    drawn = puzzles(folder, count, turns=turns)
    rows = []
    for index, puzzle in enumerate(drawn):
        talk: list[dict[str, str]] = []
        for turn in puzzle.turns:
            image = "" if talk else "<image>"
            talk += [
                {"role": "user", "content": image + turn.text},
                {"role": "assistant", "content": turn.answer if answer is None else answer},
            ]
        rows.append({"messages": talk[:-1] if answer is None else talk, "images": [f"photos/{index}.png"]})
    file = folder / "labelled.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file, [[turn.answer for turn in puzzle.turns] for puzzle in drawn]


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def said(file: Path) -> list[list[str]]:
    """The answers in a file, record by record."""
    return [
        [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        for row in rows(file)
    ]
