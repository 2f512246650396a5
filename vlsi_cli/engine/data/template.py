"""From a record to token ids, with the response tokens marked.

The response mask does not come from searching tokens. The chat template renders the conversation step by
step; what each step adds is cut, as text, into the prompt (up to and including the generation prompt) and the
response (up to and including its end-of-turn token). Each segment is tokenized by itself, so a trained token
is exactly what the model would have to generate after exactly the prompt it would see. What the template
writes after the end of a turn (often a line break) belongs to the next prompt and is not trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlsi_cli.engine.data import thinking
from vlsi_cli.engine.data.images import Fetch, ImageLimits, load_image
from vlsi_cli.engine.data.records import BadRecord, Message, Record
from vlsi_cli.engine.data.tokens import TOKEN_TYPES, expanded, image_token_ids, token_types_name
from vlsi_cli.errors import ModelError


@dataclass(frozen=True)
class Encoded:
    """One record as model inputs, without a batch dimension and without padding.

    Attributes:
        record: its id.
        input_ids: [S], image placeholders expanded.
        trained: [S] bool, the response tokens.
        token_types: [S], 0 text and 1 image, or None for a model that does not take them.
        types_name: the name under which the model takes them.
        tensors: what the processor made of the images; layouts differ between families, see ``collate``.
        digest: of the record (see ``digests``), where it has been taken already.
        written_image: whether its text names a picture as words, which are trained on as such.
    """

    record: str
    input_ids: Tensor
    trained: Tensor
    token_types: Tensor | None
    tensors: dict[str, Tensor]
    digest: bytes = b""
    types_name: str = TOKEN_TYPES[0]
    written_image: bool = False


@dataclass(frozen=True)
class EncodedPrompt:
    """One generation prompt, as :class:`Encoded`, and the answer that the data give.

    Attributes:
        reference: the response text of the record, without surrounding white space.
        question: the text of the user's message before it, without what the template adds.
        kind: the record's kind, "" when it has none.
    """

    record: str
    input_ids: Tensor
    token_types: Tensor | None
    tensors: dict[str, Tensor]
    reference: str
    kind: str = ""
    question: str = ""
    types_name: str = TOKEN_TYPES[0]


class ChatEncoder:
    """Encodes records for one model.

    Args:
        processor: the model's combined processor (``tokenizer``, ``image_processor``,
            ``apply_chat_template``).
        max_length: longest record in tokens, image tokens included; None for no limit. Nothing is ever cut.
        limits: which images are refused before they are decoded.
        fetch: what gives the bytes at an image's address; None refuses addresses.

    Raises:
        ModelError: the processor has no chat template, or no image token.
    """

    def __init__(
        self,
        processor: Any,
        *,
        max_length: int | None = None,
        limits: ImageLimits | None = None,
        fetch: Fetch | None = None,
    ) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.max_length = max_length
        self.limits, self.fetch = limits or ImageLimits(), fetch
        self.image_token = str(getattr(processor, "image_token", ""))
        if not getattr(processor, "chat_template", None):
            raise ModelError(f"{type(processor).__name__} has no chat template: records cannot be rendered")
        self._can_be_told = self._can_think = thinking.can_be_told(processor.chat_template)
        self._has_channels = thinking.in_channels(processor.chat_template)
        self._has_marks = thinking.has_marks(self.tokenizer)
        self._can_think |= self._has_marks
        #: Whether thoughts are begun by an answer, not by its prompt.
        self.begins_thoughts = self._has_channels or self._has_marks
        self._plain_system = False
        self._types_name = token_types_name(processor)
        self._image_ids = torch.tensor(image_token_ids(processor), dtype=torch.long)
        try:
            self._plain_system = self._wants_plain_system()
            self._control = self._control_tokens()
            #: Whether every answer begins inside a block of thoughts, whatever the template is told.
            self.always_thinks = thinking.is_open(self._render([Message("user", ("a",))], prompt=True))
        except BadRecord as bad:
            raise ModelError(
                f"the chat template of {type(processor).__name__} cannot be used: {bad.detail}"
            ) from bad
        self._can_think |= self.always_thinks
        self._any_control = re.compile("|".join(map(re.escape, sorted(self._control, key=len, reverse=True))))

    @property
    def pad_id(self) -> int:
        """The token that fills up a batch; where it stands the attention mask is 0."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id)

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that image features replace."""
        return tuple(self._image_ids.tolist())

    def encode(self, record: Record) -> Encoded:
        """Token ids, response mask and image tensors of a record.

        Raises:
            BadRecord: an unusable image, too many tokens, control tokens in the text, or a template that cannot be cut
                into prompts and responses.
        """
        try:
            segments = [piece for turn in self.turns(record) for piece in turn]
            pieces, tensors = self._tokenize(record, segments)
            ids = torch.tensor([token for piece in pieces for token in piece], dtype=torch.long)
            # Segments alternate: even ones are prompts, odd ones responses.
            flags = [i % 2 == 1 for i, piece in enumerate(pieces) for _ in piece]
            trained = torch.tensor(flags, dtype=torch.bool)
            self._check_length(ids)
        except BadRecord as bad:
            raise bad.at(record=record.id, where=record.where) from bad
        types, name = self._token_types(ids)
        # How some data sets of Qwen-VL's kind name a picture inside the text. It is no placeholder here.
        written = any("</img>" in message.text.partition("<img>")[2] for message in record.messages)
        return Encoded(record.id, ids, trained, types, tensors, types_name=name, written_image=written)

    def encode_prompt(self, record: Record, turn: int = -1) -> EncodedPrompt:
        """The prompt of one response (the last by default) as ``generate`` takes it, and the reference answer.

        Raises:
            BadRecord: as :meth:`encode`.
        """
        last = [i for i, message in enumerate(record.messages) if message.role == "assistant"][turn]
        try:
            if self._can_think:  # what is sent at generation, where earlier blocks are dropped
                self._refuse_control_tokens(record)
                think = thinking.has_thoughts(record.messages[last].text)
                segments = [self._render(record.messages[:last], prompt=True, think=think)]
            else:
                segments = [piece for pair in self.turns(record, upto=last) for piece in pair][:-1]
            pieces, tensors = self._tokenize(record, segments, upto=last)
            ids = torch.tensor([token for piece in pieces for token in piece], dtype=torch.long)
            self._check_length(ids)
        except BadRecord as bad:
            raise bad.at(record=record.id, where=record.where) from bad
        reference, question = (record.messages[place].text.strip() for place in (last, last - 1))
        if self._can_think and thinking.has_thoughts(reference):
            _, reference = thinking.parts(reference)
        types, name = self._token_types(ids)
        return EncodedPrompt(
            record.id, ids, types, tensors, reference, kind=record.kind, question=question, types_name=name
        )

    def turns(self, record: Record, upto: int | None = None) -> list[tuple[str, str]]:
        """The rendered conversation as (prompt, response) texts, up to message ``upto``; joined they are all of it.

        Some templates write another header before a response than the one they prompt with (LLaVA-OneVision's
        has a space more); the one that the model is prompted with at generation is used. Blocks of thoughts that a
        template drops from earlier turns (``thinking``) stay as they were when those turns were the last: one
        sequence cannot hold each turn behind the history that the template would write for it.

        Where thoughts stand in channels, a talk is thought about if any of its responses has thoughts; the others begin
        with an empty channel then.
        """
        messages = record.messages
        self._refuse_control_tokens(record)
        answers = (message.text for message in messages if message.role == "assistant")
        asked = self._has_channels and any(map(thinking.has_thoughts, answers))
        turns: list[tuple[str, str]] = []
        history = dropped = carry = ""
        for index, message in enumerate(messages[: None if upto is None else upto + 1]):
            if message.role != "assistant":
                continue
            before = self._render(messages[:index], think=asked)
            think = asked or thinking.has_thoughts(message.text)
            prompted = self._render(messages[:index], prompt=True, think=think)
            whole = self._render(messages[: index + 1], think=asked)
            if self._can_think and not before.startswith(history):
                history = dropped
            if not (before.startswith(history) and prompted.startswith(before) and whole.startswith(before)):
                raise BadRecord("template-history", f"at message {index + 1}")
            header, added = prompted[len(before) :], whole[len(before) :]
            response, rest = self._response(added, header, self._said(message.text))
            response = thinking.channel(message.text) + response if asked else response
            turns.append((carry + before[len(history) :] + header, response))
            history, dropped, carry = whole, before + thinking.without_block(added), rest
        return turns

    def _refuse_control_tokens(self, record: Record) -> None:
        for message in record.messages:
            if found := self._any_control.search(message.text):
                raise BadRecord("control-token", repr(found.group()))

    def _response(self, added: str, header: str, text: str) -> tuple[str, str]:
        """What a response adds to the conversation, cut after its end of turn: (trained text, remainder)."""
        wanted, inside = text.strip(), thinking.is_open(header)
        if added.startswith(header):
            answer = added[len(header) :]
        elif inside:
            raise BadRecord("template-thoughts")
        else:
            start = added.rfind(wanted)
            if start < 0:
                raise BadRecord("template-response", "the text is changed")
            answer = added[start:]
        end = self._any_control.search(answer)
        if end is None:
            raise BadRecord("template-response", "no end-of-turn token follows")
        said = answer[: end.start()]
        if inside and thinking.CLOSE not in said:
            raise BadRecord("template-thoughts")
        if not thinking.is_same(said, wanted, inside=inside, can_think=self._can_think):
            raise BadRecord("template-response", "the text is changed")
        return answer[: end.end()], answer[end.end() :]

    def _tokenize(
        self, record: Record, segments: list[str], upto: int | None = None
    ) -> tuple[list[list[int]], dict[str, Tensor]]:
        """Token ids of every segment, image placeholders expanded by the model's own processor, and image tensors.

        The processor is called once, on the whole text and all images as one sample, as at generation: some
        families lay out a single image differently from several (LLaVA-OneVision), so images must not be
        processed apart.
        """
        images = [
            load_image(record.images[i], self.limits, self.fetch) for i in _mentioned(record.messages[:upto])
        ]
        tensors: dict[str, Tensor] = {}
        if images:
            if "".join(segments).count(self.image_token) != len(images):
                raise BadRecord("template-refused", "it does not write one image token an image")
            outputs = self._process("".join(segments), images)
            expansions = [e["replacement"] for e in outputs.pop("text_replacement_offsets")[0]]
            segments = expanded(segments, self.image_token, expansions)
            text_names = {"input_ids", "attention_mask", *TOKEN_TYPES}
            made = ((name, value) for name, value in outputs.items() if name not in text_names)
            tensors = {name: torch.as_tensor(value) for name, value in made}
        bos = self.tokenizer.bos_token
        pieces: list[list[int]] = []
        for number, segment in enumerate(segments):
            # As the stock processor does: the tokenizer's own prefix, unless the template has written it.
            prefix = number == 0 and bos is not None and not segment.startswith(bos)
            pieces.append(self.tokenizer(segment, add_special_tokens=prefix)["input_ids"])
        return pieces, tensors

    def _process(self, text: str, images: list[Any]) -> dict[str, Any]:
        try:
            outputs = self.processor(
                text=[text],
                images=[images],
                images_kwargs={"return_tensors": "pt"},
                return_text_replacement_offsets=True,
            )
        except Exception as error:  # whatever a picture makes it raise
            raise BadRecord("image-refused", str(error) or type(error).__name__) from error
        return dict(outputs)

    def _render(self, messages: Iterable[Message], *, prompt: bool = False, think: bool = False) -> str:
        talk = [{"role": message.role, "content": self._content(message)} for message in messages]
        if not talk:
            return ""
        told = {thinking.SWITCH: think} if self._can_be_told else {}
        try:
            return str(
                self.processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=prompt, **told)
            )
        except Exception as error:  # a template is somebody's program, and fails as programs do
            raise BadRecord("template-refused", str(error) or type(error).__name__) from error

    def _content(self, message: Message) -> Any:
        if self._plain_system and message.role == "system":
            return message.text
        said = self._said if message.role == "assistant" else str
        return [
            {"type": "image"} if isinstance(part, int) else {"type": "text", "text": said(part)}
            for part in message.parts
        ]

    def _said(self, text: str) -> str:
        """A response as the template is given it."""
        if self._has_channels:
            return thinking.words(text)
        return thinking.marked(text) if self._has_marks else text

    def _wants_plain_system(self) -> bool:
        """Whether the template takes the system's words as a string only, and would write out a list of parts."""
        try:
            return "'type'" in self._render([Message("system", ("a",)), Message("user", ("b",))])
        except BadRecord:  # it takes no system's words, or does not like the talk
            return False

    def _control_tokens(self) -> frozenset[str]:
        """Special tokens that the template itself writes, the end of sequence, and image and video tokens.

        Inside a record's text they would end turns or stand for images that do not exist. Others are ordinary text.
        """
        probe = [Message("user", (0, "a")), Message("assistant", ("b",)), Message("user", ("c",))]
        rendered = self._render(probe, prompt=True)
        with suppress(BadRecord):  # a template may refuse a system message
            rendered += self._render([Message("system", ("s",)), *probe])
        special = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        special |= {str(token) for token in self.tokenizer.all_special_tokens}
        control = {token for token in special if token and token in rendered}
        named = (self.tokenizer.eos_token, self.image_token, getattr(self.processor, "video_token", None))
        pictures = self.tokenizer.convert_ids_to_tokens(list(self.image_token_ids))
        control |= {str(token) for token in (*named, *pictures) if token}
        control |= thinking.CHANNEL_TOKENS if self._has_channels else frozenset()
        return frozenset(control - {thinking.OPEN, thinking.CLOSE})

    def _token_types(self, ids: Tensor) -> tuple[Tensor | None, str]:
        if self._types_name is None:
            return None, TOKEN_TYPES[0]
        return torch.isin(ids, self._image_ids).long(), self._types_name

    def _check_length(self, ids: Tensor) -> None:
        if self.max_length is not None and len(ids) > self.max_length:
            raise BadRecord("too-long", f"{len(ids)} tokens, max_length {self.max_length}")


def _mentioned(messages: Iterable[Message]) -> list[int]:
    return [part for message in messages for part in message.parts if isinstance(part, int)]
