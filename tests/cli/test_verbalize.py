"""`vlsi verbalize` through the real app: what is printed, what is written, and one sentence for each wrong input."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import vlsi_cli
from vlsi_cli.app import app
from vlsi_cli.commands._tables_verbalize import printable

SMALL = Path(vlsi_cli.__file__).parent / "demo" / "small"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def vlsi(*words: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["verbalize", *words], prog_name="vlsi", input=stdin)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 8), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def small(*words: str, **options: Any) -> Result:
    return vlsi("--model", "demo/small", "--max-new-tokens", "3", *words, **options)


def test_without_arguments_the_demo_pair_reads_a_puzzle() -> None:
    done = vlsi("--max-new-tokens", "8", "--html", "page.html")
    assert done.exit_code == 0, done.output
    assert "question: Describe cells one, four, two, three." in done.stdout
    assert (
        "right answer: one missing, four blue triangle, two yellow circle, three blue square" in done.stdout
    )
    rows = [line for line in done.stdout.splitlines() if re.match(r" *\d+  .*\d\.\d\d", line)]
    assert len(rows) == 10, "a line for every layer of the large one"
    assert re.match(r" *10 .* yes .* 6 .* yes *$", rows[-1])
    for model in ("large", "small"):
        assert f"demo/{model}: logit lens (the model's own final norm and head" in done.stdout
    assert "no picture was named" in done.stderr
    assert done.stderr.endswith("written: page.html\n")
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.count('<span class="token') > 60
    assert 'src="data:image/png;base64,' in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page
    assert page.count("logit lens (the model&#39;s own") == 2


def test_json_says_the_same_as_the_engine() -> None:
    done = small("--json", "--layers", "2,4-5", "--tokens", "1", "--top-k", "2", "--puzzle", "0")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    (model,) = told["models"]
    assert model["layers"] == [2, 4, 5, 6]
    assert (model["through"], model["verbalizers"]) == ("logit lens", None)
    (picture,) = told["pictures"]
    assert (picture["size"], picture["reference"]) == ([32, 8], "three")
    (answers,) = picture["answers"]
    assert [row["layer"] for row in answers["layers"]] == [2, 4, 5, 6]
    last = answers["layers"][-1]
    assert last["agrees"]
    assert len(last["tokens"]) <= 3
    assert all(0 < token["probability"] <= 1 for token in last["tokens"])
    assert [len(row["candidates"]) for row in answers["candidates"]] == [2] * 4
    assert answers["candidates"][-1]["candidates"][0]["id"] == last["tokens"][0]["id"]
    assert answers["layer_tokens"] < answers["separate_layer_tokens"]


def test_pictures_from_files_and_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("red.png").write_bytes(png())
    done = small("red.png", "-", "--prompt", "What is in cell one?", stdin=png())
    assert done.exit_code == 0, done.output
    assert "red.png, 32 x 8" in done.stdout
    assert "standard input, 32 x 8" in done.stdout
    assert done.stdout.count("question: What is in cell one?") == 2
    tables = [part.split("question")[1] for part in done.stdout.split(", 32 x 8")[1:]]
    assert tables[0].split("demo/small: ")[0].strip() == tables[1].split("demo/small: ")[0].strip()
    assert "right answer" not in done.stdout


def test_two_models_side_by_side() -> None:
    done = small("--compare", "large", "--layers", "3", "--puzzle", "2", "--tokens", "2")
    assert done.exit_code == 0, done.output
    assert re.search(r"layer +demo/small +log p +entropy +final +layer +demo/large", done.stdout)
    assert re.search(r"^ *6 .* [=≠] +10 ", done.stdout, flags=re.MULTILINE)
    assert "demo/large: likeliest tokens at place 2 of its final answer" in done.stdout


def wrong(words: list[str], code: int, sentence: str, stdin: bytes | None = None) -> None:
    done = vlsi(*words, stdin=stdin)
    assert done.exit_code == code, done.output
    assert re.search(sentence, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def model_without(name: str) -> str:
    folder = shutil.copytree(SMALL, Path("changed"))
    (folder / name).unlink()
    return str(folder)


def test_wrong_input_is_one_sentence_with_its_code() -> None:
    Path("words.png").write_text("no picture")
    Path("empty").mkdir()
    wrong(["words.png"], 3, "words.png cannot be used: not an image in a supported format")
    wrong(["nowhere.png"], 3, "there is no picture nowhere.png")
    wrong(["empty"], 3, "the folder empty holds no pictures")
    wrong(["-"], 3, "standard input cannot be used", stdin=b"")
    wrong(["--layers", "all"], 2, "--layers all: 'all' is not a decoder layer")
    wrong(["--model", "demo/small", "--layers", "7"], 2, "'demo/small' has 6 decoder layers")
    wrong(["--html", "empty"], 2, "--html empty is a folder")
    Path("a-file").touch()
    wrong(["--html", "a-file/page.html"], 6, "a-file/page.html cannot be written")
    wrong(["--logit-lens", "--verbalizers", "x"], 2, "exclude each other")
    wrong(["--model", "demo/small", "--verbalizers", "empty"], 7, "no verbalizers in empty")
    wrong(["--model", "qwen2-vl-2c"], 2, "no model is named 'qwen2-vl-2c'")
    wrong(["--model", "Some/Model"], 4, "'Some/Model' is not a local folder, is not in the cache")
    wrong(["--model", "./nowhere"], 4, "there is no folder './nowhere'")


def test_models_that_cannot_be_asked() -> None:
    wrong(["--model", model_without("chat_template.jinja")], 4, "'changed' has no chat template")
    config = json.loads((SMALL / "config.json").read_text())
    Path("text").mkdir()
    Path("text/config.json").write_text(
        json.dumps({"model_type": "qwen2", **config["text_config"]} | {"model_type": "qwen2"})
    )
    wrong(["--model", "./text"], 4, r"'./text' is a text-only model \('qwen2'\): it cannot see images")


def test_errors_are_json_too() -> None:
    done = vlsi("nowhere.png", "--json")
    assert done.exit_code == 3
    told = json.loads(done.stdout)["error"]
    assert (told["type"], told["exit_code"]) == ("DataError", 3)


def test_a_text_cannot_move_the_cursor() -> None:
    assert printable("a\nb\x1b[31mc ½ 日本") == "a\\nb\\x1b[31mc ½ 日本"


def test_help_names_what_it_is_for() -> None:
    done = vlsi("--help")
    assert done.exit_code == 0
    for word in ("--model", "--compare", "--verbalizers", "--tokens", "--html", "--json"):
        assert word in done.stdout
