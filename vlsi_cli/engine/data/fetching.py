"""Fetching an image from its address, for data that nobody vouches for.

What is promised (SECURITY.md says it to users) and where it is kept:

- the address is read by narrow rules (``addresses``), that of every redirect again;
- the host is looked up once, every number found must be allowed, and the connection goes to one of these numbers, so
  that nobody can show the check one number and the connection another. No proxy is used: it would look up for itself;
- certificates are verified against the name; from https no redirect leads to http;
- no cookie, credential or referrer is sent, and nothing is unpacked: a compressed answer is refused;
- a try ends after ``timeout`` seconds, however slowly bytes drip, and at ``max_bytes`` bytes, whatever a header says.

HTTP itself is httpcore's business, which ``huggingface_hub`` brings; it lets us say how a connection is made.
"""

from __future__ import annotations

import platform
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urljoin

import httpcore2
from httpcore2 import NetworkBackend, NetworkStream

import vlsi_cli
from vlsi_cli.engine.data.addresses import Address, HostRules, as_number, is_open, read_address, shown
from vlsi_cli.engine.data.records import BadRecord

MAX_REDIRECTS = 5
#: Numbers of a host that are tried one after another.
MAX_NUMBERS = 4
#: Part of a try's time in which a connection must be made: hosts that are gone say nothing, and are many in old data.
CONNECTING = 0.25
#: Seconds before the second try, the third and so on; the last one counts for all further.
BACKOFF = (0.5, 2.0, 5.0)
_REDIRECTS = {301, 302, 303, 307, 308}
#: Answers that may be another one in a moment: time-out, too early, too many requests; all of 5xx are too.
_MOMENTARY = {408, 425, 429}
#: What a host may say of its images in ``X-Robots-Tag`` to keep them out of training.
_KEEP_OUT = {"noai", "noimageai"}


class Failure(Exception):
    """An image that could not be fetched.

    Attributes:
        momentary: it may work another time: no connection, too slow, an answer that says so.
        again: it may work in seconds, so that it is worth another try.
    """

    def __init__(self, detail: str, *, momentary: bool, again: bool | None = None) -> None:
        super().__init__(detail)
        self.momentary = momentary
        self.again = momentary if again is None else again


@dataclass(frozen=True)
class Network:
    """How the world is reached; tests put a small one in its place.

    Attributes:
        look_up: host, port -> its numbers, in the order of preference. Raises OSError.
        dial: number, port, seconds -> a connection to exactly that number.
        trust: what certificates are verified with.
        sleep: wait so many seconds.
    """

    look_up: Callable[[str, int], list[str]]
    dial: Callable[[str, int, float], NetworkStream]
    trust: Callable[[], ssl.SSLContext]
    sleep: Callable[[float], None] = time.sleep


