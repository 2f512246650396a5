from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.unit.data.kit import encoded_bytes
from vlsi_cli.engine.data.huggingface import HuggingFaceSource
from vlsi_cli.engine.data.images import load_image
from vlsi_cli.engine.data.records import BadRecord
from vlsi_cli.engine.data.rows import RowStream
from vlsi_cli.engine.data.schedule import EndOfSource
from vlsi_cli.engine.data.stream import RecordStream
from vlsi_cli.errors import DataError

ROWS = 5


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def table() -> datasets.Dataset:
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "messages": datasets.List(
                {"role": datasets.Value("string"), "content": datasets.Value("string")}
            ),
            "images": datasets.List(datasets.Image()),
        }
    )
    rows: dict[str, list[Any]] = {"id": [], "messages": [], "images": []}
    for number in range(ROWS):
        with_image = number % 2 == 0
        question = "<image>What?" if with_image else "Hi"
        rows["id"].append(number)
        rows["messages"].append(
            [{"role": "user", "content": question}, {"role": "assistant", "content": "A."}]
        )
        picture = encoded_bytes(Image.new("RGB", (4 + number, 4), "red"))
        rows["images"].append([{"bytes": picture, "path": None}] if with_image else [])
    return datasets.Dataset.from_dict(rows, features=features)


def stored(kind: str, folder: Path) -> str:
    if kind == "saved":
        table().save_to_disk(folder / "saved")
    elif kind == "saved-splits":
        datasets.DatasetDict({"train": table()}).save_to_disk(folder / "saved-splits")
    elif kind == "folder":
        (folder / "folder").mkdir()
        table().to_parquet(folder / "folder" / "train-00000-of-00001.parquet")
    else:
        table().to_parquet(folder / "parquet.parquet")
        return str(folder / "parquet.parquet")
    return str(folder / kind)


@pytest.mark.parametrize("kind", ["saved", "saved-splits", "folder", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_local_kinds(kind: str, streaming: bool, tmp_path: Path) -> None:
    source = HuggingFaceSource(stored(kind, tmp_path), streaming=streaming)
    assert source.size == (None if streaming else ROWS)
    records = [source.read(i) for i in range(ROWS)]
    assert [r.id for r in records] == [str(i) for i in range(ROWS)]
    assert [len(r.images) for r in records] == [1, 0, 1, 0, 1]
    assert load_image(records[4].images[0]).size == (8, 4)
    assert source.read(1).id == "1"  # going back
    if streaming:
        with pytest.raises(EndOfSource):
            source.read(ROWS)


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library waits five seconds at each end of a shuffled pass over parquet files."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


@pytest.mark.usefixtures("no_wait")
def test_streamed_order_is_reproducible_and_resumes(tmp_path: Path) -> None:
    path = stored("parquet", tmp_path)

    def stream() -> RecordStream[str, list[str]]:
        source = HuggingFaceSource(path, streaming=True, shuffle_seed=3)
        return RecordStream([(source, 1.0)], lambda record: record.id, list, seed=3)

    whole = stream()
    expected = [whole.next_batch(1)[0] for _ in range(13)]
    epochs = [expected[:5], expected[5:10]]
    assert all(sorted(epoch) == ["0", "1", "2", "3", "4"] for epoch in epochs)
    assert epochs[0] != epochs[1]
    first, second = stream(), stream()
    assert [first.next_batch(1)[0] for _ in range(7)] == expected[:7]
    second.load_state_dict(first.state_dict())
    assert [second.next_batch(1)[0] for _ in range(6)] == expected[7:]


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.usefixtures("no_wait")
def test_a_stream_reads_on_where_it_was(seed: int | None, tmp_path: Path) -> None:
    """Five files of ten rows, shuffled in blocks of seven: from any row on the same rows, and no block before it."""
    for number in range(5):
        rows = datasets.Dataset.from_dict({"n": list(range(10 * number, 10 * number + 10))})
        rows.to_parquet(tmp_path / f"{number}.parquet")
    data = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "*.parquet"), split="train", streaming=True
    )

    def read(rows: RowStream, epoch: int, first: int, last: int) -> list[int]:
        return [rows.row(index, epoch)["n"].to_pylist()[0] for index in range(first, last)]

    whole = RowStream(data, "d", seed, block=7)
    epochs, states = [], []
    for epoch in range(3):
        epochs.append([])
        for index in range(50):
            states.append((epoch, index, json.loads(json.dumps(whole.state_dict()))))
            epochs[-1] += read(whole, epoch, index, index + 1)
        with pytest.raises(EndOfSource):
            whole.row(50, epoch)
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert (epochs[0] == epochs[1] == list(range(50))) is (seed is None)
    assert seed is None or len({tuple(epoch) for epoch in epochs}) == 3
    for epoch, index, state in states[3::13]:
        resumed = RowStream(data, "d", seed, block=7)
        resumed.load_state_dict(state)
        assert read(resumed, epoch, index, 50) == epochs[epoch][index:]
        assert resumed.first_read >= index - 7 or index < 7
        if epoch < 2:
            assert read(resumed, epoch + 1, 0, 50) == epochs[epoch + 1]


