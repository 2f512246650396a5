"""Records of local data, counted without understanding one; the engine's own count is the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlsi_cli.config import counting
from vlsi_cli.config.counting import Count
from vlsi_cli.config.loading import resolve
from vlsi_cli.config.planning import plan
from vlsi_cli.config.run import DataConfig
from vlsi_cli.engine.data.sources import JsonSource
from vlsi_cli.errors import DataError

ROW = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}
LINE = json.dumps(ROW) + "\n"


def count(**source: Any) -> Count | None:
    return counting.count(DataConfig.model_validate({"sources": [source]}).located_sources()[0])


@pytest.mark.parametrize(
    "text",
    [
        LINE * 3,
        "\n  \n" + LINE + "\r\n" + LINE + "no JSON\n\n" + LINE.strip(),
        "\ufeff" + LINE * 2,
        json.dumps([ROW] * 4, indent=1),
        "\ufeff  \n" + json.dumps([ROW] * 2),
        "",
        "\n\n",
        "[]",
        LINE + " " * (counting._PIECE + 5) + "x\n" + LINE,
    ],
)
def test_lines_and_arrays_are_counted_as_a_run_counts_them(tmp_path: Path, text: str) -> None:
    for name in ("data.jsonl", "data.JSON", "data.ndjson"):
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        assert count(kind="messages", path=file) == Count(JsonSource(file, "messages").size)


def test_what_takes_too_long_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "PATIENCE", -1.0)
    monkeypatch.setattr(counting, "MOST_PARSED", 100)
    file = tmp_path / "lines.jsonl"
    file.write_text(LINE * 500)
    assert count(kind="messages", path=file) == Count(500, about=True)
    file = tmp_path / "array.json"
    monkeypatch.setattr(counting, "_PIECE", 1000)  # keys are cut in two
    file.write_text(json.dumps([ROW] * 500))
    assert count(kind="messages", path=file) == Count(pytest.approx(500, rel=0.05), about=True)
    monkeypatch.setattr(counting, "PATIENCE", 60.0)
    file.write_text(json.dumps([ROW] * 501))
    assert count(kind="messages", path=file) == Count(501, about=True)
    assert str(count(kind="messages", path=file)) == "about 501"


def test_tables_say_how_many_rows_they_have(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list([ROW] * 7)
    rows.to_parquet(tmp_path / "rows.parquet")
    assert count(kind="huggingface", id=str(tmp_path / "rows.parquet")) == Count(7)
    rows.select(range(5)).save_to_disk(tmp_path / "saved")
    assert count(kind="huggingface", id=str(tmp_path / "saved")) == Count(5)
    datasets.DatasetDict(train=rows, test=rows.select([0])).save_to_disk(tmp_path / "both")
    assert count(kind="huggingface", id=str(tmp_path / "both"), split="test") == Count(1)
    assert count(kind="huggingface", id=str(tmp_path / "both"), split="none") is None
    assert count(kind="huggingface", id=str(tmp_path / "saved"), streaming=True) is None


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "rows.parquet"])
@pytest.mark.parametrize("part", ["data", "evaluation.data"])
def test_a_plan_of_no_records(tmp_path: Path, name: str, part: str) -> None:
    """As a run says it, and not that steps will be counted later."""
    file = tmp_path / name
    if name.endswith("parquet"):
        import datasets

        datasets.Dataset.from_list([ROW]).select([]).to_parquet(file)
        source = {"kind": "huggingface", "id": str(file)}
    else:
        file.write_text("[]" if name == "data.json" else "\n \n")
        source = {"kind": "messages", "path": str(file)}
        assert JsonSource(file, "messages").size == 0
    with pytest.raises(DataError, match=f"^{file} holds no records$"):
        plan(resolve("demo", [f"{part}.sources={json.dumps([source])}"]))


@pytest.mark.parametrize("text", ["[1, 2", "["])
def test_what_cannot_be_counted_is_not(tmp_path: Path, text: str) -> None:
    file = tmp_path / "data.json"
    file.write_text(text)
    assert count(kind="llava", path=file) is None
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    assert count(kind="huggingface", id=str(tmp_path / "broken.parquet")) is None
    assert count(kind="huggingface", id="someone/something") is None
    assert count(kind="llava", path=tmp_path / "none.json", records=9) == Count(9)
    assert count(kind="llava", path=tmp_path) is None
    assert count(kind="patterns") is None
    assert count(kind="patterns", size=3) == Count(3)


def test_steps_of_a_plan_by_hand(tmp_path: Path) -> None:
    """50 lines once and 30 one and a half times are 95 draws; 16 records a step."""
    sources = []
    for name, lines, weight in (("a", 50, 1), ("b", 30, 1.5)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text(LINE * lines)
        sources.append({"kind": "messages", "path": f"{name}.jsonl", "weight": weight, "records": 9999})
    stage = {"epochs": 2, "batch_size": 4, "gradient_accumulation": 4}
    made = plan(
        resolve(
            None,
            [
                "student=demo/small",
                "teacher=demo/large",
                f"data={json.dumps({'root': str(tmp_path), 'sources': sources})}",
                *(
                    f"{name}={json.dumps(stage)}"
                    for name in ("verbalization", "interaction", "reinforcement")
                ),
            ],
        )
    )
    assert [(each.steps, each.estimated) for each in made.stages] == [(12, False)] * 4  # ceil(190 / 16)
    assert any("data.sources.1 holds 30 records" in note for note in made.notes)
