"""Records written down and read back: the same conversation, and pictures that are found."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlsi_cli.engine.data.images import load_image
from vlsi_cli.engine.data.records import BadRecord, ImageRef, Message, Record, make_record
from vlsi_cli.engine.data.sources import JsonSource
from vlsi_cli.engine.data.writing import RecordWriter
from vlsi_cli.errors import DataError

RED = Image.new("RGB", (20, 10), "red")


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def photo(root: Path, name: str) -> ImageRef:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png())
    return ImageRef(path=name, root=root)


def talk(*images: ImageRef) -> Record:
    user = Message("user", ("\n before ", *range(len(images)), " <b>\nwhat?\n"))
    words = [Message("system", ("Be short.",)), user, Message("assistant", ("red \u2028 \U0001f345",))]
    return make_record("1", [*words, Message("user", ("and?",)), Message("assistant", ("no",))], images)


def written(writer: RecordWriter, file: Path, record: Record) -> Record:
    """The record as a reader of the file sees it."""
    file.write_text(
        json.dumps(writer.row(record, {"answered_by": {"model": "m"}}), ensure_ascii=False) + "\n", "utf-8"
    )
    return JsonSource(file, "messages", image_root=writer.root).read(0)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    pictures = (photo(tmp_path / "data", "a/b.png"), ImageRef(data=png("blue")), ImageRef(picture=RED))
    writer = RecordWriter(file, [tmp_path / "data"], keeps=True)
    back = written(writer, file, talk(*pictures))
    assert (back.id, back.messages) == ("1", talk(*pictures).messages)
    assert [load_image(ref).getpixel((0, 0)) for ref in back.images] == [
        (255, 0, 0),
        (0, 0, 255),
        (255, 0, 0),
    ]
    assert back.images[0].path == "data/a/b.png"
    assert writer.root == writer.folder
    assert writer.named


def test_other_fields_come_along_whatever_they_are(tmp_path: Path) -> None:
    asked, file = tmp_path / "asked.jsonl", tmp_path / "out.jsonl"
    row = {"messages": [{"role": "user", "content": "a"}], "odd": "\ud800", "nested": {"a": [1, None, "ü"]}}
    asked.write_text(json.dumps(row) + "\n")
    record = JsonSource(asked, "messages", unanswered=True).read(0)
    line = RecordWriter(file, [], keeps=False).line(record, {"answered_by": 1})
    line.encode()
    assert json.loads(line) == {"id": "asked.jsonl:1", **row, "answered_by": 1}
    assert JsonSource(asked, "messages", unanswered=True).read(0) == record
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(BadRecord, match="lists inside lists"):
        RecordWriter(file, [], keeps=False).line(record, {"deep": deep})
    while deep:  # one by one: taking it down as a whole recurses too
        deep = deep[0]


def test_equal_pictures_are_kept_once(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "out.jsonl", [], keeps=True)
    row = writer.row(talk(ImageRef(data=png()), ImageRef(data=png())), {})
    assert row["images"][0] == row["images"][1]
    assert row["images"][0].startswith("out.images/")
    assert len([path for path in writer.images.rglob("*") if path.is_file()]) == 1
    assert not writer.named


def test_pictures_elsewhere_are_named_from_the_nearest_common_folder(tmp_path: Path) -> None:
    one, two, out = tmp_path / "x" / "one", tmp_path / "x" / "two", tmp_path / "out"
    refs = (photo(one, "a.png"), photo(two, "b.png"))
    out.mkdir()
    writer = RecordWriter(out / "out.jsonl", [one, two], keeps=False)
    assert writer.root == tmp_path.resolve() / "x"
    assert writer.row(talk(*refs), {})["images"] == ["one/a.png", "two/b.png"]
    wider = RecordWriter(out / "out.jsonl", [one, two], keeps=True)
    assert wider.root == tmp_path.resolve()
    # of a source that was not said to have files there, such as a table: it is copied
    kept = RecordWriter(out / "out.jsonl", [], keeps=True).row(talk(refs[0]), {})["images"]
    assert kept[0].startswith("out.images/")


def test_links_are_followed_only_where_a_reader_could_not(tmp_path: Path) -> None:
    ref = photo(tmp_path / "blobs", "a.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "named.png").symlink_to(tmp_path / "blobs" / "a.png")
    writer = RecordWriter(tmp_path / "out.jsonl", [tmp_path], keeps=False)
    linked = ImageRef(path="data/named.png", root=tmp_path)
    assert writer.row(talk(ref, linked), {})["images"] == ["blobs/a.png", "data/named.png"]


def test_what_leads_out_of_its_folder_is_not_written(tmp_path: Path) -> None:
    photo(tmp_path, "a.png")
    (tmp_path / "data").mkdir()
    writer = RecordWriter(tmp_path / "out.jsonl", [tmp_path / "data"], keeps=False)
    for path, reason in (("../a.png", "image-escape"), ("b.png", "image-missing")):
        with pytest.raises(BadRecord) as caught:
            writer.row(talk(ImageRef(path=path, root=tmp_path / "data")), {})
        assert caught.value.reason == reason
    with pytest.raises(BadRecord) as caught:
        writer.row(talk(ImageRef(data=b"no picture")), {})
    assert caught.value.reason == "image-unreadable"


def test_an_address_stays_one(tmp_path: Path) -> None:
    address = "https://example.org/a.png"
    writer = RecordWriter(tmp_path / "out.jsonl", [tmp_path], keeps=False)
    assert writer.row(talk(ImageRef(path=address, root=tmp_path)), {})["images"] == [address]


def test_folders_without_a_common_one_are_refused() -> None:
    with pytest.raises(DataError, match="must lie in one folder"):
        RecordWriter(Path("/nowhere/out.jsonl"), [Path("/a"), Path("/b")], keeps=False)
    assert RecordWriter(Path("/nowhere/out.jsonl"), [Path("/")], keeps=False).root == Path("/")
