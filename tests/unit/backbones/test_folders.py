"""Sets of verbalizers by folder, by run and by hub id; and a hub model is found again without the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_client import use_hub
from tests.hub_server import HubServer
from tests.hub_store import Repo
from vlsi_cli.config.missing import verbalizers_need
from vlsi_cli.engine.backbones.folders import resolve_folder, resolve_verbalizers
from vlsi_cli.errors import ModelError

SET = {"verbalizers/large/manifest.json": b"{}", "verbalizers/large/verbalizers.safetensors": b"x"}
MODEL = {"config.json": b"{}", "model.safetensors": b"x", "README.md": b"# x", "onnx/a/config.json": b"{}"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        use_hub(server, monkeypatch, tmp_path / "cache")
        for name, files in (("me/both", MODEL | SET), ("me/model", MODEL)):
            server.repos[name] = Repo()
            server.repos[name].commit(files, "main")
        yield server


def offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_set_by_its_folder_and_by_its_run(tmp_path: Path) -> None:
    inside = tmp_path / "run" / "verbalizers" / "large"
    inside.mkdir(parents=True)
    assert resolve_verbalizers(inside) == inside
    assert resolve_verbalizers(tmp_path / "run") == inside
    assert (
        resolve_verbalizers(str(tmp_path / "run"), "small") == tmp_path / "run"
    )  # has none: for the reader to say
    with pytest.raises(ModelError, match="there is no folder 'nowhere'"):
        resolve_verbalizers("nowhere")


def test_a_set_from_the_hub_comes_alone_and_stays(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not verbalizers_need("teacher.verbalizers", Path("me/both")).present
    found = resolve_verbalizers("me/both")
    assert {path.name for path in found.iterdir()} == {"manifest.json", "verbalizers.safetensors"}
    assert {path.name for path in found.parent.parent.iterdir()} == {"verbalizers"}
    offline(hub, monkeypatch)
    assert resolve_verbalizers("me/both") == found
    assert verbalizers_need("teacher.verbalizers", Path("me/both")).present
    assert not hub.requests


def test_a_model_without_verbalizers(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ModelError, match="'me/model' was pushed without verbalizers: it has no verbalizers/large"
    ):
        resolve_verbalizers("me/model")
    with pytest.raises(ModelError, match="no folder and no hub model 'me/none'"):
        resolve_verbalizers("me/none")
    offline(hub, monkeypatch)
    with pytest.raises(ModelError) as error:
        resolve_verbalizers("me/both")
    assert error.value.hint == "with a network: hf download me/both --include 'verbalizers/large/*'"


def test_a_model_is_found_again_without_the_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was left out on purpose (the card, graphs, verbalizers) is not missed."""
    found = resolve_folder("me/both")
    assert {path.name for path in found.iterdir()} == {"config.json", "model.safetensors"}
    offline(hub, monkeypatch)
    assert resolve_folder("me/both") == found
    assert not hub.requests
