"""Fetching over a real connection: what is asked of whom, and what a host cannot make us do."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Iterator

import httpcore2
import pytest

from tests.image_server import HOST, PUBLIC, ImageServer, answer, image, leads_to, raw, says
from vlsi_cli.engine.data.addresses import HostRules
from vlsi_cli.engine.data.fetching import MAX_REDIRECTS, Failure, FetchLimits, fetch
from vlsi_cli.engine.data.records import BadRecord

ANY, LIMITS = HostRules(), FetchLimits(timeout=120, tries=1, max_bytes=100_000)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with ImageServer() as running:
        running.pages["/a.png"] = image()
        yield running


def get(
    server: ImageServer, path: str = "/a.png", *, host: str = HOST, rules: HostRules = ANY, **limits: float
) -> bytes:
    chosen = FetchLimits(**{**vars(LIMITS), **limits})
    return fetch(f"http://{host}{path}", rules, chosen, server.network())


def failure(server: ImageServer, path: str, **settings: float) -> Failure:
    with pytest.raises(Failure) as caught:
        get(server, path, **settings)
    return caught.value


def refused(server: ImageServer, path: str = "/a.png", **settings: object) -> str:
    with pytest.raises(BadRecord) as caught:
        get(server, path, **settings)  # type: ignore[arg-type]
    assert caught.value.reason == "image-address"
    return caught.value.detail


def test_an_image_is_fetched_with_a_plain_request(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    assert get(server) == image()
    assert (server.looked_up, server.dialled) == ([HOST], [(PUBLIC, 80)])
    ((path, headers),) = server.asked
    assert path == "/a.png"
    assert headers["Host"] == HOST
    assert headers["User-Agent"].startswith("vlsi/")
    assert headers["Accept-Encoding"] == "identity"
    assert not {"Cookie", "Authorization", "Referer"} & set(headers)


def test_the_number_that_was_checked_is_the_one_that_is_dialled(server: ImageServer) -> None:
    """A host that answers the second look-up with another number gains nothing: there is no second look-up."""
    answers = iter([[PUBLIC], ["127.0.0.1"]])
    network = server.network()
    rebinding = type(network)(lambda host, port: next(answers), network.dial, network.trust, network.sleep)
    fetch(f"http://{HOST}/a.png", ANY, LIMITS, rebinding)
    assert server.dialled == [(PUBLIC, 80)]
    with pytest.raises(BadRecord):
        fetch(f"http://{HOST}/a.png", ANY, LIMITS, rebinding)
    assert len(server.dialled) == 1


@pytest.mark.parametrize(
    "number",
    ["127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "fe80::1%1", "fd00::1",
     "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "not a number"],
)  # fmt: skip
def test_names_that_lead_to_closed_numbers_are_not_asked(server: ImageServer, number: str) -> None:
    server.names[HOST] = [PUBLIC, number]  # one bad number among good ones will do
    assert number not in refused(server)
    assert server.dialled == []


def test_a_private_host_that_was_named_is_asked(server: ImageServer) -> None:
    server.names["images.corp"] = ["10.1.2.3"]
    rules = HostRules(private_hosts=["images.corp"])
    assert get(server, host="images.corp", rules=rules) == image()
    assert server.dialled == [("10.1.2.3", 80)]
    server.names["images.corp"] = ["127.0.0.1"]
    refused(server, host="images.corp", rules=rules)
    server.names[HOST] = ["10.1.2.3"]  # naming one host opens no network
    refused(server, rules=rules)


def test_another_number_of_the_host_is_tried(server: ImageServer) -> None:
    network = server.network()
    server.names[HOST] = ["2606:4700::1111", PUBLIC]

    def dial(number: str, port: int, seconds: float) -> httpcore2.NetworkStream:
        if ":" in number:
            server.dialled.append((number, port))
            raise httpcore2.ConnectError("no route")
        return network.dial(number, port, seconds)

    patchy = type(network)(network.look_up, dial, network.trust, network.sleep)
    assert fetch(f"http://{HOST}/a.png", ANY, LIMITS, patchy) == image()
    assert [number for number, _ in server.dialled] == ["2606:4700::1111", PUBLIC]


# ---------------------------------------------------------------- redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(server: ImageServer, status: int) -> None:
    server.names["cdn.example"] = ["93.184.215.15"]
    server.pages["/old"] = leads_to("//cdn.example/a.png", status)
    assert get(server, "/old") == image()
    assert server.dialled == [(PUBLIC, 80), ("93.184.215.15", 80)]
    assert [headers["Host"] for _, headers in server.asked] == [HOST, "cdn.example"]


def test_no_cookie_is_carried_along(server: ImageServer) -> None:
    server.pages["/old"] = says(status=302, Location="/a.png", Set_Cookie="a=b; Path=/")
    get(server, "/old")
    assert all("Cookie" not in headers for _, headers in server.asked)


@pytest.mark.parametrize(
    "where",
    ["http://127.0.0.1/a.png", "http://localhost/a.png", "http://169.254.169.254/", "http://[::1]/", "http://0x7f.1/",
     "//2130706433/", "ftp://images.example/a", "file:///etc/passwd", "http://me:you@images.example/a.png",
     "http://images.example:22/", "http://inside.example/a.png", "gopher://x/", "http://images.example\\@127.0.0.1/"],
)  # fmt: skip
def test_a_redirect_to_where_nothing_may_be_asked(server: ImageServer, where: str) -> None:
    server.names |= {"localhost": ["127.0.0.1"], "inside.example": ["10.0.0.1"]}
    server.pages["/old"] = leads_to(where)
    refused(server, "/old")
    assert server.dialled == [(PUBLIC, 80)]


def test_a_redirect_leaves_no_list_of_hosts(server: ImageServer) -> None:
    server.names["other.example"] = [PUBLIC]
    server.pages["/old"] = leads_to("http://other.example/a.png")
    assert "other.example" in refused(server, "/old", rules=HostRules(hosts=[HOST]))


def test_redirects_end(server: ImageServer) -> None:
    server.pages["/round"] = leads_to("/round")
    assert not failure(server, "/round").momentary
    assert len(server.asked) == MAX_REDIRECTS + 1
    server.pages["/odd"] = leads_to("http://[::1")
    assert "cannot be read" in str(failure(server, "/odd"))


# ---------------------------------------------------------------- bounds


def test_the_length_that_is_read_counts(server: ImageServer) -> None:
    body = b"x" * 5000
    server.pages["/just"] = body
    assert get(server, "/just", max_bytes=5000) == body
    assert "more than 4,999 bytes" in str(failure(server, "/just", max_bytes=4999))


@pytest.mark.parametrize(
    "length", [b"", b"Content-Length: 99999999999\r\n", b"Transfer-Encoding: chunked\r\n"]
)
def test_an_endless_body_is_cut_off(server: ImageServer, length: bytes) -> None:
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n" if b"chunked" in length else b"x" * 65536
    server.pages["/endless"] = raw(OK, length, b"\r\n", forever=piece)
    assert "more than 100,000 bytes" in str(failure(server, "/endless"))


def test_endless_headers_are_cut_off(server: ImageServer) -> None:
    server.pages["/endless"] = raw(OK, forever=b"X-More: " + b"x" * 900 + b"\r\n")
    failure(server, "/endless")


@pytest.mark.parametrize(
    ("first", "piece"),
    [(OK + b"\r\n", b"x"), (OK, b"X-A: b\r\n"), (b"", b"HTTP/1.1 100 Continue\r\n\r\n"), (OK + b"X-Long: ", b"x")],
    ids=["body", "headers", "informational", "one header"],
)  # fmt: skip
def test_a_slow_drip_ends_in_time(server: ImageServer, first: bytes, piece: bytes) -> None:
    server.pages["/slow"] = raw(first, forever=piece, wait=0.02)
    started = time.monotonic()
    assert failure(server, "/slow", timeout=0.3).momentary
    assert time.monotonic() - started < 120  # generously: the machine may be busy


def test_a_host_that_says_nothing_ends_in_time(server: ImageServer) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        server.port = silent.getsockname()[1]
        for scheme in ("http", "https"):
            with pytest.raises(Failure) as caught:
                fetch(
                    f"{scheme}://{HOST}/",
                    ANY,
                    FetchLimits(timeout=0.2, tries=1, max_bytes=9),
                    server.network(),
                )
            assert caught.value.momentary


def test_a_host_that_is_gone_takes_a_part_of_the_time_only(server: ImageServer) -> None:
    network, waited = server.network(), list[float]()

    def dial(number: str, port: int, seconds: float) -> httpcore2.NetworkStream:
        waited.append(seconds)
        raise httpcore2.ConnectTimeout

    silent = type(network)(network.look_up, dial, network.trust, network.sleep)
    with pytest.raises(Failure, match="too long"):
        fetch(f"http://{HOST}/", ANY, FetchLimits(timeout=20, tries=3, max_bytes=9), silent)
    assert waited == [5.0, 5.0, 5.0]


def test_looking_up_ends_in_time(server: ImageServer) -> None:
    network, over = server.network(), threading.Event()

    def look_up(host: str, port: int) -> list[str]:
        over.wait(120)
        return [PUBLIC]

    slow = type(network)(look_up, network.dial, network.trust)
    with pytest.raises(Failure, match="looking up"):
        fetch(f"http://{HOST}/", ANY, FetchLimits(timeout=0.1, tries=1, max_bytes=9), slow)
    over.set()
    assert server.dialled == []


def test_nothing_is_unpacked(server: ImageServer) -> None:
    bomb = gzip.compress(b"\0" * 10_000_000)
    server.pages["/bomb"] = says(bomb, Content_Encoding="gzip")
    assert "compressed (gzip)" in str(failure(server, "/bomb"))
    server.pages["/identity"] = says(b"abc", Content_Encoding="identity")
    assert get(server, "/identity") == b"abc"


@pytest.mark.parametrize(
    "bytes_", [b"", b"no HTTP\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", b"\0" * 99],
    ids=["nothing", "no HTTP", "cut short", "zeros"],
)  # fmt: skip
def test_what_is_no_answer(server: ImageServer, bytes_: bytes) -> None:
    server.pages["/odd"] = raw(bytes_)
    assert failure(server, "/odd").momentary


# ---------------------------------------------------------------- tries


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_fails_for_a_moment_is_tried_again(server: ImageServer, status: int) -> None:
    answers = iter([status, status])

    def moody(page: object) -> None:
        answer(page, image(), status=next(answers, 200))  # type: ignore[arg-type]

    server.pages["/moody"] = moody
    assert get(server, "/moody", tries=3) == image()
    assert server.slept == [0.5, 2.0]


def test_tries_end(server: ImageServer) -> None:
    server.pages["/down"] = says(status=503)
    assert failure(server, "/down", tries=3).momentary
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [204, 206, 300, 304, 400, 401, 403, 404, 410, 451])
def test_what_is_not_there_is_asked_for_once(server: ImageServer, status: int) -> None:
    server.pages["/gone"] = says(status=status)
    gone = failure(server, "/gone", tries=3)
    assert str(status) in str(gone)
    assert not gone.momentary
    assert len(server.asked) == 1


def test_an_unknown_host_is_looked_up_once(server: ImageServer) -> None:
    with pytest.raises(Failure, match="cannot be found") as caught:
        get(server, host="nowhere.example", tries=3)
    assert caught.value.momentary
    assert server.looked_up == ["nowhere.example"]


@pytest.mark.parametrize(
    ("value", "kept_out"),
    [
        ("noai", True),
        ("noindex, NOIMAGEAI", True),
        ("vlsi: noai", True),
        ("otherbot: noai", False),
        ("noindex", False),
    ],
)
def test_a_host_may_keep_images_out_of_training(server: ImageServer, value: str, kept_out: bool) -> None:
    server.pages["/mine"] = says(image(), X_Robots_Tag=value)
    if kept_out:
        assert "X-Robots-Tag" in str(failure(server, "/mine"))
    else:
        assert get(server, "/mine") == image()
