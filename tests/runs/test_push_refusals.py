"""What `vlsi push` refuses before anything is sent, and how a push that fails goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hub_client import vlsi
from tests.hub_server import HubServer

# ---------------------------------------------------------------- refused, and nothing sent


def _adapter(model: Path) -> None:
    (model / "config.json").unlink()
    (model / "model.safetensors").unlink()
    (model / "adapter_config.json").write_text("{}", encoding="utf-8")
    save_file({"a": torch.zeros(1)}, model / "adapter_model.safetensors")


def _not_finite(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    name = next(name for name in tensors if name.endswith("input_layernorm.weight"))
    save_file(
        tensors | {name: tensors[name] * float("nan")}, model / "model.safetensors", metadata={"format": "pt"}
    )


def _path_in_config(model: Path) -> None:
    config = json.loads((model / "config.json").read_text("utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"_name_or_path": str(model)}), encoding="utf-8")


def _lacking(*names: str) -> object:
    return lambda model: [(model / name).unlink() for name in names]


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (_adapter, 4, "holds an adapter (adapter_config.json), not a model that loads by itself"),
        (_lacking("config.json"), 4, "is neither a run nor a model"),
        (_lacking("model.safetensors"), 4, "has no weights"),
        (lambda model: (model / "export_report.json").touch(), 4, "holds exported graphs, not the checkpoint"),
        (_lacking("preprocessor_config.json"), 4, "the processor of"),
        (_lacking("tokenizer.json", "tokenizer_config.json"), 4, "has no tokenizer"),
        (_lacking("chat_template.jinja"), 4, "has no chat template"),
        (lambda model: (model / "model.safetensors").write_bytes(b"\0" * 100), 4, "cannot be loaded"),
        (lambda model: shutil.copy(model / "model.safetensors", model / "m2.safetensors"), 4, "holds m2.safetensors"),
        (_not_finite, 4, "answers with numbers that are not finite"),
        (lambda model: (model / "optimizer.pt").touch(), 9, "the state of an optimizer"),
        (lambda model: torch.save({}, model / "pytorch_model.bin"), 9, "a pickle"),
        (_path_in_config, 9, "a path of this machine under the key '_name_or_path'"),
    ],
)  # fmt: skip
def test_what_must_not_be_pushed(model: Path, hub: HubServer, spoil: object, code: int, said: str) -> None:
    spoil(model)  # type: ignore[operator]
    done = vlsi("push", model, "--repo", "me/thing")
    assert done.exit_code == code, done.output
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert all(line.startswith("GET ") for line in hub.requests)


def test_a_dry_run_refuses_the_same(model: Path) -> None:
    (model / "optimizer.pt").touch()
    done = vlsi("push", model, "--repo", "me/thing", "--dry-run")
    assert (done.exit_code, done.stdout) == (9, "")
    assert "the state of an optimizer" in done.stderr


def test_a_run_that_is_not_finished(whole: Path, hub: HubServer, tmp_path: Path) -> None:
    part = Path(shutil.copytree(whole, tmp_path / "part"))
    progress = json.loads((part / "progress.json").read_text("utf-8"))
    (part / "progress.json").write_text(json.dumps(progress | {"student": False}), encoding="utf-8")
    done = vlsi("push", part, "--repo", "me/thing")
    assert done.exit_code == 7
    assert f"the run {part} has not come to its end: it has no student yet" in done.stderr
    assert f"hint: go on with it: vlsi distill --resume {part}" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("nowhere", "--repo", "me/thing"), 4, "there is no folder 'nowhere'"),
        (
            ("demo/small", "--repo", "thing"),
            2,
            "'thing' is not the name of a repository: it must be owner/name",
        ),
        (("demo/small", "--repo", "me/a--b"), 2, "the hub does not allow the repository name 'me/a--b'"),
        (("demo/small", "--repo", "them/thing"), 9, "may not write to repositories of 'them'"),
        (("demo/small", "--repo", "me/thing", "--with-verbalizers"), 2, "is a model and not a run"),
        (("demo/small", "--repo", "me/thing", "--create-pr", "--tag", "v1"), 2, "were both given"),
        (("demo/small",), 2, "--repo"),
    ],
)
def test_bad_words(hub: HubServer, words: tuple[str, ...], code: int, said: str) -> None:
    done = vlsi("push", *words)
    assert done.exit_code == code, done.output
    assert said in done.stderr
    assert done.stdout == ""
    assert all(line.startswith("GET ") for line in hub.requests)


# ---------------------------------------------------------------- failures and going on


def test_a_failed_push_prints_the_command_that_repeats_it(whole: Path, hub: HubServer) -> None:
    hub.fail("/commit/", 503)
    words = ("push", str(whole), "--repo", "me/thing", "--private", "--branch", "next", "--with-metrics")
    done = vlsi("-v", *words)
    assert done.exit_code == 9
    assert f"hint: repeat it with: vlsi {' '.join(words)}" in done.stderr
    assert hub.token not in done.output
    assert set(hub.files("me/thing", "next")) == {".gitattributes"}
    hub.failures.clear()
    assert vlsi(*words).exit_code == 0
    assert "model.safetensors" in hub.files("me/thing", "next")


def test_stopped_by_hand(whole: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", stop)
    done = vlsi("push", whole, "--repo", "me/thing")
    assert done.exit_code == 130
    assert "stopped while sending; me/thing shows nothing of it" in done.stderr
    assert f"hint: repeat it with: vlsi push {whole} --repo me/thing" in done.stderr
