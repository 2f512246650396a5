"""A model answers records: which turns, from which history, and what of its answers can be trained on.

Records are taken in windows. In each, the first open turn of all of them is answered in batches, then the second given
the first, and so on. Every answer is in the journal before the next batch begins, under a key of what it depends on:
model and manner, the conversation before it, the pixels. What is known is not asked again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from vlsi_cli.engine.data import thinking
from vlsi_cli.engine.data.collate import in_groups
from vlsi_cli.engine.data.images import is_address, locate
from vlsi_cli.engine.data.records import PLACEHOLDER, BadRecord, ImageRef, Message, Record
from vlsi_cli.engine.data.template import ChatEncoder
from vlsi_cli.engine.evaluation.generation import AUTO_BATCH, Answerer, Question, Settings, as_dict
from vlsi_cli.engine.evaluation.journal import Journal
from vlsi_cli.engine.files import file_sha256

#: Where a record stands: number of its source, and its index there.
Place = tuple[int, int]

#: Why an answer is not taken, beside the reasons for which a reader of the record would refuse it.
CUT, EMPTY = "answer-cut", "answer-empty"
#: Batches in a window: the last batch of each turn of a window is not full.
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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a record that could be read.

    Attributes:
        digest: of its text and its pictures' names: who reads it again can tell that it is the same.
        keys: of its answers in the journal, in the order of the turns; empty for one that was answered already.
        left_out: why it is not to be written; None for one that is.
    """

    digest: bytes
    keys: tuple[str, ...] = ()
    left_out: str | None = None


def can_think(encoder: ChatEncoder) -> bool:
    """Whether a model can be had to think before it answers, or always does."""
    return encoder.always_thinks or thinking.can_be_told(encoder.processor.chat_template)


def open_turns(record: Record, *, anew: bool) -> list[int]:
    """Places among the messages at which an answer is wanted: a missing last one, or every one."""
    count = len(record.messages)
    missing = [count] if record.messages[-1].role == "user" else []
    given = [place for place, message in enumerate(record.messages) if message.role == "assistant"]
    return (given if anew else []) + missing


def with_answers(record: Record, places: Sequence[int], texts: Sequence[str]) -> Record:
    """The record with these texts for the answers at these places."""
    messages = list(record.messages)
    for place, text in zip(places, texts, strict=True):
        messages[place : place + 1] = [Message("assistant", (text,))]
    return replace(record, messages=tuple(messages))


def record_digest(record: Record) -> bytes:
    """16 bytes of a record's text, roles and the names of its pictures."""
    names = [ref.path for ref in record.images]
    talk = [(message.role, message.parts) for message in record.messages]
    return hashlib.blake2b(json.dumps([record.id, talk, names]).encode(), digest_size=16).digest()


@dataclass
class _Talk:
    """A record that is being answered: the places that are open, and the answers so far with their keys."""

    place: Place
    record: Record
    open: list[int]
    texts: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    pictures: dict[int, str] = field(default_factory=dict)
    left_out: str | None = None

    @property
    def so_far(self) -> Record:
        """The record with the answers so far."""
        return with_answers(self.record, self.open[: len(self.texts)], self.texts)


