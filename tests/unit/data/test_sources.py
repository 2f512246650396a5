from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlsi_cli.engine.data.formats import from_llava, from_messages, from_question, from_row
from vlsi_cli.engine.data.records import BadRecord, Numbering, Record
from vlsi_cli.engine.data.sources import JsonSource, PatternsSource
from vlsi_cli.errors import ConfigError, DataError

HI = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
HI_CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def llava(**row: Any) -> Record:
    return from_llava(row, default_id="d", where="f:1", root=None)


def chat(*messages: tuple[str, Any], **row: Any) -> Record:
    talk = [{"role": role, "content": content} for role, content in messages]
    return from_messages({"messages": talk, **row}, default_id="d", where="f:1", root=None)


def shown(record: Record) -> list[tuple[str, Any]]:
    return [(message.role, message.parts) for message in record.messages]


def reason_of(make: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(BadRecord) as caught:
        make(*args, **kwargs)
    assert caught.value.where == "f:1"
    return caught.value.reason


# ---------------------------------------------------------------- formats


def open_ended(parse: Any, **row: Any) -> list[tuple[str, Any]]:
    return shown(parse(row, default_id="d", where="f:1", root=None, unanswered=True))


@pytest.mark.parametrize("last", [[], [""], [" \n"], [None]])
def test_a_last_answer_may_be_missing(last: list[Any]) -> None:
    """For a model that is to give it; an empty one is none."""
    question = [("user", (0, "What?"))]
    talk = [{"from": "human", "value": "<image>What?"}, *({"from": "gpt", "value": text} for text in last)]
    assert open_ended(from_llava, conversations=talk, image="a.png") == question
    chats = [
        {"role": "user", "content": "<image>What?"},
        *({"role": "assistant", "content": t} for t in last),
    ]
    assert open_ended(from_messages, messages=chats, images=["a.png"]) == question
    assert open_ended(from_row, messages=chats, images=["a.png"]) == question
    pair = {"user": "What?", "assistant": last[0] if last else None}
    assert open_ended(from_row, texts=[pair], images=["a.png"]) == question
    columns = {"question": "q", "answer": "a" if last else None, "image": "i"}
    row = {"q": "What?", "i": "a.png", **({"a": last[0]} if last else {})}
    record = from_question(row, **columns, default_id="d", where="f:1", root=None, unanswered=True)  # type: ignore[arg-type]
    assert shown(record) == question
    assert reason_of(
        from_llava, {"conversations": talk, "image": "a.png"}, default_id="d", where="f:1", root=None
    ) in (
        "no-response",
        "empty-response",
        "bad-format",
    )


def test_only_a_last_answer_may_be_missing() -> None:
    where = {"default_id": "d", "where": "f:1", "root": None, "unanswered": True}
    blank = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "b"},
    ]
    assert reason_of(from_messages, {"messages": blank}, **where) == "empty-response"
    assert reason_of(from_messages, {"messages": blank[1:2]}, **where) == "no-response"
    assert reason_of(from_messages, {"messages": [blank[0], blank[2]]}, **where) == "role-order"
    assert (
        reason_of(from_messages, {"messages": [{"role": "system", "content": "a"}]}, **where) == "no-response"
    )
    assert shown(from_messages({"messages": [*HI_CHAT, blank[0]]}, **where))[-1] == ("user", ("a",))  # type: ignore[arg-type]


def test_llava() -> None:
    record = llava(
        id=7,
        image="a.png",
        conversations=[
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "A cat."},
            {"from": "human", "value": "Sure?"},
            {"from": "gpt", "value": "Yes."},
        ],
    )
    assert (record.id, record.where, record.turns) == ("7", "f:1", 2)
    assert [image.path for image in record.images] == ["a.png"]
    assert shown(record) == [
        ("system", ("Be brief.",)),
        ("user", (0, "What is it?")),
        ("assistant", ("A cat.",)),
        ("user", ("Sure?",)),
        ("assistant", ("Yes.",)),
    ]


def test_records_of_another_kind_say_so() -> None:
    with pytest.raises(BadRecord, match="no list of messages, but 'messages', of another kind"):
        llava(messages=HI_CHAT)
    with pytest.raises(BadRecord, match="no list of messages, but 'conversations', of another kind"):
        from_messages({"conversations": HI}, default_id="d", where="f:1", root=None)


