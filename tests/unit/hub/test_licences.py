"""A base's licence: from its folder, from the hub, or unknown; never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub_client import use_hub
from tests.hub_server import HubServer
from tests.hub_store import Repo
from vlsi_cli.engine.hub.licences import Licence, licence_of

CARD = "---\nlicense: other\nlicense_name: theirs\nlicense_link: https://x.org/l\n---\n\n# base\n"


def test_the_demo_pair_is_part_of_this_package() -> None:
    assert licence_of("demo/large", None, None, ask=False) == Licence("apache-2.0")


def test_a_folder_says_it_in_its_card(tmp_path: Path) -> None:
    assert licence_of(str(tmp_path), tmp_path, None, ask=False) is None
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n", encoding="utf-8")
    assert licence_of(str(tmp_path), tmp_path, None, ask=False) is None
    (tmp_path / "README.md").write_text(CARD, encoding="utf-8")
    found = licence_of(str(tmp_path), tmp_path, None, ask=False)
    assert found == Licence("other", "theirs", "https://x.org/l")
    assert str(found) == "theirs"


def test_the_hub_is_asked_only_when_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer() as hub:
        use_hub(hub, monkeypatch, tmp_path)
        hub.repos["own/base"] = Repo()
        hub.repos["own/base"].commit({"README.md": CARD.encode()}, "main")
        assert licence_of("own/base", None, None, ask=False) is None
        assert not hub.requests
        assert licence_of("own/base", None, None, ask=True) == Licence("other", "theirs", "https://x.org/l")
        assert licence_of("own/other", None, None, ask=True) is None
        hub.fail("/api/models/", 500)
        assert licence_of("own/base", None, None, ask=True) is None
