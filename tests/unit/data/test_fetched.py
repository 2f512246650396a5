"""The folder of fetched images: asked once, the same for all, and sound or not there."""

from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.image_server import HOST, PUBLIC, ImageServer, answer, image, leads_to, says
from tests.unit.data.kit import processor_of
from vlsi_cli.config.run import DataConfig
from vlsi_cli.engine.data import fetching
from vlsi_cli.engine.data.addresses import HostRules
from vlsi_cli.engine.data.digests import record_digest
from vlsi_cli.engine.data.fetched import ImageFetcher
from vlsi_cli.engine.data.fetching import FetchLimits
from vlsi_cli.engine.data.records import BadRecord
from vlsi_cli.engine.data.report import DataReport
from vlsi_cli.engine.runs.data import encoder_for, open_sources, training_stream
from vlsi_cli.errors import DataError, OutputError

URL = f"http://{HOST}/a.png"


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with ImageServer() as running:
        running.pages["/a.png"] = image()
        yield running


def fetcher(server: ImageServer, folder: Path, *, rules: HostRules | None = None, give_up_after: int = 20,
            max_bytes: int = 100_000, tries: int = 1) -> ImageFetcher:  # fmt: skip
    limits = FetchLimits(timeout=120, tries=tries, max_bytes=max_bytes)
    return ImageFetcher(
        folder, rules or HostRules(), limits, give_up_after=give_up_after, network=server.network()
    )


def reason(fetch: ImageFetcher, path: str, host: str = HOST) -> str:
    with pytest.raises(BadRecord) as caught:
        fetch(f"http://{host}{path}")
    return caught.value.reason


def the_file(folder: Path, part: str = "images") -> Path:
    (found,) = (path for path in (folder / part).rglob("*") if path.is_file())
    return found


def test_an_address_is_asked_once(server: ImageServer, tmp_path: Path) -> None:
    fetch = fetcher(server, tmp_path)
    assert fetch(URL) == fetch(URL) == fetch(f"http://{HOST.upper()}:80/a.png#part") == image()
    server.pages["/a.png"] = image("blue")  # what is behind the address changes
    assert fetcher(server, tmp_path)(URL) == image()
    assert fetcher(server, tmp_path / "other")(URL) == image("blue")
    assert len(server.asked) == 2
    assert list((tmp_path / "partial").iterdir()) == []


def test_what_is_not_there_is_remembered(server: ImageServer, tmp_path: Path) -> None:
    server.pages["/down"] = says(status=503)
    for path in ("/gone", "/down"):
        assert reason(fetcher(server, tmp_path), path) == "image-not-fetched"
        server.pages[path] = image()
        assert reason(fetcher(server, tmp_path), path) == "image-not-fetched"
    assert len(server.asked) == 2
    assert fetcher(server, tmp_path, tries=2)(f"http://{HOST}/down") == image()  # other settings: asked again


def test_what_is_no_image_is_not_kept(server: ImageServer, tmp_path: Path) -> None:
    server.pages |= {
        "/page": b"<html>hello</html>",
        "/empty": b"",
        "/svg": b"<svg/>",
        "/pickle": b"\x80\x04.",
    }
    for path in ("/page", "/empty", "/svg", "/pickle"):
        assert reason(fetcher(server, tmp_path), path) == "image-unreadable"
        assert reason(fetcher(server, tmp_path), path) == "image-unreadable"
    wide = image(size=(402, 2))
    server.pages["/wide"] = says(wide, Content_Type="text/html")
    assert reason(fetcher(server, tmp_path), "/wide") == "image-aspect-ratio"
    assert not any(path.is_file() for path in (tmp_path / "images").rglob("*"))
    assert len(server.asked) == 5


def test_the_rules_are_those_of_today(server: ImageServer, tmp_path: Path) -> None:
    """Neither an image that was kept under looser rules nor a refusal under stricter ones outlives them."""
    fetcher(server, tmp_path)(URL)
    assert (
        reason(fetcher(server, tmp_path, rules=HostRules(hosts=["other.example"])), "/a.png")
        == "image-address"
    )
    assert reason(fetcher(server, tmp_path, max_bytes=10), "/a.png") == "image-not-fetched"
    server.names["images.corp"] = ["10.0.0.1"]
    assert reason(fetcher(server, tmp_path), "/a.png", "images.corp") == "image-address"
    named = HostRules(private_hosts=["images.corp"])
    assert fetcher(server, tmp_path, rules=named)("http://images.corp/a.png") == image()