def test_llava_without_image_and_with_several() -> None:
    assert llava(conversations=HI).images == ()
    talk = [{"from": "human", "value": "Compare <image>\n<image>\n\nhere"}, HI[1]]
    record = llava(image=["a.png", "b.png"], conversations=talk)
    assert shown(record)[0] == ("user", ("Compare ", 0, 1, "\nhere"))
    assert [image.path for image in record.images] == ["a.png", "b.png"]


def test_messages_with_parts() -> None:
    record = chat(
        ("user", [{"type": "image", "path": "a.png"}, {"type": "text", "text": "And "}, {"type": "image"}]),
        ("assistant", [{"type": "text", "text": "Two cats."}]),
        ("user", "<image>\nThird?"),
        ("assistant", "A dog."),
        images=["b.png", {"path": "c.png"}],
    )
    assert [image.path for image in record.images] == ["a.png", "b.png", "c.png"]
    assert shown(record)[0] == ("user", (0, "And ", 1))
    assert shown(record)[2] == ("user", (2, "Third?"))


def test_rows_of_tables() -> None:
    both = {"messages": None, "conversations": HI}
    assert from_row(both, default_id="d", where="f:1", root=None).turns == 1
    pairs = {
        "images": [{"bytes": b"1", "path": None}],
        "texts": [{"user": "A?", "assistant": "B", "source": "s"}],
    }
    record = from_row(pairs, default_id="d", where="f:1", root=None)
    assert shown(record) == [("user", (0, "A?")), ("assistant", ("B",))]
    assert record.images[0].data == b"1"
    asked = from_question(
        {"q": "A?", "a": "B", "i": {"bytes": b"1", "path": None}},
        question="q", answer="a", image="i", default_id="d", where="f:1", root=None,
    )  # fmt: skip
    assert asked.messages == record.messages


def test_a_question_of_a_column_may_say_where_its_images_stand() -> None:
    row = {"q": "Is <image> like\n<image>\n?", "a": "No.", "i": ["a.png", "b.png"]}
    columns = {"question": "q", "answer": "a", "image": "i"}
    record = from_question(row, **columns, default_id="d", where="f:1", root=None)  # type: ignore[arg-type]
    assert shown(record)[0] == ("user", ("Is ", 0, " like", 1, "?"))
    fewer = row | {"i": "a.png"}
    assert reason_of(from_question, fewer, **columns, default_id="d", where="f:1", root=None) == "image-count"


def test_images_as_data_urls() -> None:
    """Where an address would stand, in each of the shapes that have one; they are bytes and never an address."""
    url = "data:image/png;base64,iVBO"
    asked = {"type": "text", "text": "What?"}
    for source in ({"type": "image", "image": url}, {"type": "image_url", "image_url": {"url": url}}):
        record = chat(("user", [source, asked]), ("assistant", "A cat."))
        assert record.images[0].data == b"\x89PN"
    talk = [{"from": "human", "value": "<image>What?"}, *HI[1:]]
    wrapped = llava(image="DATA:image/png;charset=utf-8;base64,iV%42\nO", conversations=talk)
    assert wrapped.images[0].data == b"\x89PN"
    for broken in ("iVB", "iVB*"):
        row = {"image": f"data:image/png;base64,{broken}", "conversations": talk}
        assert reason_of(from_llava, row, default_id="d", where="f:1", root=None) == "image-unreadable"


U, A = ("user", "Hi"), ("assistant", "Hello.")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "bad-format"),
        ([U], "no-response"),
        ([U, A, U], "no-response"),
        ([("system", "S")], "no-response"),
        ([A], "role-order"),
        ([U, U, A], "role-order"),
        ([U, A, A], "role-order"),
        ([U, A, ("system", "S"), U, A], "role-order"),
        ([("tool", "x"), U, A], "bad-role"),
        ([U, ("assistant", "")], "empty-response"),
        ([U, ("assistant", " \n")], "empty-response"),
        ([U, ("assistant", None)], "bad-format"),
        ([U, ("assistant", 3)], "bad-format"),
        ([("user", [{"type": "video", "path": "v"}]), A], "bad-format"),
        ([("user", ["x"]), A], "bad-format"),
        ([("user", "<image> x"), A], "image-count"),
        ([("user", [{"type": "image"}]), A], "image-count"),
        ([("user", [{"type": "image", "image": 5}]), A], "bad-format"),
    ],
)
def test_conversations_that_are_refused(messages: list[tuple[str, Any]], reason: str) -> None:
    assert reason_of(chat, *messages) == reason


