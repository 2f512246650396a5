"""`vlsi match-layers` through the real app, on the shipped pair: what is printed where, and its exit codes."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from tests.hub_client import vlsi
from vlsi_cli.commands._tables_match import report_parts
from vlsi_cli.engine.runs.match_reports import MatchReport, SideReport, Survey

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_without_arguments_it_reads_the_demo_pair(tmp_path: Path) -> None:
    done = vlsi("match-layers", "--samples", "3", "--batch-size", "2", "--draws", "5", "--svg", "map.svg")
    assert done.exit_code == 0, done.output
    assert "large: demo/large, layers 1, 3, 5, 7, 9 of 10" in done.stdout
    assert done.stdout.count("read through logit lens") == 2
    assert "sample: 3 records" in done.stdout
    maps = re.findall(r"^large +1 +3 +5 +7 +9\n((?:small \d .*\n){3})", done.stdout, flags=re.MULTILINE)
    assert len(maps) == 3
    for shown in maps:
        assert all(line.count("[") == 1 for line in shown.splitlines()), (
            "the best assignment, without colours"
        )
    assert "written: map.svg" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["map.svg"]


def test_as_json() -> None:
    done = vlsi(
        "match-layers", "--samples", "2", "--draws", "3", "--json", "--set", "teacher.targets.stride=3"
    )
    report = json.loads(done.stdout)
    assert report["large"]["layers"] == [1, 4, 7]
    assert report["history"] is None
    survey = report["survey"]
    assert [len(row) for row in survey["divergence"]] == [3, 3, 3]
    assert survey["best"] == [1, 4, 7], "three of three leave one choice"
    assert survey["expected"] == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    assert survey["drawn"] == survey["expected"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--teacher demo/large", 2, "--teacher is given without --student"),
        ("--recipe dmeo", 2, "did you mean demo?"),
        ("--teacher a/large --student b/small", 2, "data is not given\nhint: pass --data PATH"),
        ("--run none", 7, "none is not a run folder"),
        ("--run none --teacher demo/large", 2, "--run brings its own models, but --teacher was given too"),
        ("--history", 2, "--history is about a run\nhint: give the run with --run"),
        ("--run none --history --data patterns", 2, "--history reads a log alone, but --data was given too"),
        ("--at start", 2, "--at is about a run"),
        ("--samples 0", 2, "--samples"),
        ("--ends 60", 2, "--ends"),
        (
            "--png map.jpg",
            2,
            "map.jpg ends in '.jpg', and this picture is written as .png\nhint: name it map.png",
        ),
        ("--svg map", 2, "map ends in '', and this picture is written as .svg"),
        ("--html page.txt", 2, "a page is written as .html"),
        ("--data none.jsonl", 3, "none.jsonl"),
        ("--student ./none --teacher demo/large --data patterns", 4, "student: ./none"),
        ("--teacher a/large --student b/small --data patterns", 4, "hf download a/large"),
        ("--teacher-verbalizers none", 4, "teacher.verbalizers: none"),
        ("--student-verbalizers none", 7, "no verbalizers in none"),
        ("--teacher demo/small --student demo/large --data patterns", 5, "'demo/large' has"),
        (
            "--set teacher.targets.layers=[1,10] --set student.targets.layers=[1]",
            5,
            "demo/large has 10 decoder layers",
        ),
    ],
)
def test_bad_input_ends_in_one_sentence_and_its_code(words: str, code: int, message: str) -> None:
    done = vlsi("match-layers", *words.split())
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "--dry-run" not in done.stderr, "this command has none"


def test_twenty_columns_are_continued_within_eighty() -> None:
    small, large = tuple(range(2, 28, 4)), tuple(range(2, 80, 4))
    matrix = tuple(tuple(abs(s / 28 - t / 80) * 90 for t in large) for s in small)
    shares = tuple(tuple(1.0 if t == place else 0.0 for t in range(20)) for place in range(7))
    survey = Survey(
        data=("patterns (train)",),
        records=9,
        skipped=1,
        tokens=90,
        batches=3,
        batch_size=3,
        matching="multinomial",
        divergence=matrix,
        spread=matrix,
        temperature=(1.0,) * 7,
        probabilities=shares,
        expected=shares,
        best=large[:7],
        best_divergence=1.0,
        drawn=shares,
        draws=2,
    )
    sides = [SideReport(name, layers, 80, "logit lens") for name, layers in (("s", small), ("l", large))]
    report = MatchReport(sides[0], sides[1], survey, None, 1.0)
    console = Console(width=200, record=True, file=io.StringIO())
    for part in report_parts(report, width=80):
        console.print(part, soft_wrap=isinstance(part, str))
    text = console.export_text()
    tables = text[text.index("Divergence") : text.index("expected, drawn")].splitlines()
    assert max(map(len, tables)) <= 80
    assert len(re.findall(r"(?m)^small 26 ", text)) >= 4, "two blocks a map"
    for layer in large:
        assert re.search(rf"(?m)^large.* {layer}\b", text)
    assert "1 could not be used" in text
