"""Answers, and losses of given answers, in batches that shrink when memory runs out.

A batch is left padded for answers and right padded for losses; neither changes a result beyond the rounding of the
arithmetic it is computed in. Answers are greedy unless they are drawn (see ``sampling``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.data import thinking
from vlsi_cli.engine.data.collate import collate, collate_prompts
from vlsi_cli.engine.data.records import BadRecord, Record
from vlsi_cli.engine.data.template import ChatEncoder, EncodedPrompt
from vlsi_cli.engine.evaluation.answers import NO_SAMPLING
from vlsi_cli.engine.evaluation.sampling import Sampling
from vlsi_cli.errors import DataError, EvaluationError, is_out_of_memory

AUTO_BATCH = 16
"""What `auto` begins with: a picture of a benchmark is some thousand tokens."""


@dataclass(frozen=True)
class Settings:
    """How an answer is generated.

    Attributes:
        max_new_tokens: longest answer.
        until: texts that end an answer; what comes before the first of them is the answer.
    """

    max_new_tokens: int
    until: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """Something to answer: a conversation whose last message, the answer, is a stand-in or, for a loss, given.

    Attributes:
        key: equal for equal questions.
        prompt: what is generated from, where it has been encoded already.
    """

    key: str
    record: Record
    settings: Settings
    prompt: EncodedPrompt | None = None


@dataclass(frozen=True)
class Reply:
    """An answer, or the loss of a given one.

    Attributes:
        text: the answer; empty for a loss.
        tokens: tokens generated, or tokens of the given answer.
        cut: whether the length ended it.
        loss: summed negative log-probability of the given answer and its end of turn, nats.
        greedy: whether the given answer is what greedy decoding gives.
    """

    text: str
    tokens: int
    cut: bool = False
    loss: float | None = None
    greedy: bool | None = None


_In = TypeVar("_In")


class Answerer:
    """A model that answers questions.

    Args:
        backbone: the model; its weights stay as they are.
        batch_size: questions together; None begins with ``AUTO_BATCH`` and halves when memory runs out.
        told: hears when the batch was made smaller.
        thoughts: leave the thoughts of a model that thinks unasked in its answers.
        sampling: how answers are drawn; None: greedy, the most probable token each time.
        advice: what to do where one question alone does not fit.
    """

    def __init__(
        self,
        backbone: Backbone,
        batch_size: int | None = None,
        told: Callable[[str], None] = lambda text: None,
        *,
        thoughts: bool = False,
        sampling: Sampling | None = None,
        advice: str = "use --max-pixels, a lower --precision or a larger device",
    ) -> None:
        self.backbone = backbone
        self.encoder = ChatEncoder(backbone.processor)
        self.batch_size = batch_size or AUTO_BATCH
        self._fixed = batch_size is not None
        self._told = told
        self._thoughts, self._sampling, self._advice = thoughts, sampling, advice

    def answer(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Reply]]:
        """Answers, in the order of the questions. Questions with unlike settings never share a batch."""
        return self._in_batches(questions, self._generate)

    def losses(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Reply]]:
        """Losses of the given answers, in the order of the questions."""
        return self._in_batches(questions, self._measure)

    def _in_batches(
        self, questions: Iterable[Question], work: Callable[[list[Question]], list[Reply]]
    ) -> Iterator[tuple[Question, Reply]]:
        waiting: list[Question] = []
        for question in questions:
            if waiting and waiting[0].settings != question.settings:
                yield from self._all(waiting, work)
                waiting = []
            waiting.append(question)
            if len(waiting) >= self.batch_size:
                yield from self._all(waiting, work)
                waiting = []
        yield from self._all(waiting, work)

    def _all(
        self, questions: list[Question], work: Callable[[list[Question]], list[Reply]]
    ) -> Iterator[tuple[Question, Reply]]:
        done = 0
        while done < len(questions):
            group = questions[done : done + self.batch_size]
            replies: list[Reply] | None = None
            try:
                replies = work(group)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._require_smaller(len(group), error)
            if (
                replies is None
            ):  # out here no error holds the frames of the failed batch, and with them its tensors
                self._shrink(len(group))
                continue
            yield from zip(group, replies, strict=True)
            done += len(group)

    def _require_smaller(self, tried: int, error: Exception) -> None:
        if self._fixed or tried == 1:
            raise EvaluationError(
                f"{tried} question{'s' * (tried > 1)} at once do not fit into the memory of {self.backbone.device}",
                hint="use --batch-size auto or a smaller one" if tried > 1 else self._advice,
            ) from error

    def _shrink(self, tried: int) -> None:
        self.batch_size = tried // 2
        if self.backbone.device.type == "cuda":
            torch.cuda.empty_cache()
        self._told(f"memory ran out with {tried} questions at once; going on with {self.batch_size}")

    # ---------------------------------------------------------------- one batch

    @torch.no_grad()
    def _generate(self, group: list[Question]) -> list[Reply]:
        from transformers import GenerationConfig

        backbone, settings = self.backbone, group[0].settings
        prompts = [q.prompt or _encoded(self.encoder.encode_prompt, q) for q in group]
        pad = self.encoder.pad_id
        own = backbone.model.generation_config
        given = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        # in thoughts a stop is no end of the answer
        until = () if self.encoder.always_thinks else settings.until
        ends = sorted({self._end_of_turn(group[0]), *(end for end in given if end is not None)})
        config = GenerationConfig(
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            **NO_SAMPLING,
            eos_token_id=ends,
            bos_token_id=own.bos_token_id,
            pad_token_id=pad,
            stop_strings=list(until) or None,
        )
        inputs = collate_prompts(prompts, pad).to(backbone.device).inputs
        if hasattr(backbone.base, "rope_deltas"):
            backbone.base.rope_deltas = None  # type: ignore[assignment]  # Qwen keeps the last call's offsets
        more: dict[str, Any] = {"tokenizer": backbone.tokenizer} if until else {}
        if self._sampling is not None:
            keys = [question.key for question in group]
            more["logits_processor"] = self._sampling.processors(
                keys, backbone.device, backbone.tokenizer_length
            )
        tokens = backbone.model.generate(**inputs, generation_config=config, **more)
        return [
            self._reply(row, ends, settings) for row in tokens[:, inputs["input_ids"].shape[1] :].tolist()
        ]

    def _reply(self, row: list[int], ends: list[int], settings: Settings) -> Reply:
        length = next((n for n, token in enumerate(row) if token in ends), None)
        kept = row if length is None else row[:length]
        text = thinking.decoded(self.backbone.tokenizer, kept)
        thinks = self.encoder.always_thinks or (
            self.encoder.begins_thoughts and text.startswith(thinking.OPEN)
        )
        if thinks and not self._thoughts:  # nothing is said before the thoughts have ended
            _, _, text = text.partition(thinking.CLOSE)
            text = text.lstrip()
        found = [place for stop in settings.until if (place := text.find(stop)) >= 0]
        cut = length is None and not found and len(row) >= settings.max_new_tokens
        return Reply(text[: min(found)] if found else text, tokens=len(kept), cut=cut)

    def _end_of_turn(self, question: Question) -> int:
        """The token that ends a response; base checkpoints do not list it among their end tokens."""
        _, response = self.encoder.turns(question.record)[-1]
        return int(self.encoder.tokenizer(response, add_special_tokens=False)["input_ids"][-1])

    @torch.no_grad()
    def _measure(self, group: list[Question]) -> list[Reply]:
        backbone = self.backbone
        encoded = [_encoded(self.encoder.encode, question) for question in group]
        batch = collate(encoded, self.encoder.pad_id).to(backbone.device)
        states = backbone.forward_base(batch.inputs)[batch.rows, batch.cols]
        logits = backbone.logits(states)[:, : backbone.tokenizer_length].float()
        losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none").cpu().double()
        greedy, rows = (logits.argmax(dim=-1) == batch.targets).cpu(), batch.rows.cpu()
        replies = []
        for row in range(len(group)):
            mine = rows == row
            loss, hit = float(losses[mine].sum()), bool(greedy[mine].all())
            replies.append(Reply("", tokens=int(mine.sum()), loss=loss, greedy=hit))
        return replies


def _encoded(encode: Callable[[Record], _In], question: Question) -> _In:
    try:
        return encode(question.record)
    except BadRecord as bad:
        raise DataError(
            str(bad), hint=bad.hint or "the benchmark's own data hold what this model cannot be asked"
        ) from bad


def as_dict(reply: Reply) -> dict[str, Any]:
    """A reply as one line of a journal."""
    return {name: value for name, value in vars(reply).items() if value is not None}
