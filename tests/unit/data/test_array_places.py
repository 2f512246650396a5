"""Places of the entries of a JSON array: those that a parser of the whole file finds, however it is cut into pieces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsi_cli.engine.data.array_places import array_places
from vlsi_cli.engine.data.sources import JsonSource
from vlsi_cli.errors import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def entries(file: Path, piece: int) -> list[Any]:
    whole = file.read_bytes()
    offsets, lengths = array_places(file, piece)
    return [json.loads(whole[at : at + n]) for at, n in zip(offsets, lengths, strict=True)]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(VALUES, max_size=6),
    piece=st.integers(1, 40),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    bom=st.booleans(),
)
def test_places_are_those_of_a_parser(
    rows: list[Any], piece: int, indent: int | None, ascii_only: bool, bom: bool, tmp_path_factory: Any
) -> None:
    file = tmp_path_factory.mktemp("places") / "rows.json"
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only) + "\n "
    file.write_bytes(text.encode("utf-8-sig" if bom else "utf-8", "surrogatepass"))
    assert json.dumps(entries(file, piece)) == json.dumps(rows)


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    "text",
    [
        "[",
        "[1",
        "[1,",
        "[1,]",
        "[1 2]",
        "[1] 2",
        "[tru]",
        "[-]",
        '["a]',
        '["\\u12"]',
        '[{"a": }]',
        '[\n{"a": 1},\n{"é": "ü", b}\n]',
        '[{"a": 1},\n "b\n"]',
    ],
)
def test_what_a_parser_refuses_is_refused_at_the_same_place(tmp_path: Path, text: str, piece: int) -> None:
    file = tmp_path / "broken.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(json.JSONDecodeError) as told:
        json.loads(text)
    with pytest.raises(DataError) as caught:
        array_places(file, piece)
    line, column = told.value.lineno, told.value.colno
    if text == "[1,]":  # newer versions of Python point at the comma
        column = 4
    assert caught.value.message.startswith(f"{file}:{line}: not valid JSON: ")
    if piece > len(text) or text.isascii():
        assert caught.value.message.endswith(f"(column {column})")


def test_a_record_whose_bytes_are_no_text_is_the_only_one_that_is_lost(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Où?"}, {"role": "assistant", "content": "Là."}]
    row = json.dumps({"messages": talk}, ensure_ascii=False).encode()
    file = tmp_path / "rows.json"
    file.write_bytes(b"[" + row + b",\n" + row.replace("ù".encode(), b"\xff") + b"," + row + b"]")
    source = JsonSource(file, "messages")
    assert source.size == 3
    assert [source.read(i).messages[0].text for i in (2, 0)] == ["Où?", "Où?"]
    with pytest.raises(DataError, match=r"rows\.json\[1\].*not valid JSON"):
        source.read(1)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "deep.json"
    file.write_text("[" * 200_000)
    with pytest.raises(DataError, match="not valid JSON"):
        array_places(file)