def test_a_stream_that_breaks_off_says_so(tmp_path: Path) -> None:
    path = Path(stored("parquet", tmp_path))
    source = HuggingFaceSource(str(path), streaming=True)
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="cannot be read on from row 0"):
        source.read(0)


def test_question_columns(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"q": ["A?"], "a": ["B"]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="has no column messages, conversations, texts; it has q, a"):
        HuggingFaceSource(str(tmp_path / "x.parquet"))
    with pytest.raises(DataError, match="has no column nope; it has q, a"):
        HuggingFaceSource(str(tmp_path / "x.parquet"), columns={"question": "q", "answer": "nope"})
    source = HuggingFaceSource(str(tmp_path / "x.parquet"), columns={"question": "q", "answer": "a"})
    assert [m.text for m in source.read(0).messages] == ["A?", "B"]


def test_paths_in_a_table_stay_in_its_folder(tmp_path: Path) -> None:
    talk = [[{"role": "user", "content": "<image>A?"}, {"role": "assistant", "content": "B"}]]
    data = datasets.Dataset.from_dict({"messages": talk, "image": ["../secret.png"]})
    data.to_parquet(tmp_path / "x.parquet")
    record = HuggingFaceSource(str(tmp_path / "x.parquet")).read(0)
    with pytest.raises(BadRecord) as caught:
        load_image(record.images[0])
    assert caught.value.reason == "image-escape"


def test_paths_in_a_table_start_from_the_image_root_where_one_is_given(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    table = tmp_path / "tables" / "x.parquet"
    datasets.Dataset.from_dict({"q": ["Which? <image1> <image1>"], "a": ["B"], "i": ["a.png"]}).to_parquet(
        table
    )
    columns = {"question": "q", "answer": "a", "image": "i"}
    record = HuggingFaceSource(str(table), columns=columns, image_root=tmp_path).read(0)
    assert load_image(record.images[0]).size == (4, 4)
    # a number that was there before points back, and is words
    assert record.messages[0].parts == ("Which? ", 0, " <image1>")
    with pytest.raises(DataError, match="no image folder"):
        HuggingFaceSource(str(table), columns=columns, image_root=tmp_path / "none")


def test_a_folder_of_several_formats_is_refused_unless_it_says_which(tmp_path: Path) -> None:
    """The library would take the one with most files, and say nothing of the others."""
    folder = tmp_path / "data"
    folder.mkdir()
    table().to_parquet(folder / "a.parquet")
    (folder / "notes.json").write_text('{"made": "today"}')
    assert HuggingFaceSource(str(folder)).size == ROWS
    talk = {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "It."}]}
    (folder / "b.jsonl").write_text(json.dumps(talk) + "\n")
    with pytest.raises(DataError, match=r"only \.parquet would be read, not b\.jsonl"):
        HuggingFaceSource(str(folder))
    (folder / "README.md").write_text('---\nconfigs:\n- config_name: default\n  data_files: "*.jsonl"\n---\n')
    assert HuggingFaceSource(str(folder)).size == 1


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hub cannot be reached") as caught:
        HuggingFaceSource("nobody/nothing")
    assert caught.value.hint is not None
    assert "hf download --repo-type dataset nobody/nothing" in caught.value.hint
    with pytest.raises(DataError, match="there is no file"):
        HuggingFaceSource(str(tmp_path / "no.parquet"))
    with pytest.raises(DataError, match=r"split 'test'"):
        HuggingFaceSource(stored("parquet", tmp_path).replace("parquet.parquet", ""), split="test")
    with pytest.raises(DataError, match="splits are train"):
        HuggingFaceSource(stored("saved-splits", tmp_path), split="test")


def test_text_that_is_none_is_a_record_that_cannot_be_used(tmp_path: Path) -> None:
    said = pa.array([b"What?", b"\xff\xfe"], pa.binary()).cast(pa.large_binary())
    texts = pa.LargeStringArray.from_buffers(2, said.buffers()[1], said.buffers()[2])
    pq.write_table(pa.table({"question": texts, "answer": ["yes", "no"]}), tmp_path / "a.parquet")
    source = HuggingFaceSource(
        str(tmp_path / "a.parquet"), columns={"question": "question", "answer": "answer"}
    )
    assert source.read(0).messages[0].text == "What?"
    with pytest.raises(BadRecord, match="can't decode byte"):
        source.read(1)


def test_a_table_whose_disk_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table().to_parquet(tmp_path / "a.parquet")
    source = HuggingFaceSource(str(tmp_path / "a.parquet"))

    class Broken:
        def __getitem__(self, index: int) -> Any:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(source, "_data", Broken())
    with pytest.raises(DataError, match=r"a.parquet \(train\) row 0 cannot be read: Input/output error"):
        source.read(0)
