"""From a model to other people's runtimes: exported, checked, pushed, fetched again, and answered as torch answers.

The programs that answer are those which the documentation shows. transformers.js runs where `VLSI_NODE_MODULES` names
a `node_modules` folder made from `docs/examples/package.json`; onnxruntime-genai runs where it is installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests import needs

needs.onnx()

from huggingface_hub import ModelCard, snapshot_download  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from tests.hub_client import use_hub, vlsi  # noqa: E402
from tests.hub_server import HubServer  # noqa: E402
from tests.invariants.tree import ROOT  # noqa: E402
from tests.tiny import tiny_folder  # noqa: E402
from vlsi_cli.engine.backbones import processors  # noqa: E402
from vlsi_cli.engine.backbones.load import load_backbone  # noqa: E402
from vlsi_cli.engine.data.patterns import pattern_record  # noqa: E402
from vlsi_cli.engine.data.records import ImageRef, Message, Record  # noqa: E402
from vlsi_cli.engine.data.sources import PatternsSource  # noqa: E402
from vlsi_cli.engine.data.template import ChatEncoder  # noqa: E402
from vlsi_cli.engine.evaluation import answer_prompts  # noqa: E402
from vlsi_cli.engine.runs import export as engine  # noqa: E402

EXAMPLES = ROOT / "docs/examples"
FORMS: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "int8": ("--quantize", "int8", "--questions", "4"),
    "genai": ("--layout", "ort-genai"),
}
#: Held-out puzzles with long answers. torch is surest of the first, so that eight bits give the same text: between its
#: two likeliest tokens there are 1.5 nats at least. Each runtime resizes in its own way, but none of these pictures.
LONG, WIDE = 18, 12


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`demo/small` in every form, by the command; graphs of one layout are traced once."""
    folder, traced = tmp_path_factory.mktemp("exported"), {}
    trace = engine.trace_all

    def once(backbone: Any, layout: Any, **options: Any) -> dict[str, Any]:
        if layout.name not in traced:
            traced[layout.name] = trace(backbone, layout, **options)
        # writing changes where a graph keeps its weights
        return {stem: graph.clone() for stem, graph in traced[layout.name].items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "trace_all", once)
        for name, words in FORMS.items():
            done = vlsi("export", "demo/small", "--output", folder / name, *words)
            assert done.exit_code == 0, done.output
    return {name: folder / name for name in FORMS}