def test_a_redirect_is_kept_under_the_address_that_was_asked(server: ImageServer, tmp_path: Path) -> None:
    server.pages["/old"] = leads_to("/a.png")
    fetch = fetcher(server, tmp_path)
    assert fetch(f"http://{HOST}/old") == fetch(f"http://{HOST}/old") == image()
    assert len(server.asked) == 2


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied", "no JSON"])
def test_a_damaged_file_is_fetched_again(server: ImageServer, tmp_path: Path, damage: str) -> None:
    fetcher(server, tmp_path)(URL)
    path = the_file(tmp_path)
    whole = path.read_bytes()
    made = {"cut": whole[:-5], "changed": whole[:-1] + b"?", "emptied": b"", "no JSON": b"[" * 9999 + b"\n"}
    path.write_bytes(made[damage])
    assert fetcher(server, tmp_path)(URL) == image()
    assert path.read_bytes() == whole
    assert len(server.asked) == 2


def test_the_first_to_keep_an_image_keeps_it_for_all(server: ImageServer, tmp_path: Path) -> None:
    """Eight at once, from a host that sends other bytes each time: all go on with the same."""
    colours, together = iter(range(8)), threading.Barrier(8)

    def fickle(page: Any) -> None:
        together.wait(300)  # nobody has kept one before all have asked
        answer(page, image(f"#0000{next(colours):02x}"))

    server.pages["/a.png"] = fickle
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(fetcher(server, tmp_path)(URL))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert len(found) == len(server.asked) == 8
    assert len(set(found)) == 1


def test_a_network_that_is_gone_is_no_fault_of_the_images(server: ImageServer, tmp_path: Path) -> None:
    fetch = fetcher(server, tmp_path, give_up_after=3)
    server.names["down.example"] = [PUBLIC]
    server.pages |= {f"/{number}": says(status=503) for number in range(6)}
    assert [reason(fetch, f"/{number}") for number in range(2)] == ["image-not-fetched"] * 2
    fetch(URL)  # one that works: the others were to blame
    assert [reason(fetch, f"/{number}") for number in range(2, 4)] == ["image-not-fetched"] * 2
    with pytest.raises(DataError, match="3 images in a row") as caught:
        fetch(f"http://{HOST}/4")
    assert not isinstance(caught.value, BadRecord)
    server.pages |= {f"/{number}": image() for number in range(6)}
    again = fetcher(server, tmp_path, give_up_after=3)
    assert [reason(again, f"/{number}") for number in range(2)] == ["image-not-fetched"] * 2
    assert [again(f"http://{HOST}/{number}") for number in range(2, 5)] == [image()] * 3


def test_secrets_of_an_address_are_not_kept(server: ImageServer, tmp_path: Path) -> None:
    server.pages["/a.png?sig=geheim"] = image()
    fetch = fetcher(server, tmp_path)
    fetch(f"{URL}?sig=geheim")
    reason(fetch, "/gone?sig=geheim")
    kept = [path.read_bytes() for part in ("images", "failed") for path in [the_file(tmp_path, part)]]
    assert not any(b"geheim" in content for content in kept)
    assert json.loads(kept[0].split(b"\n")[0])["address"] == f"{URL}?..."


def test_leftovers_of_the_dead_go(server: ImageServer, tmp_path: Path) -> None:
    (tmp_path / "partial").mkdir()
    old, new = tmp_path / "partial" / "old", tmp_path / "partial" / "new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    fetcher(server, tmp_path)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_folder_that_cannot_be_written(server: ImageServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"):
        fetcher(server, tmp_path / "file" / "images")
    fetch = fetcher(server, tmp_path / "images")
    (tmp_path / "images" / "partial").rmdir()
    with pytest.raises(OutputError, match="cannot be written"):
        fetch(URL)


# ---------------------------------------------------------------- streams


