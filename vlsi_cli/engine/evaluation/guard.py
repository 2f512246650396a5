"""While answers are scored: every way of the harness to a judge leads to ours, and random fill-ins are counted.

Its newer tasks ask through a provider made when their code is loaded, its older ones post to an address themselves.
Both are caught; any other HTTP request made while scoring ends the run, since it could only be a judge that nobody
configured. Everything is put back at the end of the block.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import requests
from lmms_eval.llm_judge import ProviderFactory, Response, ServerInterface
from PIL import Image

from vlsi_cli.engine.evaluation.judge import JudgeFailure, Session

_SESSIONS: list[Session] = []
_ELSEWHERE = "a task sent something to {} while it was scored, and only chats with a judge are served"


class Provider(ServerInterface):
    """What the harness's tasks get in place of its own providers, whatever they ask for."""

    def is_available(self) -> bool:
        """Always: whether a judge is there was found out before."""
        return True

    def evaluate(self, request: Any) -> Any:
        """One verdict, through the session in force."""
        config = request.config or self.config
        messages = [dict(message) for message in self.prepare_messages(request)]
        _with_pictures(messages, request.images or [])
        text, name = _session().ask(
            messages, max_tokens=int(config.max_tokens), temperature=float(config.temperature or 0.0)
        )
        return Response(content=text, model_used=name)

    async def evaluate_async(self, request: Any) -> Any:
        """The same for tasks that wait for it."""
        return self.evaluate(request)


def install() -> None:
    """Put our provider in the place of every one of the harness's; for good, since tasks make theirs when loaded."""
    for name in list(ProviderFactory._provider_classes):
        ProviderFactory._provider_classes[name] = Provider


def _session() -> Session:
    if not _SESSIONS:
        raise JudgeFailure("a judge was asked while nothing was being scored")
    return _SESSIONS[-1]


def _with_pictures(messages: list[dict[str, Any]], images: list[Any]) -> None:
    """Pictures in the standard form: LLaVA-Bench-Wilder writes its own address as a bare string, and hands the same
    picture over again as base64 text, which the harness's provider would take for a file name."""
    last = max((n for n, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None:
        return
    content = messages[last]["content"]
    parts: list[dict[str, Any]] = (
        [{"type": "text", "text": content}] if isinstance(content, str) else [dict(part) for part in content]
    )
    for part in parts:
        if part.get("type") == "image_url" and isinstance(part["image_url"], str):
            part["image_url"] = {"url": part["image_url"]}
    if not any(part.get("type") == "image_url" for part in parts):
        parts += [{"type": "image_url", "image_url": {"url": _address(image)}} for image in images]
    messages[last]["content"] = parts if len(parts) > 1 else content


def _address(image: Any) -> str:
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, format="PNG")
        image = base64.b64encode(buffer.getvalue())
    text = image.decode() if isinstance(image, bytes) else str(image)
    return text if text.startswith("data:") else f"data:image/png;base64,{text}"


class _Answered:
    """As much of an HTTP response as the harness's older tasks look at."""

    status_code = 200
    ok = True

    def __init__(self, text: str, name: str) -> None:
        self._body = {"choices": [{"message": {"role": "assistant", "content": text}}], "model": name}

    def raise_for_status(self) -> None:
        """Nothing: it was answered."""

    def json(self) -> dict[str, Any]:
        """The chat completion."""
        return self._body


def _post(url: str, *args: Any, json: dict[str, Any] | None = None, **kwargs: Any) -> _Answered:
    if not json or "messages" not in json:
        raise JudgeFailure(_ELSEWHERE.format(url))
    limit, warmth = int(json.get("max_tokens", 256)), float(json.get("temperature", 0.0))
    return _Answered(*_session().ask(json["messages"], max_tokens=limit, temperature=warmth))


def _clients() -> list[type]:
    """Whatever sends HTTP requests by way of another library than the standard one."""
    found: list[type] = [requests.sessions.Session]
    for name in ("httpx", "httpx2"):  # what the openai package sends with, by its version
        if importlib.util.find_spec(name) is not None:
            module = importlib.import_module(name)
            found += [module.Client, module.AsyncClient]
    return found


def _no_request(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    raise JudgeFailure(_ELSEWHERE.format(request.url))


@dataclass
class FillIns:
    """How many answers a task could not read and replaced by chance."""

    count: int = 0

    def restart(self) -> None:
        """Forget what was drawn before scoring, such as a shuffle of options in a prompt."""
        self.count = 0


@contextmanager
def scoring(session: Session, folders: Sequence[Path]) -> Iterator[FillIns]:
    """Serve a session's verdicts, and count draws from `random` made by code in the tasks' folders."""
    fills = FillIns()
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(requests, "post", _post))
        for owner in _clients():
            stack.enter_context(mock.patch.object(owner, "send", _no_request))
        for name in ("choice", "randint"):
            counted = _counting(getattr(random, name), fills, tuple(str(folder) for folder in folders))
            stack.enter_context(mock.patch.object(random, name, counted))
        _SESSIONS.append(session)
        try:
            yield fills
        finally:
            _SESSIONS.pop()


def _counting(draw: Callable[..., Any], fills: FillIns, folders: tuple[str, ...]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        fills.count += str(sys._getframe(1).f_globals.get("__file__")).startswith(folders)
        return draw(*args, **kwargs)

    return counted
