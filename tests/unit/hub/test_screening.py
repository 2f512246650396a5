"""What must not travel is named; what looks like it and is harmless passes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlsi_cli.config.loading import Resolved, resolve
from vlsi_cli.engine.hub.contents import Item, portable, screen
from vlsi_cli.engine.hub.screening import is_secret
from vlsi_cli.engine.runs.tracking import shown_configuration
from vlsi_cli.errors import HubError

TOKEN = "hf_" + "a1B2c3D4e5" * 4


def refusal(*items: Item, secrets: tuple[str, ...] = ()) -> str:
    with pytest.raises(HubError) as error:
        screen(items, secrets)
    assert error.value.exit_code == 9
    return error.value.message


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "optimizer.safetensors", "scheduler.pt", "rng_state_0.pth", "trainer_state.json",
             "training_args.bin", "state.safetensors", "state.json", "__0_0.distcp"],
)  # fmt: skip
def test_optimizer_state(name: str) -> None:
    assert "is the state of an optimizer or a trainer" in refusal(Item(f"checkpoint-1/{name}", b"{}"))


def test_pickles_by_name_and_by_content(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights")
    (tmp_path / "weights2").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    for name in ("weights", "weights2"):
        assert "pickle" in refusal(Item(name, tmp_path / name))
    assert "pickle" in refusal(Item("pytorch_model.bin", b"anything"))


def test_safetensors_are_no_pickles(tmp_path: Path) -> None:
    """Their first byte is the length of a header, which may be that of a pickle's mark."""
    for extra in range(0, 256, 8):
        save_file({"a": torch.zeros(2)}, tmp_path / "m.safetensors", metadata={"format": "p" * (1 + extra)})
        screen([Item("m.safetensors", tmp_path / "m.safetensors")])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("config.json", {"_name_or_path": "/data/models/qwen"}, "a path of this machine under the key '_name_or_path'"),
        ("config.json", {"a": {"b": ["~/models/x"]}}, "a path of this machine under the key 'b'"),
        ("config.json", {"cache": "C:\\models\\x"}, "a path of this machine under the key 'cache'"),
        ("config.json", {"cache": "file:///srv/models/x"}, "a path of this machine"),
        ("tokenizer_config.json", {"api_key": "x"}, "a secret under the key 'api_key'"),
        ("tokenizer.json", {"note": TOKEN}, "an access token"),
        ("notes.txt", TOKEN, "an access token"),
        ("LICENSE", "-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("config.yaml", "a: /srv/data/x.json", "a path of this machine under the key 'a'"),
        ("metrics.jsonl", '{"a": 1}\n{"path": "/srv/data/x"}\n', "a path of this machine under the key 'path'"),
        ("said.jsonl", '{"a": "one\u2028two",\r"b": 1}\r\n{"path": "/srv/x"}', "a path of this machine under"),
        ("config.json", '{"a": ', "cannot be parsed"),
        ("id_rsa", "x", "has the name of a file that keeps secrets"),
        ("prod.env", "x", "has the name of a file that keeps secrets"),
    ],
)  # fmt: skip
def test_paths_and_secrets(name: str, value: object, said: str) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    assert said in refusal(Item(name, text.encode()))


def test_the_token_in_use_travels_in_no_file(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "m.safetensors", metadata={"note": "an odd token"})
    item = Item("m.safetensors", tmp_path / "m.safetensors")
    screen([item])
    assert "an access token" in refusal(item, secrets=("an odd token",))


def test_paths_in_the_notes_of_safetensors(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "m.safetensors", metadata={"base": "/srv/models/base"})
    assert "under the key 'base'" in refusal(Item("m.safetensors", tmp_path / "m.safetensors"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokenizer_config.json", {"unk_token": "/", "eos_token": "</s>", "x": "/think", "pad": "</a> / <b>"}),
        ("tokenizer.json", {"model": {"vocab": {"/usr/lib/": 1}}, "merges": ["/usr /lib", "/usr/lib/x"]}),
        ("config.json", {"_name_or_path": "Qwen/Qwen2-VL-2B", "auto_map": {"A": "x.B"}, "url": "https://x.org/a/b"}),
        ("recipe.yaml", "a: train.jsonl\nb: ../data/x.json"),
        ("weights.onnx", "PK is not at the start"),
    ],
)  # fmt: skip
def test_what_is_harmless_passes(name: str, value: object) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    screen([Item(name, text.encode())])


def test_several_files_are_all_named() -> None:
    said = refusal(Item("a/optimizer.pt", b""), Item("good.txt", b"x"), Item("b.bin", b""))
    assert said.splitlines()[0] == "2 files must not be sent:"
    assert "a/optimizer.pt" in said
    assert "b.bin" in said
    assert "good" not in said


def test_portable_keeps_names_only() -> None:
    value = {"id": "/srv/models/qwen/", "list": ["C:\\data\\x.json", "owner/name"], "n": 3, "none": None}
    assert portable(value) == {"id": "qwen", "list": ["x.json", "owner/name"], "n": 3, "none": None}


@pytest.mark.parametrize(
    ("key", "value", "hidden"),
    [
        ("api_key", "x", True),
        ("token", "", False),
        ("id", "hf_" + "a" * 34, True),
        ("id", "https://me:word@example.org/data.json", True),
        ("id", "https://example.org:8080/data@v2", False),
        ("id", "Qwen/Qwen2-VL-2B-Instruct", False),
        ("max_new_tokens", "32", False),
    ],
)
def test_values_of_a_configuration_that_are_not_shown(key: str, value: str, hidden: bool) -> None:
    assert is_secret(key, value) is hidden


def test_a_tracker_is_told_the_configuration_without_them() -> None:
    plain = resolve("demo", ["data.sources=[{kind: huggingface, id: me/data}]"])
    config = plain.config.model_copy(update={"name": "hf_" + "b" * 34})
    resolved = Resolved(config, plain.origins, plain.recipe)
    shown = shown_configuration(resolved)
    assert (shown["name"], shown["data.sources.0.id"]) == ("(left out)", "me/data")
    assert set(shown) == {key for key, _, _ in resolved.leaves()}