def config_of(folder: Path, records: int, **settings: Any) -> DataConfig:
    rows = [
        {
            "image": f"http://{HOST}/{number}.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": "It is red. " * (1 + number % 3)},
            ],
        }
        for number in range(records)
    ]
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    urls = {"fetch": True, "folder": folder / "kept", "tries": 1}
    return DataConfig.model_validate(
        {"sources": [{"kind": "llava", "path": file}], "image_urls": urls, **settings}
    )


def steps(config: DataConfig, processor: Any, number: int, report: DataReport) -> list[Any]:
    with training_stream(
        config, encoder_for(processor, config), seed=1, report=report, digests=True
    ) as stream:
        return [(batch.records, batch.digests) for _ in range(number) for batch in stream.next_step(2, 2)]


@pytest.mark.parametrize("group", [0, 2])
def test_workers_epochs_and_resumed_runs_see_the_same(
    server: ImageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    monkeypatch.setattr(fetching, "WORLD", server.network_of_workers())
    processor = processor_of("qwen2_vl", tmp_path / "model")
    server.pages |= {f"/{number}.png": image(f"#{number}00000", (16 + 8 * number, 24)) for number in range(7)}
    server.pages["/3.png"] = says(status=503)
    server.pages["/5.png"] = b"no image"
    config = config_of(tmp_path, 7, group_by_length=group)
    first, again, there = DataReport(), DataReport(), DataReport()
    with_workers = config.model_copy(update={"workers": 2})
    seen = steps(with_workers, processor, 4, first)  # three epochs and more
    assert first.reasons == {"image-not-fetched": 1, "image-unreadable": 1}
    asked = [path for path, _ in server.asked]
    assert set(asked) == {f"/{number}.png" for number in range(7)}
    assert (
        len(asked) < 14
    )  # two workers may ask for one image at once, of two epochs; nobody asks a third time
    server.pages.clear()  # from here on nobody has any image
    assert steps(config, processor, 4, again) == seen
    assert again.to_dict() == first.to_dict()
    other = config.model_copy(
        update={"image_urls": config.image_urls.model_copy(update={"folder": tmp_path / "other"})}
    )
    with pytest.raises(DataError, match="not one of"):
        steps(other, processor, 1, there)


def test_a_changed_image_has_another_digest(
    server: ImageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By digests a cache of the large model finds what a record was: other pixels are another record."""
    monkeypatch.setattr(fetching, "WORLD", server.network())
    processor, config = processor_of("qwen2_vl", tmp_path / "model"), config_of(tmp_path, 1)

    def digest(folder: str) -> bytes:
        urls = config.image_urls.model_copy(update={"folder": tmp_path / folder})
        now = config.model_copy(update={"image_urls": urls})
        return record_digest(encoder_for(processor, now).encode(open_sources(now, 0)[0][0].read(0)))

    server.pages["/0.png"] = image("red")
    before = digest("one")
    server.pages["/0.png"] = image("blue")
    assert digest("one") == before
    assert digest("two") != before
    assert digest("two")[:16] == before[:16]


def test_a_network_that_is_gone_ends_the_stream(
    server: ImageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "WORLD", server.network_of_workers())
    server.names.clear()
    config = config_of(tmp_path, 40, workers=1)
    report = DataReport()
    with pytest.raises(DataError, match="20 images in a row could not be fetched") as caught:
        steps(config, processor_of("qwen2_vl", tmp_path / "model"), 1, report)
    assert caught.value.hint
    assert "--resume" in caught.value.hint


def test_off_is_off(server: ImageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "WORLD", server.network())
    server.pages["/0.png"] = image()
    config = config_of(tmp_path, 1)
    off = config.model_copy(update={"image_urls": type(config.image_urls)()})
    encoder = encoder_for(processor_of("qwen2_vl", tmp_path / "model"), off)
    with pytest.raises(BadRecord) as caught:
        encoder.encode(open_sources(off, 0)[0][0].read(0))
    assert caught.value.reason == "image-url"
    assert server.asked == server.looked_up == []


def test_it_travels_to_workers(server: ImageServer, tmp_path: Path) -> None:
    sent = ImageFetcher(tmp_path, HostRules(), FetchLimits(1, 1, 1), give_up_after=1, network=fetching.WORLD)
    assert isinstance(pickle.loads(pickle.dumps(sent)), ImageFetcher)
