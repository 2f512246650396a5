"""Our model as one of the harness's, and the journal between: nothing that was answered once is answered again.

Only imported where lmms-eval is installed (:mod:`vlsi_cli.engine.evaluation.harness`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms

from vlsi_cli.engine import processes
from vlsi_cli.engine.evaluation.generation import Answerer, Question, Reply, Settings, as_dict
from vlsi_cli.engine.evaluation.journal import Journal
from vlsi_cli.engine.evaluation.questions import question_from, settings_from
from vlsi_cli.engine.evaluation.sharing import ALONE, Part, Sharing
from vlsi_cli.errors import ConfigError

Told = Callable[[int, int], None]


class Answered(BaseException):
    """This process has answered its share, and scoring is the first one's. Not an Exception, which the harness's code
    could take for a sample that failed."""


class Adapter(lmms):
    """A chat model for the harness.

    Args:
        answerer: the model.
        journal: where the answers of this process are kept.
        sharing: which of the questions are this process's.
        tasks: the tasks by name, as far as they are ours.
        longest: overrides the length of every task's answers.
        told: hears of answers there are, and answers wanted.
    """

    is_simple = False

    def __init__(
        self,
        answerer: Answerer,
        journal: Journal,
        *,
        sharing: Sharing = ALONE,
        tasks: dict[str, Any] | None = None,
        longest: int | None = None,
        told: Told = lambda done, total: None,
    ) -> None:
        super().__init__()
        self.answerer = answerer
        self.journal = journal
        self.accelerator = None  # the harness makes one where this is missing, and has no use for it
        self.ignored: set[str] = set()
        self.settings: set[Settings] = set()
        self.keys: set[str] = set()
        self._sharing = sharing
        self._tasks = tasks or {}
        self._longest = longest
        self._told = told
        self._scoring: list[Callable[[], None]] = []

    def on_scoring(self, calls: list[Callable[[], None]]) -> None:
        """Call these when the answers are complete and scoring begins."""
        self._scoring = calls

    def clean(self) -> None:
        """The harness calls this between answering and scoring, to throw the model away; it is wanted again.

        Raises:
            Answered: in every process but the first.
        """
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not self._sharing.scores:
            raise Answered
        for call in self._scoring:
            call()

    # ---------------------------------------------------------------- what the harness asks for

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """Answers to chat requests."""
        replies = self._replies(requests, self._asked, self.answerer.answer)
        return [GenerationResult(r.text, TokenCounts(output_tokens=r.tokens)) for r in replies]

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """Losses of given answers: summed over the answer and its end of turn, in nats.

        A loss, not the log-likelihood that the harness documents: it takes the smallest.
        """
        replies = self._replies(requests, self._given, self.answerer.losses)
        return [GenerationResult((r.loss, r.greedy)) for r in replies]

    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
        """Not supported: no benchmark of the paper needs it."""
        raise ConfigError("tasks that ask in several rounds are not supported")

    # ---------------------------------------------------------------- questions

    def _asked(self, request: Any) -> Question:
        _, to_messages, wanted, doc_id, task, split = request.args
        own_stops = bool(getattr(self._tasks.get(task), "own_stops", False))
        settings, ignored = settings_from(wanted, longest=self._longest, own_stops=own_stops)
        self.ignored.update(ignored)
        messages = to_messages(self.task_dict[task][split][doc_id])
        return self._question(task, doc_id, messages, settings, None)

    def _given(self, request: Any) -> Question:
        context, answer, to_visual, doc_id, task, split = request.args
        pictures = to_visual(self.task_dict[task][split][doc_id]) or []
        parts = [
            *({"type": "image", "url": picture} for picture in pictures),
            {"type": "text", "text": context},
        ]
        return self._question(
            task, doc_id, [{"role": "user", "content": parts}], Settings(1), str(answer).strip()
        )

    def _question(
        self, task: str, doc_id: int, messages: Any, settings: Settings, answer: str | None
    ) -> Question:
        question = question_from(f"{task}:{doc_id}", messages, settings, answer)
        self.settings.add(settings)
        return question

    def _replies(
        self,
        requests: list[Any],
        make: Callable[[Any], Question],
        work: Callable[[Iterable[Question]], Iterator[tuple[Question, Reply]]],
    ) -> list[Reply]:
        """A reply to every request; those in the journal are not asked for again.

        In a process that does not score, replies without content: they end there.
        """
        keys: dict[int, str] = {}
        waiting: set[str] = set()
        mine = self._sharing.mine(len(requests))

        def missing() -> Iterator[Question]:
            for number in mine:
                with _drawing_for(requests[number]):
                    question = make(requests[number])
                keys[number] = question.key
                if not self._sharing.has(question.key, self.journal) and question.key not in waiting:
                    waiting.add(question.key)
                    yield question

        for question, reply in work(missing()):
            self.journal.add(question.key, {"sample": question.record.id, **as_dict(reply)})
            waiting.discard(question.key)
            self._told(len(keys) - len(waiting), len(mine))
        whole = self._sharing.combine(Part(keys, self.settings, self.ignored), self.journal)
        if whole is None:
            return [Reply("", 0, loss=0.0, greedy=False)] * len(requests)
        self.settings, self.ignored = whole.settings, whole.ignored
        self.keys.update(whole.keys.values())
        return [reply_from(self.journal.lines[whole.keys[number]]) for number in range(len(requests))]


@contextmanager
def _drawing_for(request: Any) -> Iterator[None]:
    """Let what a task draws at random for a prompt, such as an order of options, depend on the sample alone.

    The harness draws from one sequence, in which a sample's draw depends on the samples before it. Then the same
    question would have another prompt, and so another answer, in each process and under another limit.
    """
    python, arrays = random.getstate(), np.random.get_state()
    random.seed(f"{request.task_name}:{request.doc_id}")
    np.random.seed(random.getrandbits(32))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def reply_from(line: dict[str, Any]) -> Reply:
    """A reply from its line in a journal."""
    return Reply(**{name: value for name, value in line.items() if name not in ("key", "sample")})


class VlsiModel(Adapter):
    """The same for the harness's own command line: ``lmms-eval --model vlsi --model_args pretrained=FOLDER``.

    Nothing is kept between runs there; ``vlsi eval`` does that. Of several processes, the harness itself deals out the
    questions and gathers the scores.

    Args:
        pretrained: hub id or folder.
        batch_size: questions together; "auto" halves when memory runs out.
        device, precision: as `vlsi eval` has them.
        max_new_tokens: overrides the length of every task's answers.
    """

    def __init__(
        self,
        pretrained: str = "demo/small",
        batch_size: int | str = "auto",
        device: str | None = None,
        precision: str = "auto",
        max_new_tokens: int | None = None,
        **unknown: Any,
    ) -> None:
        from vlsi_cli.engine.backbones.load import load_backbone
        from vlsi_cli.engine.devices import resolve_device, resolve_precision

        extra = sorted(set(unknown) - {"max_batch_size"})
        if extra:
            raise ConfigError(f"'{extra[0]}' is not an argument of the model vlsi")
        place = processes.own_device(resolve_device(device or "auto"), chosen=":" in (device or ""))
        backbone = load_backbone(pretrained, dtype=resolve_precision(precision, place), device=place)
        size = None if batch_size == "auto" else int(batch_size)
        super().__init__(Answerer(backbone, size), _Memory(), longest=max_new_tokens)
        self.device = place
        if processes.size() > 1:
            del self.accelerator  # the harness exchanges counts with one of its own


class _Memory(Journal):
    """A journal that is not written down."""

    def __init__(self) -> None:
        super().__init__(Path())

    def add(self, key: str, line: dict[str, Any]) -> None:
        """Keep a line until the process ends."""
        self.lines[key] = {"key": key, **line}
