"""A judge: a language model behind an OpenAI-compatible address that reads answers, and the protocol of its verdicts.

All of the harness's own ways to a judge lead here (:mod:`vlsi_cli.engine.evaluation.guard`), so one setting serves all
benchmarks, and the first failure is an error and not a score.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from vlsi_cli.engine.evaluation.journal import Journal
from vlsi_cli.engine.evaluation.verdicts import FORMATS
from vlsi_cli.errors import EvaluationError

KEY_VARIABLES = ("VLSI_JUDGE_KEY", "OPENAI_API_KEY")
_BUSY = {408, 409, 425, 429, 500, 502, 503, 504}
_MOST_PER_SAMPLE = 40
"""More questions than this for one sample mean that the harness asks in circles."""
#: 1 x 1 pixel, for asking whether a judge takes pictures.
_DOT = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"
)


class JudgeFailure(BaseException):
    """The judge failed. Not an Exception on purpose: the harness's tasks catch those and score 0 or 100 instead."""


@dataclass(frozen=True)
class Judge:
    """An OpenAI-compatible server and a model on it.

    Args:
        model: its name on the server.
        url: base address, or that of `chat/completions`.
        timeout: seconds for one answer.
        attempts: how often a busy or silent server is asked.
    """

    model: str
    url: str
    timeout: float = 60.0
    attempts: int = 3
    pause: float = 1.0

    @property
    def address(self) -> str:
        """The whole address that questions go to."""
        base = self.url.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"

    def ask(self, messages: list[dict[str, Any]], *, max_tokens: int, temperature: float) -> tuple[str, str]:
        """The judge's answer and the name that the server gives its model.

        Raises:
            JudgeFailure: refused, silent for all attempts, or an answer that is none.
        """
        limits: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
        if self.model.startswith(("gpt-5", "o1", "o3", "o4")):  # these refuse the usual two words
            limits = {"max_completion_tokens": max(max_tokens, 2048)}
        body = json.dumps({"model": self.model, "messages": messages, **limits}).encode()
        problem = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(self._request(body), timeout=self.timeout) as response:
                    return self._read(response.read())
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code} {error.reason}"
                if error.code not in _BUSY:
                    break
            except TimeoutError:
                problem = f"no answer within {self.timeout:g} s"
            # the last of these: cut off in the middle
            except (OSError, ValueError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                timed_out = isinstance(reason, TimeoutError)
                problem = (
                    f"no answer within {self.timeout:g} s"
                    if timed_out
                    else str(reason) or type(reason).__name__
                )
        raise JudgeFailure(f"the judge {self.model} at {self.address} failed: {problem}")

    def _request(self, body: bytes) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if key := next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None):
            headers["Authorization"] = f"Bearer {key}"
        return urllib.request.Request(self.address, data=body, headers=headers, method="POST")

    def _read(self, raw: bytes) -> tuple[str, str]:
        try:
            answer = json.loads(raw)
            return str(answer["choices"][0]["message"]["content"] or ""), str(
                answer.get("model") or self.model
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise JudgeFailure(
                f"the judge {self.model} at {self.address} answered something that is not a chat completion: "
                f"{raw[:80]!r}"
            ) from None

    def probe(self, *, pictures: bool) -> str:
        """Ask something simple, so that a wrong key or address is known before the first sample.

        Returns:
            The name that the server gives its model.

        Raises:
            EvaluationError: it does not answer.
        """
        content: list[dict[str, Any]] = [{"type": "text", "text": "Reply with the word: ready"}]
        if pictures:
            content.append({"type": "image_url", "image_url": {"url": _DOT}})
        try:
            # room for a model that thinks before it speaks
            text, name = self.ask([{"role": "user", "content": content}], max_tokens=256, temperature=0.0)
        except JudgeFailure as failure:
            raise EvaluationError(
                f"{failure}, before any question was asked",
                hint=f"check --judge-url, --judge-model and the key in {' or '.join(KEY_VARIABLES)}; "
                "--skip-unjudged does without",
            ) from None
        if not text.strip():
            raise EvaluationError(f"the judge {self.model} at {self.address} answers with nothing")
        return name


@dataclass
class Session:
    """What a judge says about the answers of one model to one benchmark.

    Verdicts are kept on disk with their prompts, by judge and by everything the judge was shown; a verdict that could
    not be used is asked for again in the next run.

    Args:
        judge: None when the benchmark is said to need none, or none is configured: being asked then is an error.
        verdict: a key of ``FORMATS``.
        journal: where verdicts are kept.
        samples: how many answers there are to judge.
        known: whether anything is said about what the benchmark needs.
    """

    title: str
    judge: Judge | None
    verdict: str
    journal: Journal
    samples: int
    known: bool = True
    asked: int = 0
    reused: int = 0
    unusable: list[str] = field(default_factory=list)
    texts: set[str] = field(default_factory=set)
    name: str | None = None

    def ask(self, messages: list[dict[str, Any]], *, max_tokens: int, temperature: float) -> tuple[str, str]:
        """A verdict that the harness can read, and the judge's name.

        Raises:
            JudgeFailure: no judge, a judge that fails, or one that is asked in circles.
        """
        if self.judge is None:
            why = "though it is said to need none" if self.known else "and none is configured (--judge-model)"
            raise JudgeFailure(f"{self.title} asked for a judge, {why}")
        form = FORMATS[self.verdict]
        seen = [self.judge.address, self.judge.model, messages, max_tokens, temperature]
        key = hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()
        line = self.journal.lines.get(key)
        if line is not None and line["usable"]:
            self.reused += 1
        else:
            if self.asked >= _MOST_PER_SAMPLE * self.samples:
                raise JudgeFailure(
                    f"{self.title} has asked its judge {self.asked} times for {self.samples} answers"
                )
            text, name = self.judge.ask(messages, max_tokens=max_tokens, temperature=temperature)
            self.asked += 1
            line = {
                "verdict": text,
                "usable": form.reads(text.strip()),
                "judge": name,
                "prompt": _words(messages),
            }
            self.journal.add(key, line)
        self.name = line["judge"]
        text = str(line["verdict"]).strip()
        if not line["usable"]:
            self.unusable.append(text)
            text = form.stand_in
        text = form.plain(text)
        self.texts.add(text)
        return text, str(self.name)


def _words(messages: list[dict[str, Any]]) -> list[str]:
    """The texts of a prompt; its pictures are in the benchmark."""
    texts = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts += [str(part.get("text")) for part in parts if part.get("type") == "text"]
    return texts