def test_images_that_do_not_fit_their_placeholders() -> None:
    assert reason_of(chat, U, A, images=["a.png"]) == "image-count"
    assert reason_of(chat, ("user", "<image>"), A, images=["a.png", "b.png"]) == "image-count"
    assert reason_of(chat, U, ("assistant", "<image>x"), images=["a.png"]) == "image-in-response"
    assert reason_of(llava, image="a.png", conversations=HI) == "image-count"
    assert reason_of(llava, image={"size": 3}, conversations=HI) == "bad-format"
    assert reason_of(llava, conversations="Hi") == "bad-format"
    assert reason_of(llava, conversations=[{"value": "Hi"}]) == "bad-format"


# ---------------------------------------------------------------- files


def rows(number: int) -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "conversations": HI} for i in range(number)]


def test_what_other_data_write_where_an_image_stands() -> None:
    for question, parts in (
        ("<|image|>What?", (0, "What?")),
        ("<image1>\nWhat?", (0, "What?")),
        ("A <image_1> and <image_2>: is <image_1> red?", ("A ", 0, " and ", 1, ": is <image_1> red?")),
        ("<image 2>?", ("<image 2>?",)),
    ):
        assert Numbering().split(question) == parts


def test_json_lines_by_offset(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows(4)]
    lines[2] = json.dumps({"conversations": [{"from": "human", "value": "Où?"}, HI[1]]}, ensure_ascii=False)
    path.write_bytes("\ufeff".encode() + "\n\n".join(lines).encode() + b"\r\n  \n")
    source = JsonSource(path, "llava")
    assert source.size == 4
    assert [source.read(i).id for i in (3, 0, 2, 1)] == ["r3", "r0", "data.jsonl:5", "r1"]
    assert source.read(2).where == f"{path}:5"
    assert source.read(2).messages[0].text == "Où?"


def test_json_array(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows(3), indent=1))
    source = JsonSource(path, "llava")
    assert (source.size, source.read(2).id, source.read(2).where) == (3, "r2", f"{path}[2]")


def test_json_lines_in_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text("\n".join(map(json.dumps, rows(3))))
    assert JsonSource(path, "llava").size == 3


def test_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"conversations": []}\n\n{"conversations": [}\n[1]\n"\xff"\n')
    source = JsonSource(path, "llava")
    for index, line, reason in (
        (0, 1, "bad-format"),
        (1, 3, "broken-json"),
        (2, 4, "bad-format"),
        (3, 5, "broken-json"),
    ):
        with pytest.raises(BadRecord, match=f"^{path}:{line}: ") as caught:
            source.read(index)
        assert (caught.value.reason, caught.value.exit_code) == (reason, 3)


def test_broken_array_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('[\n{"a": 1},\n{"b" 2}\n]')
    with pytest.raises(DataError, match=f"^{path}:3: not valid JSON"):
        JsonSource(path, "llava")


def test_images_start_from_the_root(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(
        json.dumps({"image": "a.png", "conversations": [{"from": "human", "value": "<image>"}, HI[1]]})
    )
    assert JsonSource(path, "llava").read(0).images[0].root == tmp_path
    (tmp_path / "pictures").mkdir()
    assert (
        JsonSource(path, "llava", image_root=tmp_path / "pictures").read(0).images[0].root
        == tmp_path / "pictures"
    )
    with pytest.raises(DataError, match="no image folder"):
        JsonSource(path, "llava", image_root=tmp_path / "nowhere")
    with pytest.raises(DataError, match="no data file"):
        JsonSource(tmp_path / "nothing.jsonl", "llava")


# ---------------------------------------------------------------- puzzles


def test_patterns() -> None:
    endless = PatternsSource("train", turns=3)
    record = endless.read(10**6)
    assert endless.size is None
    assert record.messages[0].parts[0] == 0
    assert len(record.images) == 1
    assert (
        record == endless.read(10**6)
        or record.images[0].picture.tobytes() == endless.read(10**6).images[0].picture.tobytes()
    )
    assert PatternsSource("test", size=5).size == 5
    with pytest.raises(ConfigError):
        PatternsSource("exam")
