"""Pictures as they are named on a command line: what is read, and one sentence for each that cannot be."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlsi_cli.engine.data.images import locate
from vlsi_cli.engine.data.pictures import PicturesSource, open_pictures, puzzle
from vlsi_cli.engine.data.records import BadRecord
from vlsi_cli.errors import ConfigError, DataError

NOTHING = io.BytesIO()


def save(path: Path, colour: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (8, 6)) -> str:
    Image.new("RGB", size, colour).save(path)
    return str(path)


def as_bytes(path: str) -> io.BytesIO:
    return io.BytesIO(Path(path).read_bytes())


def test_files_folders_and_standard_input(tmp_path: Path) -> None:
    one = save(tmp_path / "one.png", (1, 1, 1))
    folder = tmp_path / "folder"
    (folder / "deeper").mkdir(parents=True)
    for name, shade in (("b.PNG", 3), ("a.bmp", 2), (".hidden.png", 9), ("deeper/c.png", 9)):
        save(folder / name, (shade,) * 3)
    (folder / "notes.txt").write_text("no picture")
    link = tmp_path / "link.png"
    link.symlink_to(folder / "a.bmp")
    found = open_pictures([one, str(folder), "-", str(link)], as_bytes(save(tmp_path / "in.png", (4, 4, 4))))
    names = [one, str(folder / "a.bmp"), str(folder / "b.PNG"), "standard input", str(link)]
    assert [picture.name for picture in found] == names
    assert [picture.load().getpixel((0, 0))[0] for picture in found] == [1, 2, 3, 4, 2]
    assert {(picture.question, picture.reference) for picture in found} == {(None, None)}


def test_a_folder_s_pictures_with_a_question(tmp_path: Path) -> None:
    """In the order of their paths, folder by folder; all else is counted, and the output is no part of it."""
    folder = tmp_path / "photos"
    for name in (
        "b/2.PNG",
        "b/10.jpg",
        "a.webp",
        "b.png",
        ".hidden/x.png",
        ".x.png",
        "out.images/ab/kept.png",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save(folder / name)
    for name in ("notes.txt", "b/more.TXT", "b/README", "out.jsonl"):
        (folder / name).touch()
    (folder / "link").symlink_to(tmp_path)
    (folder / "c.png").symlink_to(save(tmp_path / "elsewhere.png"))
    source = PicturesSource(folder, "What is it?", (folder / "out.jsonl", folder / "out.images"))
    assert source.paths == ["a.webp", "b/10.jpg", "b/2.PNG", "b.png", "c.png"]
    assert source.others == {"hidden": 2, ".txt": 2, "without an ending": 1, "links to folders": 1}
    record = source.read(1)
    assert (record.id, record.where) == ("photos/b/10.jpg", str(folder / "b" / "10.jpg"))
    assert [message.parts for message in record.messages] == [(0, "What is it?")]
    assert locate(record.images[0]) == folder.resolve() / "b" / "10.jpg"
    with pytest.raises(BadRecord, match="the image path leaves the image folder"):
        locate(source.read(4).images[0])
    (asked,) = PicturesSource(folder, "This:\n<image>\nWhat is it?").read(0).messages
    assert asked.parts == ("This:", 0, "What is it?")
    with pytest.raises(BadRecord, match="2 in the text, 1 images"):
        PicturesSource(folder, "<image> or <image>?").read(0)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).touch()
    with pytest.raises(BadRecord, match="a file name that is no text") as caught:
        PicturesSource(tmp_path, "?").read(0)
    str(caught.value).encode()


def test_a_folder_without_pictures_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.heic").touch()
    with pytest.raises(DataError, match=r"holds no pictures, but \.heic 1") as caught:
        PicturesSource(tmp_path, "?")
    assert caught.value.hint is not None
    assert ".jpeg, .jpg" in caught.value.hint


def test_a_puzzle_brings_its_question_and_answer() -> None:
    found = puzzle(0)
    assert found.load().size == (32, 8)
    assert (found.question, found.reference) == ("How many squares are there?", "three")


def animated(path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), (shade,) * 3) for shade in (0, 255)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def huge(path: Path) -> None:
    Image.new("1", (9000, 8000)).save(path)


def thin(path: Path) -> None:
    Image.new("1", (1000, 2)).save(path)


def floating(path: Path) -> None:
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(path)


def text(path: Path) -> None:
    path.write_text("this is no picture")


def cut(path: Path) -> None:
    Image.effect_noise((64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[:900])


BAD = [
    (animated, "a.gif", "the image has several frames (2 frames)", "save the frame"),
    (huge, "a.png", "more pixels than the limit, by its header (picture: 9000 x 8000", "scale it down"),
    (thin, "a.png", "one side is more than 200 times the other", "cut it"),
    (floating, "a.tiff", "pixels without a known white", "scale its values"),
    (text, "a.png", "not an image in a supported format", "PNG, JPEG"),
    (cut, "a.png", "the image's pixels cannot be decoded", None),
]


@pytest.mark.parametrize(("make", "name", "sentence", "hint"), BAD, ids=[row[0].__name__ for row in BAD])
def test_one_sentence_each(make, name, sentence, hint, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / name)
    with pytest.raises(DataError) as caught:
        open_pictures([str(tmp_path / name)], NOTHING)
    message = caught.value.message
    assert message.startswith(f"{tmp_path / name} cannot be used: {sentence.split(' (picture')[0]}")
    assert "\n" not in message
    assert message.count(name) == 1
    assert hint is None or hint in (caught.value.hint or "")
    with pytest.raises(DataError, match=r"^standard input cannot be used"):
        open_pictures(["-"], as_bytes(str(tmp_path / name)))


def test_sixteen_bits_are_read_as_eight_and_said(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 65535, dtype=np.uint16)).save(tmp_path / "deep.png")
    deep, plain = open_pictures([str(tmp_path / "deep.png"), save(tmp_path / "plain.png")], NOTHING)
    assert deep.deep
    assert not plain.deep
    assert deep.load().getpixel((0, 0)) == (255, 255, 255)


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"the folder {tmp_path} holds no pictures")):
        open_pictures([str(tmp_path)], NOTHING)
    with pytest.raises(DataError, match=r"there is no picture nowhere\.png"):
        open_pictures(["nowhere.png"], NOTHING)
    with pytest.raises(ConfigError, match="named twice"):
        open_pictures(["-", "-"], NOTHING)
    with pytest.raises(ConfigError, match="is a terminal"):
        open_pictures(["-"], Terminal())
    with pytest.raises(DataError, match="standard input cannot be used"):
        open_pictures(["-"], NOTHING)
