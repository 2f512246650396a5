"""``vlsi data answer``: the large model answers records, and the answers become training records.

Of several processes each answers its share, into a journal of its own until the first one takes it over; the first
alone writes the file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vlsi_cli.config.answering import AnsweringConfig, who
from vlsi_cli.config.run import DistillConfig, ModelConfig
from vlsi_cli.engine import processes
from vlsi_cli.engine.backbones.folders import resolve_folder
from vlsi_cli.engine.backbones.load import describe
from vlsi_cli.engine.data.records import BadRecord
from vlsi_cli.engine.data.template import ChatEncoder
from vlsi_cli.engine.data.writing import RecordWriter
from vlsi_cli.engine.evaluation.generation import Answerer, Settings
from vlsi_cli.engine.evaluation.journal import answers_in
from vlsi_cli.engine.evaluation.labelling import Labeller, Manner, can_think
from vlsi_cli.engine.evaluation.labels import (
    CUT,
    Outcome,
    Place,
    known_answer,
    left_out,
    open_turns,
    record_digest,
    with_answers,
)
from vlsi_cli.engine.evaluation.sampling import Sampling
from vlsi_cli.engine.evaluation.sharing import open_journal
from vlsi_cli.engine.files import new_file, sweep
from vlsi_cli.engine.runs import answer_output as place
from vlsi_cli.engine.runs import models
from vlsi_cli.engine.runs.agreement import files_of, place_of_first, require_alike, require_shared
from vlsi_cli.engine.runs.answer_reading import Reading, Survey, reasons
from vlsi_cli.engine.runs.answer_reports import AnswerPlan, AnswerReport
from vlsi_cli.engine.runs.data import encoder_for, reading_ahead
from vlsi_cli.engine.runs.stopping import keeping_answers
from vlsi_cli.errors import ConfigError, DataError
from vlsi_cli.events import Advanced, Events, Note, Warn

_PATIENCE = timedelta(days=7)
"""How long processes wait for the slowest: pictures differ, and so do shares."""
_NOTE_EVERY = 10.0


def plan(config: DistillConfig, asked: AnsweringConfig) -> AnswerPlan:
    """Look through all of the data; load no weights, write nothing.

    Raises:
        DataError: a source that cannot be read, or nothing to answer.
    """
    reading = Reading(config.data, asked.limit, asked.output)
    found = reading.survey(anew=asked.replace, whole=True)
    found.require_work(reading.names)
    return AnswerPlan(
        output=asked.output,
        model=who(config).id,
        answerable=found.answerable,
        kept=found.kept,
        unusable=found.unusable,
        examples=found.examples,
        passed_over=reading.passed_over,
    )


def run(config: DistillConfig, asked: AnsweringConfig, events: Events) -> AnswerReport | None:
    """Answer what is open in the data and write the records; answers that are kept from before are not asked again.

    Args:
        config: its ``teacher`` answers its ``data``.
        asked: how.
        events: told of progress.

    Returns:
        The report; None in every process but the first.

    Raises:
        ConfigError: no such device, thoughts of a model that has none, or processes that were not started alike.
        DataError: nothing to answer, no answer that could be taken, or files that differ between processes.
        ModelError: a model that cannot be loaded.
        EvaluationError: memory ran out with one question.
        OutputError: the output cannot be written, was made otherwise, another process works on it, or not all of one
            command see it.
        ProcessError: another process has ended before its time.
        Interrupted: Ctrl-C or SIGTERM; the answers so far are kept.
    """
    device, dtype = models.place(config)
    with keeping_answers(), processes.joined(torch.device("cpu"), _PATIENCE, events):
        asked = asked.model_copy(update={"output": place_of_first(asked.output)})
        reading = Reading(config.data, asked.limit, asked.output)
        processes.on_first(
            lambda: reading.survey(anew=asked.replace, whole=False).require_work(reading.names)
        )
        model = who(config)
        about = describe(
            model.id,
            revision=model.revision,
            min_pixels=config.data.min_pixels,
            max_pixels=config.data.max_pixels,
        )
        encoder = encoder_for(about.processor, config.data)
        if asked.think and not can_think(encoder):
            raise ConfigError(f"--think: the chat template of {model.id} knows no thoughts")
        folder = resolve_folder(model.id, model.revision)
        settings = place.settings_of(config, model, asked, folder, about.processor)
        # By now, what had to be fetched of the model is here.
        held = files_of([model], [config.data]) | reading.listings
        require_alike(config, asked.model_copy(update={"output": Path()}), held=held)
        writer = RecordWriter(asked.output, reading.roots, keeps=reading.others)
        workers = reading_ahead(config.data, device)
        job = _Job(config, model, asked, settings, reading, encoder, workers, events)
        answerer = cache(lambda: job.answerer(device, dtype))
        if asked.overwrite and processes.on_first(lambda: place.is_other(asked.output, settings)):
            answerer()  # what is there is only given up for a model that can be loaded
        own = place.held(asked.output, settings, overwrite=asked.overwrite)
        with own if processes.is_first() else nullcontext():
            require_shared(place.work_folder(asked.output))
            return job.run(writer, answerer)


@dataclass
class _Share:
    """What one process, or all together, made of the records."""

    outcomes: dict[Place, Outcome]
    skipped: Survey
    generated: int
    tokens: int


@dataclass
class _Job:
    """One answering: what it is of, and what could not be used."""

    config: DistillConfig
    model: ModelConfig
    asked: AnsweringConfig
    settings: dict[str, Any]
    reading: Reading
    encoder: ChatEncoder
    workers: int
    events: Events
    skipped: Survey = field(default_factory=Survey)

    def run(self, writer: RecordWriter, answerer: Callable[[], Answerer]) -> AnswerReport | None:
        """Answer this process's share; in the first process, write what all have answered."""
        started, asked = time.perf_counter(), self.asked
        work = place.work_folder(asked.output)
        journal, sharing = open_journal(work)
        with journal:
            earlier = {} if sharing.scores else answers_in(work / "answers.jsonl")
            processes.wait()  # the first begins to write into that file
            manner = Manner(
                self.settings["identity"], Settings(asked.max_new_tokens), asked.replace, asked.think
            )
            labeller = Labeller(
                answerer,
                self.encoder,
                journal,
                manner,
                earlier=earlier,
                skip=self._skip,
                batch_size=None if asked.batch_size == "auto" else asked.batch_size,
                workers=self.workers,
                prefetch=self.config.data.prefetch,
                told=_Progress(self.events, self.reading.total, sharing.size),
            )
            mine = self.reading.records(self._skip, rank=sharing.rank, size=sharing.size)
            share = _Share(labeller.run(mine), self.skipped, labeller.generated, labeller.tokens)
            whole = share if sharing.size == 1 else self._gather(share)
            if whole is None:
                return None
            journal.absorb(work.glob("answers.[0-9]*.jsonl"))
            answered, kept = self._write(writer, whole, labeller, journal.lines)
        keys = {key for outcome in whole.outcomes.values() for key in outcome.keys}
        return AnswerReport(
            output=asked.output,
            records=answered + kept,
            answered=answered,
            kept=kept,
            generated=whole.generated,
            tokens=whole.tokens,
            reused=sum(key in sharing.known for key in keys),
            left_out=left_out(whole.outcomes.values()),
            unusable=whole.skipped.unusable,
            examples=whole.skipped.examples,
            passed_over=self.reading.passed_over,
            image_root=writer.root if writer.named and writer.root != writer.folder else None,
            settings=self.settings,
            seconds=time.perf_counter() - started,
        )

    def _skip(self, where: Place, bad: BadRecord, found: Survey | None = None) -> None:
        if self.config.data.on_bad_record == "refuse":
            raise bad
        (found or self.skipped).skip(where, bad)

    def answerer(self, device: torch.device, dtype: torch.dtype) -> Answerer:
        """The model, loaded."""
        asked = self.asked
        self.events(Note(f"loading {self.model.id}"))
        backbone = models.load_model(self.model, self.config, dtype, device, trained=False)
        return Answerer(
            backbone,
            None if asked.batch_size == "auto" else asked.batch_size,
            told=lambda text: self.events(Warn(text)),
            thoughts=True,
            sampling=Sampling(asked.temperature, self.config.seed) if asked.temperature else None,
            advice="make pictures smaller with --set data.max_pixels=..., leave long records out with data.max_length, "
            "or place or quantize the model with teacher.placement or teacher.quantization",
        )

    def _gather(self, share: _Share) -> _Share | None:
        """What all processes made of their shares, in the first one."""
        found = processes.gather(share)
        if not processes.is_first():
            return None
        whole = _Share({}, Survey(), 0, 0)
        for each in found:
            whole.outcomes |= each.outcomes
            whole.skipped.add(each.skipped)
            whole.generated += each.generated
            whole.tokens += each.tokens
        return whole

    def _write(
        self, writer: RecordWriter, whole: _Share, labeller: Labeller, lines: dict[str, dict[str, Any]]
    ) -> tuple[int, int]:
        """Read the records again and write them with their answers; how many were answered, how many kept."""
        answered, kept, unseen = 0, 0, set(whole.outcomes)
        sweep(writer.images)
        with new_file(self.asked.output) as part, part.open("w", encoding="utf-8") as file:
            for where, record in self.reading.records(lambda where, bad: None):
                outcome = whole.outcomes.get(where)
                if outcome is None:
                    continue
                unseen.discard(where)
                if outcome.digest != record_digest(record):
                    raise _changed(record.where)
                if outcome.left_out is not None:
                    whole.skipped.show(outcome.left_out, where, record.where)
                    continue
                more: dict[str, Any] = {}
                if outcome.keys:
                    turns = open_turns(record, anew=self.asked.replace)
                    found = [known_answer(key, self.asked.max_new_tokens, lines) for key in outcome.keys]
                    texts = [labeller.taken(line["text"]) for line in found if line is not None]
                    record = with_answers(record, turns, texts)
                    given = [i for i, message in enumerate(record.messages) if message.role == "assistant"]
                    more["answered_by"] = place.made_by(
                        self.settings, [given.index(turn) + 1 for turn in turns]
                    )
                try:
                    line = writer.line(record, more)
                except BadRecord as bad:
                    self._skip(where, bad.at(record=record.id, where=record.where), whole.skipped)
                    continue
                answered, kept = answered + bool(outcome.keys), kept + (not outcome.keys)
                file.write(line)
            if unseen:  # they cannot be read any more
                raise _changed(self.reading.names[min(unseen)[0]])
            if not answered:
                raise self._nothing(whole)
            writer.flush()
        return answered, kept

    def _nothing(self, whole: _Share) -> DataError:
        found = left_out(whole.outcomes.values()) | whole.skipped.unusable
        bad = whole.skipped.first[1] if whole.skipped.first else None
        hint = "raise --max-new-tokens: what did not end within it is asked again" if CUT in found else None
        return DataError(
            f"no record could be answered ({reasons(found)})" + (f"; the first: {bad}" if bad else ""),
            hint=hint or (bad.hint if bad else None),
        )


def _changed(where: str) -> DataError:
    return DataError(
        f"{where}: the data have changed while they were answered",
        hint="the answers so far are kept: the same command asks for what is new",
    )


class _Progress:
    """Tells how far the answering is, at the pace since the first answer that had to be generated."""

    def __init__(self, events: Events, total: int | None, share: int) -> None:
        self._events, self._total, self._share = events, total, share
        self._began: tuple[float, int] | None = None
        self._last = (0, 0)
        self._noted = time.monotonic()

    def __call__(self, records: int, answers: int) -> None:
        """Records done by this process, and answers that it generated."""
        if (records, answers) == self._last:
            return
        self._last = records, answers
        now, done = time.monotonic(), records * self._share
        if answers and self._began is None:
            self._began = (now, done)
        if self._total is not None:
            done, left = min(done, self._total), None
            if self._began is not None and done > self._began[1]:
                left = (now - self._began[0]) / (done - self._began[1]) * (self._total - done)
            self._events(Advanced("answer", done, self._total, left))
        elif now - self._noted >= _NOTE_EVERY:
            self._noted = now
            self._events(Note(f"answer: {done:,} records, {answers * self._share:,} answers generated"))
