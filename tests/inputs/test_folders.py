"""Model folders, verbalizers and caches that nobody vouches for: refused in a sentence, and no code of theirs runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.inputs.kit import ends_well, vlsi
from tests.tiny import tiny_folder


class Boom:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("boom"),)


def edited(name: str, **values: Any) -> Callable[[Path], None]:
    """A JSON file of the folder with other values; None takes a key away."""

    def edit(folder: Path) -> None:
        file = folder / name
        tree = json.loads(file.read_text("utf-8"))
        for key, value in values.items():
            *above, last = key.split("__")
            here = tree
            for part in above:
                here = here[part]
            here[last] = value
        file.write_text(json.dumps(tree))

    return edit


def written(name: str, content: bytes | str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def removed(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def header(tree: Any, length: int | None = None, tail: bytes = b"") -> Callable[[Path], None]:
    """Weights with another header."""
    text = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    return written(
        "model.safetensors", struct.pack("<Q", len(text) if length is None else length) + text + tail
    )


def index(tree: Any) -> Callable[[Path], None]:
    """Weights in pieces, named by an index."""

    def make(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        text = tree if isinstance(tree, str) else json.dumps(tree)
        (folder / "model.safetensors.index.json").write_text(text)

    return make


def pickled(name: str, *, keep: bool = False) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        if not keep:
            (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Boom()))

    return make


def remote(folder: Path) -> None:
    """A folder that asks to run its own code."""
    code = "from pathlib import Path\nPath('boom').touch()\n"
    for name in ("modeling.py", "configuration.py", "tokenization.py", "processing.py"):
        (folder / name).write_text(code)
    edited(
        "config.json", auto_map={"AutoConfig": "configuration.C", "AutoModelForImageTextToText": "modeling.M"}
    )(folder)
    edited("tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization.T", None]})(folder)
    edited("preprocessor_config.json", auto_map={"AutoImageProcessor": "processing.P"})(folder)


def truncated(name: str, share: float) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return cut


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def adapter(folder: Path) -> None:
    emptied(folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    shutil.copyfile(folder.parent / "good" / "model.safetensors", folder / "adapter_model.safetensors")


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

#: How a good folder is spoiled -> whether the folder may still be used.
FOLDERS: dict[str, tuple[Callable[[Path], None], bool]] = {
    "nothing in it": (emptied, False),
    "adapters only": (adapter, False),
    "no config": (removed("config.json"), False),
    "config: empty": (written("config.json", ""), False),
    "config: a list": (written("config.json", "[]"), False),
    "config: no UTF-8": (written("config.json", b"\xff\xfe"), False),
    "config: brackets": (written("config.json", "[" * 100_000), False),
    "config: no family": (edited("config.json", model_type=None), False),
    "config: a family that is a list": (edited("config.json", model_type=["qwen2_vl"]), False),
    "config: a text model": (edited("config.json", model_type="llama"), False),
    "config: another family": (edited("config.json", model_type="llava_onevision"), False),
    "config: an unknown family": (edited("config.json", model_type="nobody"), False),
    "config: no layers": (edited("config.json", text_config__num_hidden_layers=0), False),
    "config: -1 layers": (edited("config.json", text_config__num_hidden_layers=-1), False),
    "config: more layers than weights": (edited("config.json", text_config__num_hidden_layers=9), False),
    "config: layers in words": (edited("config.json", text_config__num_hidden_layers="four"), False),
    "config: another width": (edited("config.json", text_config__hidden_size=48), False),
    "config: no heads": (edited("config.json", text_config__num_attention_heads=0), False),
    "config: a vocabulary of 3": (edited("config.json", text_config__vocab_size=3), False),
    "config: an unknown activation": (edited("config.json", text_config__hidden_act="nobody"), False),
    "config: text settings that are a list": (edited("config.json", text_config=[]), False),
    "config: a dtype of nobody": (edited("config.json", dtype="float7"), False),
    "no weights": (removed("model.safetensors"), False),
    "weights: empty": (written("model.safetensors", b""), False),
    "weights: eight bytes": (written("model.safetensors", b"\0" * 8), False),
    "weights: cut": (truncated("model.safetensors", 0.7), False),
    "weights: a header of 2^63 bytes": (header({}, 2**63), False),
    "weights: a header of 90 MB that is not there": (header({}, 90_000_000), False),
    "weights: a header that is no JSON": (header(b"{" + b"x" * 99), False),
    "weights: a header of brackets": (header(b"{" + b"[" * 100_000), False),
    "weights: a header that is a list": (header([1]), False),
    "weights: no tensors": (header({}), False),
    "weights: offsets behind the end": (header({"a": TENSOR | {"data_offsets": [0, 10**15]}}), False),
    "weights: offsets below zero": (header({"a": TENSOR | {"data_offsets": [-8, 0]}}, tail=b"\0" * 8), False),
    "weights: tensors over each other": (header({"a": TENSOR, "b": TENSOR}, tail=b"\0" * 8), False),
    "weights: a shape of 2^60": (header({"a": TENSOR | {"shape": [2**60]}}, tail=b"\0" * 8), False),
    "weights: an unknown dtype": (header({"a": TENSOR | {"dtype": "F7"}}, tail=b"\0" * 8), False),
    "weights: of another model": (header({"a": TENSOR}, tail=b"\0" * 8), False),
    "weights: a pickle under their name": (written("model.safetensors", pickle.dumps(Boom())), False),
    "weights: a pickle alone": (pickled("pytorch_model.bin"), False),
    "weights: a checkpoint of torch alone": (pickled("model.pt"), False),
    "weights: a pickle beside them": (pickled("pytorch_model.bin", keep=True), True),
    "index: a piece that is not there": (index({"weight_map": {"a": "model-00002-of-00002.safetensors"}}), False),
    "index: a piece outside": (index({"weight_map": {"a": "../../secret.safetensors"}}), False),
    "index: an absolute piece": (index({"weight_map": {"a": "/etc/passwd"}}), False),
    "index: no JSON": (index("{"), False),
    "index: a list": (index([]), False),
    "index: pieces that are numbers": (index({"weight_map": {"a": 3}}), False),
    "index: no map": (index({}), False),
    "config: another image token": (edited("config.json", image_token_id=5), False),
    "no tokenizer": (removed("tokenizer.json"), False),
    "tokenizer: empty": (written("tokenizer.json", ""), False),
    "tokenizer: a list": (written("tokenizer.json", "[]"), False),
    "tokenizer: no model": (written("tokenizer.json", "{}"), False),
    "tokenizer: cut": (truncated("tokenizer.json", 0.5), False),
    "tokenizer settings: a list": (written("tokenizer_config.json", "[]"), False),
    "no image settings": (removed("preprocessor_config.json"), False),
    "image settings: empty": (written("preprocessor_config.json", ""), False),
    "image settings: patches of 0": (edited("preprocessor_config.json", patch_size=0), False),
    "image settings: patches in words": (edited("preprocessor_config.json", patch_size="big"), False),
    "image settings: other patches": (edited("preprocessor_config.json", patch_size=7), False),
    "image settings: no size": (edited("preprocessor_config.json", size={}), False),
    "no template": (removed("chat_template.jinja"), False),
    "template: half a tag": (written("chat_template.jinja", "{% for m in messages"), False),
    "template: nothing": (written("chat_template.jinja", ""), False),
    "template: writes nothing": (written("chat_template.jinja", "{{ '' }}"), False),
    "template: divides by zero": (written("chat_template.jinja", "{{ 1 // 0 }}"), False),
    "template: a range without end": (written("chat_template.jinja", "{{ range(10 ** 12) | list }}"), False),
    "template: reaches out": (written("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"), False),
    "template: reads a file": (written("chat_template.jinja", "{% include '/etc/passwd' %}"), False),
    "generation settings: a list": (written("generation_config.json", "[]"), False),
    "generation settings: no JSON": (written("generation_config.json", "{"), True),
    "code of its own": (remote, True),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    above = tmp_path_factory.mktemp("folders")
    Image.new("RGB", (32, 32), "red").save(above / "a.png")
    return tiny_folder("qwen2_vl", above / "good", layers=2, hidden=32)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.mark.parametrize("name", FOLDERS)
def test_model_folders(good: Path, place: Path, name: str) -> None:
    spoil, usable = FOLDERS[name]
    folder = good.parent / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    spoil(folder)
    done = vlsi(
        "verbalize", good.parent / "a.png", "--model", folder, "--logit-lens", "--max-new-tokens", 2, "--json"
    )
    said = ends_well(done, 0, 2, 3, 4, 7)
    assert not [*place.rglob("boom"), *folder.rglob("boom")], "code of the folder was run"
    assert bool(said) != usable, said or "it was used"
    assert os.listdir(place) in ([], ["hub"]), "something was left behind"


@pytest.mark.parametrize("command", ["cache info", "cache verify", "eval compare"])
@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, pickle.dumps(Boom())]
)
def test_stored_files(place: Path, command: str, content: bytes) -> None:
    for name in ("manifest.json", "report.json"):
        (place / name).write_bytes(content)
    words = [*command.split(), ".", *(["."] if command == "eval compare" else [])]
    assert ends_well(vlsi(*words), 2, 3, 6, 7, 11)
    assert not (place / "boom").exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"[" * 100_000, pickle.dumps(Boom())])
def test_verbalizers(good: Path, place: Path, content: bytes) -> None:
    said = place / "said"
    said.mkdir()
    for name in ("manifest.json", "verbalizers.safetensors"):
        (said / name).write_bytes(content)
    done = vlsi("verbalize", good.parent / "a.png", "--model", good, "--verbalizers", said)
    assert ends_well(done, 4, 7)
    assert not (place / "boom").exists()
