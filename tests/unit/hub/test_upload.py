"""Sending to a hub over HTTP: what arrives, what is visible after a failure, and what a repeated push sends again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.utils._http as http
import pytest

from tests.hub_client import use_hub
from tests.hub_server import HubServer
from vlsi_cli.engine.hub.contents import Item
from vlsi_cli.engine.hub.upload import Hub, Target
from vlsi_cli.errors import ConfigError, HubError

CARD = b"---\nlicense: apache-2.0\n---\n\n# thing\n"


@pytest.fixture
def hub(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[HubServer]:
    """A hub that takes the larger files through LFS ahead of the commit, or (`both_ways`) all of them in it."""
    monkeypatch.setattr("vlsi_cli.engine.hub.upload._LARGE", 1000)
    with HubServer(lfs_from=getattr(request, "param", 1000)) as server:
        use_hub(server, monkeypatch, tmp_path / "cache")
        yield server


both_ways = pytest.mark.parametrize("hub", [10**9, 1000], ids=["regular", "lfs"], indirect=True)


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    found = [Item("README.md", CARD)]
    for name, size in (("config.json", 20), ("model-1.safetensors", 5000), ("model-2.safetensors", 7000)):
        (tmp_path / name).write_bytes(name.encode() * (size // len(name)))
        found.append(Item(name, tmp_path / name))
    return found


def send(target: Target, items: list[Item]) -> tuple[str, bool, list[str]]:
    told: list[str] = []
    talking = Hub(target)
    talking.check()
    sent = talking.send(items, "Upload", told.append)
    return sent.url, sent.changed, told


def content(item: Item) -> bytes:
    return item.source if isinstance(item.source, bytes) else item.source.read_bytes()


@both_ways
def test_everything_arrives_in_one_commit(hub: HubServer, items: list[Item]) -> None:
    url, changed, told = send(Target("me/thing"), items)
    assert (url, changed) == (f"{hub.url}/me/thing", True)
    assert {item.path: content(item) for item in items}.items() <= hub.files("me/thing").items()
    assert len(hub.repos["me/thing"].commits) == 2  # the hub's own first one, and ours
    assert not hub.repos["me/thing"].private
    assert told == [
        "model-1.safetensors has arrived (1 of 2 large files)",
        "model-2.safetensors has arrived (2 of 2 large files)",
    ]
    assert hub.count("PUT /storage/") == (2 if hub.lfs_from == 1000 else 0)


@both_ways
def test_the_same_again_sends_nothing(hub: HubServer, items: list[Item]) -> None:
    send(Target("me/thing"), items)
    before = (hub.count("PUT "), hub.count("/commit/"))
    assert send(Target("me/thing"), items)[1] is False
    assert (hub.count("PUT "), hub.count("/commit/")) == before


def test_where_to(hub: HubServer, items: list[Item]) -> None:
    send(Target("ours/thing", private=True), items)
    repo = hub.repos["ours/thing"]
    assert repo.private
    items[1] = Item("config.json", b"{}")
    send(Target("ours/thing", private=True, branch="next", tag="v1"), items)
    assert hub.files("ours/thing", "next")["config.json"] == b"{}"
    assert hub.files("ours/thing")["config.json"] != b"{}"
    assert repo.tags == {"v1": repo.branches["next"]}
    items[1] = Item("config.json", b"[]")
    url, _, _ = send(Target("ours/thing", create_pr=True), items)
    assert url == f"{hub.url}/ours/thing/discussions/1"
    assert hub.files("ours/thing", "refs/pr/1")["config.json"] == b"[]"
    assert hub.files("ours/thing")["config.json"] != b"[]"


def test_weights_of_an_earlier_push_go_and_nothing_else(hub: HubServer, items: list[Item]) -> None:
    older = [
        Item("model.safetensors", b"old"),
        Item("notes.txt", b"mine"),
        Item("onnx/a/x.safetensors", b"x"),
    ]
    send(Target("me/thing"), [*items, *older])
    talking = Hub(Target("me/thing"))
    assert talking.send(items, "Upload", lambda _: None).removed == ("model.safetensors",)
    assert {"notes.txt", "onnx/a/x.safetensors"} < set(hub.files("me/thing"))
    assert "model.safetensors" not in hub.files("me/thing")


# ---------------------------------------------------------------- refused before anything is sent


@pytest.mark.parametrize(
    ("who", "target", "said"),
    [
        (
            {"auth": {"accessToken": {"role": "read"}}},
            Target("me/thing"),
            "the token on this machine can only read",
        ),
        ({}, Target("them/thing"), "belongs to me, who may not write to repositories of 'them'"),
        ({}, Target("me/old", private=True), "me/old exists and is public, but --private was asked for"),
        ({}, Target("me/old", tag="v1"), "me/old has a tag 'v1' already"),
    ],
)
def test_what_cannot_be_pushed_is_refused_first(
    hub: HubServer, items: list[Item], who: dict[str, object], target: Target, said: str
) -> None:
    send(Target("me/old", tag="v1"), items)
    hub.requests.clear()
    hub.who |= who
    with pytest.raises(HubError, match=said):
        Hub(target).check()
    assert all(line.startswith("GET ") for line in hub.requests)


def test_a_stranger_may_open_a_pull_request(hub: HubServer, items: list[Item]) -> None:
    send(Target("me/thing"), items)
    hub.who["name"] = "somebody"
    Hub(Target("me/thing", create_pr=True)).check()


def test_without_a_token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="there is no token") as error:
        Hub(Target("me/thing"))
    assert "hf auth login" in (error.value.hint or "")
    assert not hub.requests


def test_switched_off(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="switched off by HF_HUB_OFFLINE"):
        Hub(Target("me/thing")).check()


@pytest.mark.parametrize("given", [{"branch": "next"}, {"tag": "v1"}])
def test_a_pull_request_goes_to_the_main_branch(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="were both given"):
        Target("me/thing", create_pr=True, **given)


def test_a_card_with_bad_metadata(hub: HubServer) -> None:
    Hub(Target("me/thing")).check_card(CARD.decode())
    with pytest.raises(HubError, match=r"metadata invalid.*license"):
        Hub(Target("me/thing")).check_card("---\nlicense: mine\n---\n")


# ---------------------------------------------------------------- failures in the middle


@pytest.mark.parametrize(
    ("where", "status", "said"),
    [
        ("/whoami-v2", 401, "does not accept the token (HTTP 401) while asking who the token belongs to"),
        ("/whoami-v2", 500, "had an error of its own (HTTP 500)"),
        ("/whoami-v2", -1, "cannot be reached while asking who the token belongs to"),
        (
            "/repos/create",
            403,
            "does not allow this token to write there (HTTP 403) while making the repository",
        ),
        ("/preupload/", 401, "does not accept the token (HTTP 401)"),
        ("/preupload/", 500, "had an error of its own (HTTP 500)"),
        (
            "/commit/",
            500,
            "had an error of its own (HTTP 500) while sending 4 files to me/thing, and says: oops",
        ),
        ("/commit/", 401, "does not accept the token (HTTP 401)"),
        ("/commit/", 403, "does not allow this token to write there (HTTP 403)"),
        ("/commit/", 409, "reports a conflict"),
        ("/commit/", 413, "refuses the upload as too large (HTTP 413)"),
        ("/commit/", 429, "asks to wait: too many requests"),
        ("/commit/", 0, "did not answer in time while sending 4 files"),
        ("/commit/", -1, "cannot be reached while sending 4 files"),
    ],
)
def test_a_failure_is_one_sentence_and_leaves_nothing_half(
    hub: HubServer, items: list[Item], where: str, status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if status == 0:
        client = type(http.default_client_factory())  # of httpx, or of httpx2 from huggingface-hub 2 on

        def impatient(request: Any) -> None:
            if where in request.url.path:  # elsewhere it waits for a busy machine
                request.extensions["timeout"]["read"] = 0.2

        http.set_client_factory(lambda: client(timeout=120, event_hooks={"request": [impatient]}))
    hub.fail(where, status, message="oops")
    try:
        with pytest.raises(HubError) as error:
            send(Target("me/thing"), items)
    finally:
        http.set_client_factory(http.default_client_factory)
    assert said in error.value.message
    assert "\n" not in error.value.message
    assert set(hub.files("me/thing") if "me/thing" in hub.repos else ()) <= {".gitattributes"}
    hub.failures.clear()
    puts = hub.count("PUT /storage/")
    send(Target("me/thing"), items)
    assert {item.path: content(item) for item in items}.items() <= hub.files("me/thing").items()
    if where == "/commit/":
        assert hub.count("PUT /storage/") == puts  # what had arrived was not sent again


@pytest.mark.parametrize(
    ("where", "skip", "status", "arrived"),
    [
        ("/objects/batch", 0, 413, 0),
        ("PUT /storage/", 0, 500, 0),
        ("/storage/", 1, 403, 1),
        ("/verify", 0, 404, 1),
    ],
)
def test_large_files_go_on_where_they_stopped(
    hub: HubServer, items: list[Item], where: str, skip: int, status: int, arrived: int
) -> None:
    hub.fail(where.removeprefix("PUT "), status, skip=skip)
    with pytest.raises(HubError, match=rf"HTTP {status}.* while sending model-\d.safetensors to me/thing"):
        send(Target("me/thing"), items)
    assert len(hub.objects) == arrived
    hub.failures.clear()
    hub.requests.clear()
    send(Target("me/thing"), items)
    assert hub.count("PUT /storage/") == 2 - arrived


def test_the_token_is_in_no_message_and_no_log(
    hub: HubServer, items: list[Item], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not even when the hub itself repeats it."""
    hub.fail("/commit/", 403, message=f"the token {hub.token} is not yours")
    with caplog.at_level(logging.DEBUG), pytest.raises(HubError) as error:
        send(Target("me/thing"), items)
    assert "and says: the token *** is not yours" in error.value.message
    assert error.value.__cause__ is None
    out, err = capfd.readouterr()
    assert hub.token not in caplog.text + out + err + repr(hub.requests)


def test_the_client_is_left_as_it_was(
    hub: HubServer, items: list[Item], capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled
    from huggingface_hub.utils import logging as hub_logging

    before = (hub_logging.get_verbosity(), are_progress_bars_disabled())
    send(Target("me/thing"), items)
    assert (hub_logging.get_verbosity(), are_progress_bars_disabled()) == before
    assert capfd.readouterr() == ("", "")
