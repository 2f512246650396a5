"""A port for programs that are told where to meet before any of them has opened it."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """One that nobody has, below those that Linux hands out.

    One of those could be anybody's, as soon as it is let go: the next program that asks for any port may get it, and
    each connection to somewhere has one too.
    """
    for port in random.SystemRandom().sample(range(12_000, 32_000), 200):
        with socket.socket() as trial:
            try:
                trial.bind(("", port))
            except OSError:
                continue
        return port
    raise AssertionError("there is no free port")
