"""Records that nobody vouches for: each is used, or named with one of the documented reasons."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.inputs.kit import ends_well, vlsi
from vlsi_cli.engine.data.records import REASONS

MEANINGS = {meaning.split(" (")[0] for meaning in REASONS.values()}
EXAMPLES = 120


def talk(user: Any = "What?", assistant: Any = "A circle.", **more: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}],
        **more,
    }


def line(value: Any) -> bytes:
    return json.dumps(value).encode()


def nested(depth: int, value: Any = "a.png") -> Any:
    for _ in range(depth):
        value = [value]
    return value


def many(turns: int) -> dict[str, Any]:
    return {"messages": talk()["messages"] * turns}


#: Line of the file -> the reason that must be given, or None where the record can be used.
LINES: dict[str, tuple[bytes, str | None]] = {
    "half an object": (b'{"messages": [', "broken-json"),
    "brackets without end": (b'{"a": ' + b"[" * 100_000, "broken-json"),
    "deep and closed": (b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", None),
    "a number": (b"3", "bad-format"),
    "a text": (b'"text"', "bad-format"),
    "null": (b"null", "bad-format"),
    "not UTF-8": (b'{"messages": "\xff\xfe"}', "broken-json"),
    "UTF-16": ('{"messages": []}'.encode("utf-16"), "broken-json"),
    "bytes of zero": (b"\0" * 64, "broken-json"),
    "a pickle": (b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtin", "broken-json"),
    "a number of 5,000 digits": (b'{"id": ' + b"9" * 5000 + b', "messages": []}', "broken-json"),
    "NaN and infinity": (b'{"id": NaN, "a": -Infinity, "messages": [1e999]}', "bad-format"),
    "no messages": (b"{}", "bad-format"),
    "messages: an object": (line({"messages": {}}), "bad-format"),
    "messages: a text": (line({"messages": "user: hi"}), "bad-format"),
    "messages: empty": (line({"messages": []}), "bad-format"),
    "messages: nulls": (line({"messages": [None, None]}), "bad-format"),
    "messages: lists": (line({"messages": [[], []]}), "bad-format"),
    "messages: without fields": (line({"messages": [{}, {}]}), "bad-format"),
    "a role that is a number": (line({"messages": [{"role": 1, "content": "a"}]}), "bad-format"),
    "a role of another system": (line({"messages": [{"role": "tool", "content": "a"}]}), "bad-role"),
    "a role in capitals": (line({"messages": [{"role": "User", "content": "a"}]}), "bad-role"),
    "a very long role": (line({"messages": [{"role": "u" * 10**6, "content": "a"}]}), "bad-role"),
    "assistant first": (line({"messages": talk()["messages"][::-1]}), "role-order"),
    "user last": (line({"messages": [*talk()["messages"], talk()["messages"][0]]}), "no-response"),
    "two users": (line({"messages": [talk()["messages"][0]] * 2 + [talk()["messages"][1]]}), "role-order"),
    "system last": (
        line({"messages": [*talk()["messages"], {"role": "system", "content": "a"}]}),
        "role-order",
    ),
    "no response": (line({"messages": talk()["messages"][:1]}), "no-response"),
    "an empty response": (line(talk(assistant=" \n")), "empty-response"),
    "content: null": (line(talk(user=None)), "bad-format"),
    "content: a number": (line(talk(assistant=7)), "bad-format"),
    "content: an object": (line(talk(user={"type": "text", "text": "a"})), "bad-format"),
    "content: parts of no type": (line(talk(user=[{}])), "bad-format"),
    "content: a video": (line(talk(user=[{"type": "video", "video": "a.mp4"}])), "bad-format"),
    "content: a type that is a list": (line(talk(user=[{"type": ["text"]}])), "bad-format"),
    "content: text that is none": (line(talk(user=[{"type": "text", "text": 3}])), "bad-format"),
    "content: empty list": (line(talk(user=[])), None),
    "half a surrogate": (line(talk(user="a\ud800b")), "bad-format"),
    "half a surrogate in the response": (line(talk(assistant="\udfff")), "bad-format"),
    "half a surrogate in the id": (line(talk(id="\ud800")), None),
    "a zero byte": (line(talk(user="a\0b")), None),
    "signs that turn the text": (line(talk(user="\u202e\u2066a\ufeff")), None),
    "a control token": (line(talk(user="<|im_end|>")), "control-token"),
    "a control token in the response": (line(talk(assistant="a<|im_start|>system")), "control-token"),
    "an image token of the model": (line(talk(user="<|image_pad|>" * 3)), "control-token"),
    "more placeholders than images": (line(talk(user="<image>" * 3)), "image-count"),
    "more images than placeholders": (line(talk(images=["a.png", "a.png"])), "image-count"),
    "an image in the response": (line(talk(assistant="<image>", images=["a.png"])), "image-in-response"),
    "an image that is a number": (line(talk(user="<image>", image=5)), "bad-format"),
    "an image that is true": (line(talk(user="<image>", image=True)), "bad-format"),
    "an image that is an object": (line(talk(user="<image>", image={})), "bad-format"),
    "an image of images": (line(talk(user="<image>", image={"image": {"path": {}}})), "bad-format"),
    "bytes that are text": (line(talk(user="<image>", image={"bytes": "abc"})), "bad-format"),
    "images in 20 lists": (line(talk(user="<image>", image=nested(20))), None),
    "images in 900 lists": (line(talk(user="<image>", image=nested(900))), "bad-format"),
    "an empty image part": (line(talk(user=[{"type": "image"}])), "image-count"),
    "more images than a record may have": (
        line(talk(user="<image>" * 20_000, images=["a.png"] * 20_000)),
        "too-large",
    ),
    "more messages than a record may have": (line(many(20_000)), "too-large"),
    "a text of 400 kB": (line(talk(user="a " * 200_000)), "too-long"),
    "a line of 40 MB": (b'{"id": "' + b"a" * 40_000_000 + b'"}', "too-large"),
    "an id that is an object": (line(talk(id={"a": [1]})), None),
    "an id of a megabyte": (line({"id": "i" * 10**6}), "bad-format"),
    "keys given twice": (b'{"messages": 1, "messages": []}', "bad-format"),
    "a good one": (line(talk()), None),
    "a good one with a picture": (line(talk(user="<image>\nWhat?", images=["a.png"])), None),
    "a byte order mark": (b"\xef\xbb\xbf" + line(talk()), None),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("records")
    Image.new("RGB", (32, 32), "red").save(made / "a.png")
    return made


def preview(folder: Path, content: bytes) -> tuple[int, str]:
    """Exit code and sentence for the first record of a file."""
    file = folder / "data.jsonl"
    file.write_bytes(content)
    done = vlsi("data", "preview", "--set", f"data={{sources: [{{kind: messages, path: {file}}}]}}", "--json")
    return done.exit_code, ends_well(done, 0, 3)


@pytest.mark.parametrize("name", LINES)
def test_lines(folder: Path, name: str) -> None:
    content, reason = LINES[name]
    code, said = preview(folder, content + b"\n")
    if reason is None:
        assert code == 0 or any(meaning in said for meaning in MEANINGS)
    else:
        assert code == 3
        assert REASONS[reason] in said, said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no record"),
        (b"\n \n\t\n", "holds no record"),
        (b"[", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b"[1, 2", "not valid JSON"),
        (b'[{"a": \xff}]', "not valid JSON"),
        (b"[" + b"9" * 6000 + b"]", "not valid JSON"),
        (b"[]", "holds no record"),
        (b"[] []", "not valid JSON"),
        (b"[null]", "bad"),
    ],
)
def test_files_that_hold_no_records(folder: Path, content: bytes, said: str) -> None:
    code, sentence = preview(folder, content)
    assert code == 3
    assert said in sentence or "cannot be used" in sentence or "has no record 0" in sentence


@pytest.mark.parametrize("make", ["mkdir", "fifo", "dangling", "loop"])
def test_what_is_no_file(folder: Path, make: str) -> None:
    path = folder / f"{make}.jsonl"
    if make == "mkdir":
        path.mkdir()
    elif make == "fifo":
        import os

        os.mkfifo(path)
    else:
        path.symlink_to(path if make == "loop" else folder / "nowhere")
    ends_well(vlsi("data", "preview", "--data", path), 2, 3)


def test_a_good_record_among_all_of_them_is_answered(folder: Path) -> None:
    """Answers make a few of them usable; what comes out is read back, record by record."""
    content = b"\n".join(content for content, _ in LINES.values() if b"\n" not in content)
    (folder / "all.jsonl").write_bytes(content)
    output = folder / "out.jsonl"
    words = ("--model", "demo/small", "--replace", "--max-new-tokens", 8, "--json")
    done = vlsi("data", "answer", folder / "all.jsonl", *words, "-o", output)
    assert ends_well(done, 0) == ""
    report = json.loads(done.stdout)
    assert report["records"] > 0
    assert sum(report["unusable"].values()) > len(LINES) / 2
    for index in range(report["records"]):
        assert vlsi("data", "preview", output, "--index", index).exit_code == 0


# ---------------------------------------------------------------- generated

_TEXTS = st.text(max_size=20) | st.sampled_from(
    ["<image>", "<|im_end|>", "user", "assistant", "system", "a.png", "../a.png", "http://x/a.png", "\ud800"]
)
_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "image", "url", "role", "content", "bytes", "path"]), inner
        )
    ),
    max_leaves=8,
)
_MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]) | _VALUES, "content": _TEXTS | _VALUES}
)
_RECORDS = st.fixed_dictionaries(
    {"messages": st.lists(_MESSAGES, max_size=5) | _VALUES},
    optional={"id": _VALUES, "images": _VALUES, "image": _VALUES},
)
_BROKEN = st.builds(
    lambda record, place, junk: _cut(json.dumps(record).encode(), place, junk),
    _RECORDS,
    st.floats(0, 1),
    st.binary(max_size=4) | st.sampled_from(list(map(str.encode, string.punctuation))),
)


def _cut(content: bytes, place: float, junk: bytes) -> bytes:
    at = int(place * len(content))
    return content[:at] + junk + content[at + len(junk) :]


@settings(
    max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(content=_RECORDS.map(lambda record: json.dumps(record).encode()) | _BROKEN)
def test_generated_records(folder: Path, content: bytes) -> None:
    code, said = preview(folder, content + b"\n")
    assert code in (0, 3)
    assert code == 0 or "cannot be used" in said or "no record" in said or "not valid JSON" in said, said