class Labeller:
    """Has a model answer records.

    Args:
        answerer: makes the model ready when it is first needed.
        encoder: reads records as the model does.
        journal: this process's; ``earlier`` the answers there were before.
        manner: how they are answered.
        skip: hears of a record that the model cannot be asked, and may raise.
        batch_size: questions together, None for `auto`.
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
        told: Callable[[int, int], None] = lambda records, answers: None,
    ) -> None:
        self._answerer, self._encoder, self._journal, self._manner = answerer, encoder, journal, manner
        self._earlier, self._skip, self._told = earlier, skip, told
        self._can_think = can_think(encoder)
        self._window = (batch_size or AUTO_BATCH) * _BATCHES
        self.generated = self.tokens = self._done = 0

    def run(self, records: Iterable[tuple[Place, Record]]) -> dict[Place, Outcome]:
        """Answer records; those that the model cannot be asked are not in the result."""
        found: dict[Place, Outcome] = {}
        for window in in_groups(records, self._window):
            talks = [
                _Talk(place, record, open_turns(record, anew=self._manner.replace))
                for place, record in window
            ]
            asking = [talk for talk in talks if talk.open]
            before = self.generated, len(talks) / max(1, sum(len(talk.open) for talk in talks))
            while asking:
                self._ask(asking, before)
                asking = [talk for talk in asking if self._goes_on(talk)]
            self._done += len(talks)
            self._told(self._done, self.generated)
            for talk in talks:
                if talk.left_out != _UNUSABLE:
                    found[talk.place] = Outcome(record_digest(talk.record), tuple(talk.keys), talk.left_out)
        return found

    # ---------------------------------------------------------------- one turn of a window

    def _ask(self, talks: list[_Talk], before: tuple[int, float]) -> None:
        """Have the journal hold the next answer of every conversation.

        Args:
            before: answers generated before this window, and records of it that each more stands for.
        """
        questions = self._missing(talks)
        first = next(questions, None)
        if first is None:
            return  # the model need not even be loaded
        for question, reply in self._answerer().answer(chain([first], questions)):
            self._journal.add(
                self._stored_as(question.key, cut=reply.cut), {"sample": question.record.id, **as_dict(reply)}
            )
            self.generated += 1
            self.tokens += reply.tokens
            self._told(self._done + int((self.generated - before[0]) * before[1]), self.generated)

    def _missing(self, talks: list[_Talk]) -> Iterator[Question]:
        """The questions whose answers are not known; each question once, however often it comes."""
        waiting: set[str] = set()
        for talk in talks:
            place = talk.open[len(talk.texts)]
            try:
                key = self._key(talk, place)
                talk.keys.append(key)
                if key in waiting or self._known(key) is not None:
                    continue
                stand_in = _thought(_STAND_IN, _STAND_IN) if self._manner.think else _STAND_IN
                asked = talk.so_far.messages[:place]
                record = replace(talk.record, messages=(*asked, Message("assistant", (stand_in,))))
                prompt = self._encoder.encode_prompt(record)
            except BadRecord as bad:
                talk.left_out = _UNUSABLE
                self._skip(talk.place, bad.at(record=talk.record.id, where=talk.record.where))
                continue
            waiting.add(key)
            yield Question(key, record, self._manner.settings, prompt)

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
        if thinking.CLOSE not in text and (self._manner.think or self._encoder.always_thinks):
            return ""  # thoughts that came to no answer
        return _thought(thoughts, words) if self._manner.think and words else words

    def _unreadable(self, talk: _Talk) -> str | None:
        """Why a reader would refuse the answered record; None where it would not."""
        if any(PLACEHOLDER in text for text in talk.texts):
            return "image-in-response"
        try:
            self._encoder.turns(talk.so_far)
        except BadRecord as bad:
            return bad.reason
        return None

    # ---------------------------------------------------------------- keys

    def _key(self, talk: _Talk, place: int) -> str:
        """A digest of everything that the answer at a place depends on."""
        digest = hashlib.sha256(self._manner.identity.encode())
        for message in talk.so_far.messages[:place]:
            parts = [part if isinstance(part, str) else [self._pixels(talk, part)] for part in message.parts]
            digest.update(json.dumps([message.role, parts]).encode())
        return digest.hexdigest()

    def _pixels(self, talk: _Talk, number: int) -> str:
        if number not in talk.pictures:
            talk.pictures[number] = _content(talk.record.images[number], self._encoder)
        return talk.pictures[number]

    def _stored_as(self, key: str, *, cut: bool) -> str:
        """Under what an answer lies in the journal: one that did not end is another under every bound."""
        return f"{key}/{self._manner.settings.max_new_tokens}" if cut else key

    def _known(self, key: str) -> dict[str, Any] | None:
        return known_answer(key, self._manner.settings.max_new_tokens, self._journal.lines, self._earlier)


_UNUSABLE = "unusable"


def known_answer(key: str, longest: int, *journals: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """An answer by its key, with ``cut`` as it is under this bound of tokens; None where it has to be generated."""
    for lines in journals:
        if (line := lines.get(key)) is not None:
            return {**line, "cut": line["tokens"] >= longest}  # its end of turn is a token too
        if (line := lines.get(f"{key}/{longest}")) is not None:
            return line
    return None


def _thought(thoughts: str, words: str) -> str:
    return f"{thinking.OPEN}\n{thoughts}\n{thinking.CLOSE}\n\n{words}"


def _content(ref: ImageRef, encoder: ChatEncoder) -> str:
    """A digest of a picture's bytes, or of its pixels where it is not a file.

    Raises:
        BadRecord: it is not there.
    """
    if ref.picture is not None:
        about = f"{ref.picture.mode}{ref.picture.size}".encode()
        return hashlib.sha256(about + ref.picture.tobytes()).hexdigest()
    if ref.data is not None:
        return hashlib.sha256(ref.data).hexdigest()
    if is_address(ref) and encoder.fetch is not None:
        return hashlib.sha256(encoder.fetch(str(ref.path))).hexdigest()
    path = locate(ref)
    try:
        return file_sha256(path)
    except OSError as error:
        raise BadRecord("image-unreadable", f"{ref.path}: {error.strerror or error}") from error


def left_out(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many records are not written, by why, most frequent first."""
    return dict(Counter(each.left_out for each in outcomes if each.left_out is not None).most_common())
