"""A model answers records: which turns, from which history, and what of its answers can be trained on.

Records are taken in windows. In each, the first open turn of all of them is answered in batches, then the second given
the first, and so on. Every answer is in the journal before the next batch begins, under a key of what it depends on:
model and manner, the conversation before it, the pixels. What is known is not asked again.

A batch holds prompts of like length, so that little of it is padding. The longest come first: where memory is too small
for so many of them, that shows at once. With workers, the next batch is read and decoded while the model answers this
one, and the pictures of the next window are looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from vlsi_cli.engine.data import thinking
from vlsi_cli.engine.data.records import BadRecord, Message, Record, mentions_image
from vlsi_cli.engine.data.template import ChatEncoder, EncodedPrompt
from vlsi_cli.engine.data.workers import Pending, Workers
from vlsi_cli.engine.evaluation.generation import AUTO_BATCH, Answerer, Question, Settings, as_dict
from vlsi_cli.engine.evaluation.journal import Journal
from vlsi_cli.engine.evaluation.labels import (
    CUT,
    EMPTY,
    Outcome,
    Place,
    known_answer,
    open_turns,
    record_digest,
    with_answers,
)
from vlsi_cli.engine.evaluation.prompting import PromptMaker

#: Batches in a window: the last batch of each turn of a window is not full, and lengths are alike in a window only.
_BATCHES = 16
_STAND_IN = "."


@dataclass(frozen=True)
class Manner:
    """How records are answered.

    Attributes:
        identity: digest of all else that an answer depends on: weights, processor, precision, sampling.
        settings: length of answers; not part of the identity, since a longer bound changes no answer that has ended.
        replace: answer every turn anew, each behind the answers before it, and not just a last one that is open.
        think: have the model think before it answers, and keep its thoughts.
    """

    identity: str
    settings: Settings
    replace: bool = False
    think: bool = False


def can_think(encoder: ChatEncoder) -> bool:
    """Whether a model can be had to think before it answers, always does, or has tokens for it."""
    told = thinking.can_be_told(encoder.processor.chat_template)
    return encoder.always_thinks or encoder.begins_thoughts or told


@dataclass
class _Talk:
    """A record that is being answered: the places that are open, and the answers so far with their keys.

    ``looking`` finds the digests of its pictures, which ``pictures`` then are.
    """

    place: Place
    record: Record
    open: list[int]
    looking: Pending[tuple[str, ...] | BadRecord] | None
    pictures: tuple[str, ...] = ()
    texts: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    left_out: str | None = None

    @property
    def so_far(self) -> Record:
        """The record with the answers so far."""
        return with_answers(self.record, self.open[: len(self.texts)], self.texts)


@dataclass
class _Asked:
    """A question that has to be asked, as a record that ends in a stand-in; ``talks`` wait for its answer."""

    key: str
    record: Record
    talks: list[_Talk]


class Labeller:
    """Has a model answer records.

    Args:
        answerer: makes the model ready when it is first needed.
        encoder: reads records as the model does.
        journal: this process's; ``earlier`` the answers there were before.
        manner: how they are answered.
        skip: hears of a record that the model cannot be asked, and may raise.
        batch_size: questions together, None for `auto`.
        workers: processes that read and decode ahead; they change no answer.
        prefetch: questions that they are ahead of the model; None for a batch.
        told: hears about how many records are done, and how many answers were generated, whenever there are more.

    Attributes:
        generated: answers; ``tokens`` in all of them.
    """

    def __init__(
        self,
        answerer: Callable[[], Answerer],
        encoder: ChatEncoder,
        journal: Journal,
        manner: Manner,
        *,
        earlier: dict[str, dict[str, Any]],
        skip: Callable[[Place, BadRecord], None],
        batch_size: int | None = None,
        workers: int = 0,
        prefetch: int | None = None,
        told: Callable[[int, int], None] = lambda records, answers: None,
    ) -> None:
        self._answerer, self._encoder, self._journal, self._manner = answerer, encoder, journal, manner
        self._earlier, self._skip, self._told = earlier, skip, told
        self._can_think = can_think(encoder)
        batch = batch_size or AUTO_BATCH
        self._window = batch * _BATCHES
        self._workers = Workers(PromptMaker(encoder), workers)
        self._ahead = (prefetch or batch) if workers else 0
        self._records: Iterator[tuple[Place, Record]] = iter(())
        self._begun: list[_Talk] = []
        self.generated = self.tokens = self._done = 0

    def run(self, records: Iterable[tuple[Place, Record]]) -> dict[Place, Outcome]:
        """Answer records; those that the model cannot be asked are not in the result."""
        found: dict[Place, Outcome] = {}
        self._records = iter(records)
        try:
            while talks := self._next_window():
                asking = [talk for talk in talks if talk.open]
                before = self.generated, len(talks) / max(1, sum(len(talk.open) for talk in talks))
                while asking:
                    self._ask(asking, before)
                    asking = [talk for talk in asking if self._goes_on(talk)]
                self._done += len(talks)
                self._told(self._done, self.generated)
                for talk in talks:
                    if talk.left_out != _UNUSABLE:
                        digest = record_digest(talk.record)
                        found[talk.place] = Outcome(digest, tuple(talk.keys), talk.left_out)
        finally:
            self._workers.close()
        return found

    def _next_window(self) -> list[_Talk]:
        self._begin(self._window)
        talks, self._begun = self._begun, []
        return talks

    def _begin(self, count: int) -> None:
        """Have the pictures of so many more records looked at, as far as the next window reaches."""
        for place, record in islice(self._records, min(count, self._window - len(self._begun))):
            places = open_turns(record, anew=self._manner.replace)
            wanted = places and record.images
            looking = self._workers.give("pictures", replace(record, more=None)) if wanted else None
            self._begun.append(_Talk(place, record, places, looking))

    # ---------------------------------------------------------------- one turn of a window

    def _ask(self, talks: list[_Talk], before: tuple[int, float]) -> None:
        """Have the journal hold the next answer of every conversation.

        Args:
            before: answers generated before this window, and records of it that each more stands for.
        """
        missing = self._missing(talks)
        if not missing:
            return  # the model need not even be loaded
        for question, reply in self._answerer().answer(self._questions(missing)):
            self._journal.add(
                self._stored_as(question.key, cut=reply.cut), {"sample": question.record.id, **as_dict(reply)}
            )
            self.generated += 1
            self.tokens += reply.tokens
            self._told(self._done + int((self.generated - before[0]) * before[1]), self.generated)

    def _missing(self, talks: list[_Talk]) -> list[_Asked]:
        """The questions whose answers are not known, longest first; each question once, however often it comes."""
        missing: dict[str, _Asked] = {}
        for talk in talks:
            place = talk.open[len(talk.texts)]
            try:
                key = self._key(talk, place)
            except BadRecord as bad:
                self._give_up(talk, bad)
                continue
            talk.keys.append(key)
            if key in missing:
                missing[key].talks.append(talk)
            elif self._known(key) is None:
                missing[key] = _Asked(key, self._asked(talk, place), [talk])
        pending = [self._workers.give("length", asked.record) for asked in missing.values()]
        lengths = {key: each.result() for key, each in zip(missing, pending, strict=True)}
        return sorted(missing.values(), key=lambda asked: -lengths[asked.key])

    def _asked(self, talk: _Talk, place: int) -> Record:
        """The conversation up to a place, where a stand-in is the answer; it is told by it whether to think."""
        stand_in = _thought(_STAND_IN, _STAND_IN) if self._manner.think else _STAND_IN
        before = talk.so_far.messages[:place]
        shown = sum(isinstance(part, int) for message in before for part in message.parts)
        messages = (*before, Message("assistant", (stand_in,)))
        return replace(talk.record, messages=messages, images=talk.record.images[:shown], more=None)

    def _questions(self, missing: list[_Asked]) -> Iterator[Question]:
        """The questions with their prompts; the workers are ahead of whoever takes them."""
        begun: deque[tuple[_Asked, Pending[EncodedPrompt | BadRecord]]] = deque()
        rest = iter(missing)
        while True:
            for asked in islice(rest, self._ahead + 1 - len(begun)):
                begun.append((asked, self._workers.give("prompt", asked.record)))
                if self._ahead:
                    self._begin(1)
            if not begun:
                return
            asked, pending = begun.popleft()
            prompt = pending.result()
            if isinstance(prompt, BadRecord):
                for talk in asked.talks:
                    self._give_up(talk, prompt)
            else:
                yield Question(asked.key, asked.record, self._manner.settings, prompt)

    def _give_up(self, talk: _Talk, bad: BadRecord) -> None:
        talk.left_out = _UNUSABLE
        self._skip(
            talk.place,
            BadRecord(bad.reason, bad.detail, record=talk.record.id, where=talk.record.where),
        )

    def _goes_on(self, talk: _Talk) -> bool:
        """Take the answer of this turn; whether there is another turn."""
        if talk.left_out is not None:
            return False
        line = self._known(talk.keys[-1])
        assert line is not None
        text = "" if line["cut"] else self.taken(line["text"])
        if not text:
            talk.left_out = CUT if line["cut"] else EMPTY
            return False
        talk.texts.append(text)
        if len(talk.texts) < len(talk.open):
            return True
        talk.left_out = self._unreadable(talk)
        return False

    def taken(self, text: str) -> str:
        """What a record holds of what the model said, "" where that is no answer: without white space around it, with
        thoughts only where they were asked for."""
        if not self._can_think:
            return text.strip()
        thoughts, words = thinking.parts(text)
        begun = self._manner.think or self._encoder.always_thinks
        if self._encoder.begins_thoughts:
            begun = text.startswith(thinking.OPEN)
        if thinking.CLOSE not in text and begun:
            return ""  # thoughts that came to no answer
        return _thought(thoughts, words) if self._manner.think and words else words

    def _unreadable(self, talk: _Talk) -> str | None:
        """Why a reader would refuse the answered record; None where it would not."""
        if any(mentions_image(text) for text in talk.texts):
            return "image-in-response"
        try:
            self._encoder.turns(talk.so_far)
        except BadRecord as bad:
            return bad.reason
        return None

    # ---------------------------------------------------------------- keys

    def _key(self, talk: _Talk, place: int) -> str:
        """A digest of everything that the answer at a place depends on.

        Raises:
            BadRecord: a picture is not there.
        """
        if talk.looking is not None:
            found, talk.looking = talk.looking.result(), None
            if isinstance(found, BadRecord):
                raise found
            talk.pictures = found
        digest = hashlib.sha256(self._manner.identity.encode())
        for message in talk.so_far.messages[:place]:
            parts = [part if isinstance(part, str) else [talk.pictures[part]] for part in message.parts]
            digest.update(json.dumps([message.role, parts]).encode())
        return digest.hexdigest()

    def _stored_as(self, key: str, *, cut: bool) -> str:
        """Under what an answer lies in the journal: one that did not end is another under every bound."""
        return f"{key}/{self._manner.settings.max_new_tokens}" if cut else key

    def _known(self, key: str) -> dict[str, Any] | None:
        return known_answer(key, self._manner.settings.max_new_tokens, self._journal.lines, self._earlier)


_UNUSABLE = "unusable"


def _thought(thoughts: str, words: str) -> str:
    return f"{thinking.OPEN}\n{thoughts}\n{thinking.CLOSE}\n\n{words}"
