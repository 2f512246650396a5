"""A small world for fetching images: a server on this machine, names that lead to it, and pages that misbehave.

    with ImageServer() as server:
        server.pages["/a.png"] = image
        fetch("http://images.example/a.png", ..., server.network())

Connections to any number are led to the server, and noted in ``dialled``: what was to be connected to is what counts.
"""

from __future__ import annotations

import io
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpcore2
from PIL import Image

from tests.local_server import LocalServer
from vlsi_cli.engine.data.fetching import Network

HOST, PUBLIC = "images.example", "93.184.215.14"
Page = bytes | Callable[[BaseHTTPRequestHandler], None]


def image(colour: str = "red", size: tuple[int, int] = (40, 32)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


class ImageServer(LocalServer):
    """The server; a context manager. ``names`` says at which numbers hosts are."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.pages: dict[str, Page] = {}
        self.names: dict[str, list[str]] = {HOST: [PUBLIC]}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.dialled: list[tuple[str, int]] = []
        self.looked_up: list[str] = []
        self.slept: list[float] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.asked.append((self.path, dict(self.headers)))
                self.close_connection = True
                page = outer.pages.get(self.path)
                if page is None:
                    answer(self, b"", status=404)
                elif isinstance(page, bytes):
                    answer(self, page)
                else:
                    with suppress(OSError):  # the other side has had enough
                        page(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # handshakes that are broken off on purpose

        self._server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = int(self._server.server_address[1])

    def network(self, trust: ssl.SSLContext | None = None) -> Network:
        """The world as this process sees it."""

        def look_up(host: str, port: int) -> list[str]:
            self.looked_up.append(host)
            return named(self.names, host, port)

        def dial(number: str, port: int, seconds: float) -> httpcore2.NetworkStream:
            self.dialled.append((number, port))
            return dialled(self.port, number, port, seconds)

        return Network(look_up, dial, lambda: trust or ssl.create_default_context(), self.slept.append)

    def network_of_workers(self) -> Network:
        """The same for other processes, where nothing is noted."""
        return Network(
            partial(named, self.names), partial(dialled, self.port), ssl.create_default_context, nap
        )


def named(names: Mapping[str, list[str]], host: str, port: int) -> list[str]:
    if host not in names:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return names[host]


def dialled(server: int, number: str, port: int, seconds: float) -> httpcore2.NetworkStream:
    return httpcore2.SyncBackend().connect_tcp("127.0.0.1", server, timeout=seconds)


def nap(seconds: float) -> None:
    pass


def answer(page: BaseHTTPRequestHandler, body: bytes, *, status: int = 200, **headers: str) -> None:
    page.send_response(status)
    for name, value in headers.items():
        page.send_header(name.replace("_", "-"), value)
    page.send_header("Content-Length", str(len(body)))
    page.end_headers()
    page.wfile.write(body)


def says(body: bytes = b"", *, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """A page of a status and headers."""
    return lambda page: answer(page, body, status=status, **headers)


def leads_to(where: str, status: int = 302) -> Callable[[BaseHTTPRequestHandler], None]:
    """A redirect."""
    return says(status=status, Location=where)


def raw(*pieces: bytes, forever: bytes = b"", wait: float = 0.0) -> Callable[[BaseHTTPRequestHandler], None]:
    """Bytes as they are, then one piece again and again until the other side has had enough."""

    def send(page: BaseHTTPRequestHandler) -> None:
        for piece in pieces:
            page.wfile.write(piece)
        stop = threading.Event()
        while forever:
            page.wfile.write(forever)
            page.wfile.flush()
            stop.wait(wait)

    return send