@pytest.fixture(scope="module")
def fetched(exported: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a hub over HTTP gives back of the model and its exports, after a push through LFS."""
    place = tmp_path_factory.mktemp("fetched")
    with HubServer(lfs_from=100_000) as hub, pytest.MonkeyPatch.context() as patch:
        use_hub(hub, patch, tmp_path_factory.mktemp("cache"))
        along = [word for folder in exported.values() for word in ("--with-onnx", folder)]
        done = vlsi("push", "demo/small", "--repo", "me/small", *along)
        assert done.exit_code == 0, done.output
        assert hub.count("PUT /storage/") > 0
        snapshot_download("me/small", local_dir=place)
    return place


def test_what_was_pushed_comes_back(exported: dict[str, Path], fetched: Path) -> None:
    for name, folder in exported.items():
        files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        back = fetched / "onnx" / name
        assert files == {path.relative_to(back) for path in back.rglob("*") if path.is_file()}
        for file in files:
            assert (back / file).read_bytes() == (folder / file).read_bytes(), file
    card = ModelCard.load(fetched / "README.md").text
    assert all(f"hf download me/small --include 'onnx/{name}/*'" in card for name in exported)
    assert vlsi("export", "--check", fetched / "onnx" / "fp32").exit_code == 0  # its report knows the model


@pytest.fixture(scope="module")
def torchs_answers() -> dict[int, str]:
    backbone = load_backbone("demo/small")
    encoder, source = ChatEncoder(backbone.processor), PatternsSource("test", size=LONG + 1)
    prompts = [encoder.encode_prompt(source.read(number)) for number in (LONG, WIDE)]
    end = int(backbone.tokenizer.eos_token_id)
    found = answer_prompts(backbone, prompts, pad_id=encoder.pad_id, end_id=end, max_new_tokens=64)
    assert all(len(answer.prediction) > 30 for answer in found), "short answers would compare little"
    return {number: answer.prediction for number, answer in zip((LONG, WIDE), found, strict=True)}


@pytest.fixture
def asked(tmp_path: Path) -> Callable[[int], tuple[Path, str]]:
    """A puzzle's picture as a file, and its question."""

    def write(number: int) -> tuple[Path, str]:
        puzzle, path = pattern_record("test", number), tmp_path / f"{number}.png"
        puzzle.image.save(path)
        return path, puzzle.turns[0].text

    return write


Asked = Callable[[int], tuple[Path, str]]
both = pytest.mark.parametrize(("form", "puzzle"), [("fp32", LONG), ("fp32", WIDE), ("int8", LONG)])


def run(*command: str | Path, cwd: Path | None = None) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@both
def test_python(form: str, puzzle: int, fetched: Path, asked: Asked, torchs_answers: dict[int, str]) -> None:
    said = run(sys.executable, EXAMPLES / "answer.py", fetched / "onnx" / form, *asked(puzzle))
    assert said == torchs_answers[puzzle]


@both
def test_transformers_js(
    form: str, puzzle: int, fetched: Path, asked: Asked, torchs_answers: dict[int, str], tmp_path: Path
) -> None:
    node, modules = needs.node()
    (tmp_path / "node_modules").symlink_to(modules)
    script = shutil.copy(EXAMPLES / "answer.mjs", tmp_path)
    said = run(node, script, fetched / "onnx" / form, *asked(puzzle), cwd=tmp_path)
    assert said == torchs_answers[puzzle]


@pytest.mark.parametrize("puzzle", [LONG, WIDE])
def test_onnxruntime_genai(puzzle: int, fetched: Path, asked: Asked, torchs_answers: dict[int, str]) -> None:
    needs.genai()
    said = run(sys.executable, EXAMPLES / "answer_genai.py", fetched / "onnx" / "genai", *asked(puzzle))
    assert said == torchs_answers[puzzle]


QUESTION = "What is in the picture?"


def outspoken(family: str, folder: Path, louder: str) -> Path:
    """A random model that shows more of what it sees: its answers are letters only, ``louder`` weights weigh more."""
    tiny_folder(family, folder, layers=2, hidden=64, tied=False, seed=1)
    weights = load_file(folder / "model.safetensors")
    words = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    letters = [
        number for word, number in words.items() if word.replace("Ġ", "a").isalpha() and word.isascii()
    ]
    mute = torch.ones(len(weights["lm_head.weight"]), dtype=torch.bool)
    mute[letters] = False
    weights["lm_head.weight"][mute] = 0.0
    loud = [name for name in weights if louder in name]
    assert loud
    for name in loud:
        weights[name] *= 8
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def torchs(model: Path, pictures: list[Path]) -> dict[str, str]:
    """torch's answers about pictures, which are unlike one another."""
    backbone = load_backbone(str(model))
    encoder = ChatEncoder(backbone.processor)
    talk = (Message("user", (0, QUESTION)), Message("assistant", ("-",)))
    prompts = [
        encoder.encode_prompt(Record(path.stem, talk, (ImageRef(picture=Image.open(path)),)))
        for path in pictures
    ]
    end = int(backbone.tokenizer.eos_token_id)
    found = answer_prompts(backbone, prompts, pad_id=encoder.pad_id, end_id=end, max_new_tokens=64)
    answers = {path.stem: answer.prediction for path, answer in zip(pictures, found, strict=True)}
    assert len({*answers.values()}) == len(pictures), "other pictures, other answers"
    return answers


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with an export of Idefics3 and pictures, and torch's answer to each picture.

    Resized, a picture of stripes along the side that changes is what it was, with any filter: each runtime sees the
    same pixels. The third picture is of any size.
    """
    place, noise = tmp_path_factory.mktemp("tiled"), np.random.default_rng(0)
    for name, size, (high, wide) in (
        ("wide", (48, 16), (16, 1)),
        ("high", (16, 48), (1, 16)),
        ("free", (100, 70), (70, 100)),
    ):
        pixels = noise.integers(0, 256, (high, wide, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(place / f"{name}.png")
    model = outspoken("idefics3", place / "model", "modality_projection.proj")
    path = model / "preprocessor_config.json"
    settings = json.loads(path.read_text("utf-8")) | {"size": {"longest_edge": 48}}
    path.write_text(json.dumps(settings), encoding="utf-8")
    done = vlsi("export", model, "--output", place / "fp32")
    assert done.exit_code == 0, done.output
    return place, torchs(model, sorted(place.glob("*.png")))


@pytest.mark.parametrize(
    ("family", "mark"), [("smolvlm", "<image>"), ("idefics3", "<image>"), ("internvl", "<IMG_CONTEXT>")]
)
def test_the_example_cuts_as_the_processor_does(
    family: str, mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processors, "torchvision_works", lambda: False)  # it resizes otherwise than PIL
    example: Any = ModuleType("answer")
    SourceFileLoader("answer", str(EXAMPLES / "answer.py")).exec_module(example)
    processor = processors.load_processor(tiny_folder(family, tmp_path, layers=1, hidden=16))
    images, noise = processor.image_processor, np.random.default_rng(0)
    images.size = images.size if family == "internvl" else {"longest_edge": 48}
    settings = json.loads(images.to_json_string())
    for width, high in ((96, 64), (140, 252), (48, 16), (17, 300), (301, 20), (33, 33), (5, 3)):
        picture = Image.fromarray(noise.integers(0, 256, (high, width, 3), dtype=np.uint8))
        asked = {"images_kwargs": {"return_tensors": "np"}, "return_text_replacement_offsets": True}
        expected = processor(text=[f"a{mark}b"], images=[[picture]], **asked)
        if family == "internvl":
            tiles = example.tiles_of(picture, settings)
            words = f"<img>{mark * len(tiles) * processor.image_seq_length}</img>"
        else:
            tiles, rows, columns = example.nested_tiles_of(picture, settings)
            words = example.words_for(rows, columns, processor.image_seq_len)
        np.testing.assert_allclose(tiles, expected["pixel_values"], atol=1e-6)
        assert words == expected["text_replacement_offsets"][0][0]["replacement"]


@pytest.mark.parametrize("picture", ["wide", "free"])
def test_python_cuts_pictures_into_tiles(picture: str, tiled: tuple[Path, dict[str, str]]) -> None:
    place, torchs = tiled
    said = run(sys.executable, EXAMPLES / "answer.py", place / "fp32", place / f"{picture}.png", QUESTION)
    assert said == torchs[picture]


@pytest.mark.parametrize("picture", ["wide", "high"])
def test_transformers_js_cuts_pictures_into_tiles(
    picture: str, tiled: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    (place, torchs), (node, modules) = tiled, needs.node()
    (tmp_path / "node_modules").symlink_to(modules)
    script = shutil.copy(EXAMPLES / "answer.mjs", tmp_path)
    said = run(node, script, place / "fp32", place / f"{picture}.png", QUESTION, cwd=tmp_path)
    assert said == torchs[picture]


def second_stack(model: Path) -> None:
    """Give pictures features for the second decoder layer too, unlike those for the first."""
    path = model / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["vision_config"]["deepstack_visual_indexes"] = [0, 1]
    path.write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(model / "model.safetensors")
    first = "deepstack_merger_list.0."
    more = {
        name.replace(first, "deepstack_merger_list.1."): -0.5 * weight
        for name, weight in weights.items()
        if first in name
    }
    save_file(weights | more, model / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Qwen3-VL in both layouts, and torch's answers to pictures that no runtime has to resize.

    What the first decoder layers get of a picture besides its tokens counts: without it the answers are others.
    """
    place, noise = tmp_path_factory.mktemp("stacked"), np.random.default_rng(0)
    for name, size in (("wide", (32, 24)), ("high", (16, 40))):
        Image.fromarray(noise.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(place / f"{name}.png")
    model = outspoken("qwen3_vl", place / "model", "deepstack_merger_list")
    second_stack(model)
    for layout in ("transformers.js", "ort-genai"):
        done = vlsi("export", model, "--output", place / layout, "--layout", layout)
        assert done.exit_code == 0, done.output
    pictures = sorted(place.glob("*.png"))
    answers = torchs(model, pictures)
    weights = load_file(model / "model.safetensors")
    weights |= {name: 0 * weight for name, weight in weights.items() if "deepstack" in name}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    blind = torchs(model, pictures)
    assert all(answers[name] != blind[name] for name in answers)
    return place, answers


@pytest.mark.parametrize("picture", ["wide", "high"])
@pytest.mark.parametrize("runtime", ["python", "transformers.js", "ort-genai"])
def test_all_that_a_picture_of_qwen3_vl_says(
    runtime: str, picture: str, stacked: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    place, torchs = stacked
    asked = (place / f"{picture}.png", QUESTION)
    if runtime == "python":
        said = run(sys.executable, EXAMPLES / "answer.py", place / "transformers.js", *asked)
    elif runtime == "transformers.js":
        node, modules = needs.node()
        (tmp_path / "node_modules").symlink_to(modules)
        script = shutil.copy(EXAMPLES / "answer.mjs", tmp_path)
        said = run(node, script, place / "transformers.js", *asked, cwd=tmp_path)
    else:
        needs.genai()
        said = run(sys.executable, EXAMPLES / "answer_genai.py", place / "ort-genai", *asked)
        said = said[: len(torchs[picture])]  # it writes on where torch was told to stop
    assert said == torchs[picture]