def _look_up(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _dial(number: str, port: int, seconds: float) -> NetworkStream:
    return httpcore2.SyncBackend().connect_tcp(number, port, timeout=seconds)


@cache
def _trust() -> ssl.SSLContext:
    """OpenSSL's verification everywhere: those of Windows and macOS may fetch what a stranger's certificate names."""
    if platform.system() in ("Windows", "Darwin"):
        return ssl.create_default_context()
    return httpcore2.default_ssl_context()


WORLD = Network(_look_up, _dial, _trust)


@dataclass(frozen=True)
class FetchLimits:
    """What one image may take.

    Attributes:
        timeout: seconds of a try: look-up, connections (a quarter of it each), redirects and all bytes.
        tries: how often a fetch that fails for a moment is tried.
        max_bytes: of an image's file.
    """

    timeout: float
    tries: int
    max_bytes: int


def fetch(text: str, rules: HostRules, limits: FetchLimits, network: Network = WORLD) -> bytes:
    """The bytes at an address.

    Raises:
        BadRecord: ``image-address``: the address, or one that it leads to, may not be asked.
        Failure: they cannot be had.
    """
    address = read_address(text, rules)
    for number in range(limits.tries):
        if number:
            network.sleep(BACKOFF[min(number, len(BACKOFF)) - 1])
        try:
            return _one_try(address, rules, limits, network)
        except Failure as failure:
            if not failure.again or number + 1 == limits.tries:
                raise
    raise AssertionError("at least one try is made")


def _one_try(address: Address, rules: HostRules, limits: FetchLimits, network: Network) -> bytes:
    deadline = time.monotonic() + limits.timeout
    for _ in range(MAX_REDIRECTS + 1):
        answer = _ask(address, limits, deadline, network)
        if isinstance(answer, bytes):
            return answer
        try:
            onward = read_address(urljoin(str(address), answer), rules)
        except BadRecord as bad:
            raise BadRecord(bad.reason, f"{shown(str(address))} leads to {bad.detail}") from bad
        except ValueError:  # brackets that do not close
            raise Failure("a redirect that cannot be read", momentary=False) from None
        if (address.scheme, onward.scheme) == ("https", "http"):
            raise Failure("a redirect from https to http", momentary=False)
        address = onward
    raise Failure(f"more than {MAX_REDIRECTS} redirects", momentary=False)


def _ask(address: Address, limits: FetchLimits, deadline: float, network: Network) -> bytes | str:
    """The body of an answer, or where a redirect leads."""
    connector = _Connector(address, deadline, limits.timeout * CONNECTING, network)
    context = network.trust() if address.scheme == "https" else None
    headers: dict[bytes | str, bytes | str] = {
        "Host": address.place,
        "User-Agent": f"vlsi/{vlsi_cli.__version__}",
        "Accept": "image/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    url = httpcore2.URL(
        scheme=address.scheme.encode(),
        host=address.host.encode(),
        port=address.port,
        target=address.target.encode(),
    )
    try:
        with (
            httpcore2.ConnectionPool(ssl_context=context, network_backend=connector, retries=0) as pool,
            pool.stream("GET", url, headers=headers) as response,
        ):
            return _read(response, limits.max_bytes)
    except httpcore2.TimeoutException as error:
        raise Failure("it took too long", momentary=True) from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        certificate = _cause(error, ssl.SSLCertVerificationError)
        if certificate is not None:
            reason = getattr(certificate, "verify_message", "") or str(certificate)
            raise Failure(f"its certificate is not valid: {reason}", momentary=False) from error
        raise Failure(str(error) or type(error).__name__, momentary=True) from error


def _read(response: httpcore2.Response, max_bytes: int) -> bytes | str:
    found: dict[str, list[str]] = {}
    for name, value in response.headers:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    status = response.status
    if status in _REDIRECTS and "location" in found:
        return _as_utf8(found["location"][0])
    if status != 200:
        momentary = status in _MOMENTARY or status >= 500
        raise Failure(f"its host answers {status}", momentary=momentary)
    if _keeps_out(found.get("x-robots-tag", [])):
        raise Failure("its host keeps it out of training (X-Robots-Tag)", momentary=False)
    coding = ",".join(found.get("content-encoding", [])).strip().lower()
    if coding not in ("", "identity"):
        raise Failure(f"compressed ({coding[:20]}), which was not asked for", momentary=False)
    body = bytearray()
    for piece in response.iter_stream():
        body += piece
        if len(body) > max_bytes:
            raise Failure(f"more than {max_bytes:,} bytes", momentary=False)
    return bytes(body)


def _as_utf8(text: str) -> str:
    """A header as the UTF-8 that it often is."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeDecodeError:
        return text


def _keeps_out(values: Iterable[str]) -> bool:
    """Whether a host asks everybody to leave an image out. A rule that begins with a name is for that visitor."""
    for value in values:
        visitor, mark, rules = value.partition(":")
        if mark and visitor.strip().lower() != "vlsi":
            continue
        if _KEEP_OUT & {rule.strip().lower() for rule in (rules if mark else value).split(",")}:
            return True
    return False


def _cause(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


class _Connector(NetworkBackend):
    """Makes the one connection of a request, to a number that was looked up here and found allowed."""

    def __init__(self, address: Address, deadline: float, patience: float, network: Network) -> None:
        self._address, self._deadline, self._network = address, deadline, network
        self._patience = patience  # seconds for one connection

    def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> NetworkStream:
        """Look the host up, judge every number, and connect to the first that takes a connection."""
        numbers = self._numbers(host, port)[:MAX_NUMBERS]
        for place, number in enumerate(numbers):
            left = _left(self._deadline, httpcore2.ConnectTimeout)
            try:
                stream = self._network.dial(number, port, min(self._patience, left / (len(numbers) - place)))
                return _Timed(stream, self._deadline)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if place + 1 == len(numbers):
                    raise
        raise AssertionError("a host has at least one number")

    def _numbers(self, host: str, port: int) -> list[str]:
        if as_number(host) is not None:  # judged when the address was read
            return [host]
        found = _in_time(lambda: self._network.look_up(host, port), self._deadline)
        for text in found:
            number = as_number(text)
            if number is None or not is_open(number, private=self._address.private):
                # The number is not told: data shall not map a network through messages.
                raise BadRecord("image-address", f"{self._address.place} is not at a public address")
        if not found:
            raise Failure(f"{host} has no address", momentary=True)
        return found


def _in_time(look_up: Callable[[], Sequence[str]], deadline: float) -> list[str]:
    """Names are looked up by the system, which knows no time limit: in a thread that may be left behind."""
    answers: queue.SimpleQueue[Sequence[str] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(look_up())
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=_left(deadline, httpcore2.ConnectTimeout))
    except queue.Empty:
        raise Failure("looking up its host took too long", momentary=True) from None
    if isinstance(answer, Exception):
        unknown = isinstance(answer, socket.gaierror) and answer.errno == socket.EAI_NONAME
        why = getattr(answer, "strerror", None) or type(answer).__name__
        raise Failure(f"its host cannot be found ({why})", momentary=True, again=not unknown) from answer
    return list(answer)


class _Timed(NetworkStream):
    """A connection whose every operation has to end by one moment."""

    def __init__(self, stream: NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> NetworkStream:
        left = _left(self._deadline, httpcore2.ConnectTimeout)
        return _Timed(self._stream.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float, late: type[Exception]) -> float:
    """Seconds that are left.

    Raises:
        late: none are.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise late("no time is left")
    return left
