"""A loaded model whose layers are asked: for their own answers, and for what they would say in place of a given one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlsi_cli.config.asking import Data, data_config
from vlsi_cli.config.reading import BATCH_SIZE, MAX_NEW_TOKENS, SAMPLES, TOP_K, require_counts
from vlsi_cli.engine.backbones.given import given_backbone, left_as_found
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.data.collate import collate, collate_prompts, in_groups
from vlsi_cli.engine.data.pictures import Picture, given_picture
from vlsi_cli.engine.data.records import REASONS, BadRecord, Message, Record, make_record
from vlsi_cli.engine.data.template import ChatEncoder
from vlsi_cli.engine.devices import resolve_device, resolve_precision
from vlsi_cli.engine.losses import LogitRule, cross_entropy
from vlsi_cli.engine.runs.data import encoder_for, training_stream
from vlsi_cli.engine.runs.readers import (
    Origin,
    Reader,
    find_model,
    load_reader,
    places_of,
    read_with,
    refuse_foreign,
)
from vlsi_cli.engine.teachers import LiveTeacher
from vlsi_cli.engine.verbalizing.answers import Answers, read_answers
from vlsi_cli.errors import ConfigError, DataError, ModelError, fitting

#: Tokens whose whole distributions exist at a time while only the likeliest words are wanted.
_TOKENS = 64
DESCRIBE = "What is shown in this picture?"


@dataclass(frozen=True)
class LayerStates:
    """What enters the language head behind each layer at the places that predict response tokens. Without gradient.

    K layers, R response tokens of all records together, H hidden width, V words.

    Attributes:
        layers: numbers of the K layers, counted from 1, ascending; the last is the model itself.
        states: ``[K, R, H]`` behind verbalizer and final norm, or behind the final norm alone (the logit lens).
        targets: ``[R]`` the response tokens.
        rows: ``[R]`` place in ``records`` of the record that each belongs to.
        records: ids of the records.
        head: ``[>= V, H]`` the weight of the head; rows from V on are padding.
        vocabulary: V, the tokenizer's real length.
        rule: what the model does to its logits.
    """

    layers: tuple[int, ...]
    states: Tensor
    targets: Tensor
    rows: Tensor
    records: tuple[str, ...]
    head: Tensor
    vocabulary: int
    rule: LogitRule

    @torch.no_grad()
    def log_probabilities(self) -> Tensor:
        """``[K, R]`` fp32: the natural logarithm of what each layer gives the response tokens."""
        each = [
            cross_entropy(x, self.head, self.targets, vocabulary=self.vocabulary, rule=self.rule)
            for x in self.states
        ]
        return torch.stack(each).neg_()

    @torch.no_grad()
    def log_distribution(self, layer: int) -> Tensor:
        """``[R, V]`` fp32: everything that a layer says. It is as large as it looks.

        Raises:
            ValueError: a layer that was not read.
        """
        if layer not in self.layers:
            raise ValueError(f"layer {layer} was not read; there are {list(self.layers)}")
        return self._log_distribution(self.states[self.layers.index(layer)])

    @torch.no_grad()
    def likeliest(self, k: int = TOP_K) -> tuple[Tensor, Tensor]:
        """The ``k`` likeliest tokens of each layer at each place.

        Returns:
            ``[K, R, k]`` log-probabilities, fp32, and ``[K, R, k]`` token ids, likeliest first.
        """
        values, ids = [], []
        for x in self.states:
            found = [self._log_distribution(part).topk(k) for part in x.split(_TOKENS)]
            values.append(torch.cat([each.values for each in found]))
            ids.append(torch.cat([each.indices for each in found]))
        return torch.stack(values), torch.stack(ids)

    def _log_distribution(self, x: Tensor) -> Tensor:
        product = torch.nn.functional.linear(x.to(self.head.dtype), self.head[: self.vocabulary])
        return self.rule.apply_(product.float()).log_softmax(-1)


class LayerReader:
    """A model in memory with what reads its layers; ``vlsi_cli.load_layers`` makes one.

    One that was loaded by its name is frozen. One that was given is as its owner has it, and after each call as before
    it: training modes, gradients, hooks and weights.

    Attributes:
        name: what the user called it.
        layers: decoder layers that are read, counted from 1, ascending; the last is the model itself.
        num_layers: how many it has.
        verbalizers: where its trained verbalizers are; None: it is read by the logit lens.
        later_head: whether the head was trained on after the set, as in a student of a whole run.
        model: the transformers model; ``processor`` its processor, with the ``tokenizer``.
    """

    def __init__(self, reader: Reader, dtype: torch.dtype, *, freeze: bool = True) -> None:
        backbone = reader.backbone
        self.name, self.layers, self.num_layers = reader.name, reader.layers, backbone.num_layers
        self.verbalizers, self.later_head = reader.source, reader.later_head
        self.model, self.processor, self.tokenizer = backbone.model, backbone.processor, backbone.tokenizer
        self._reader, self._backbone = reader, backbone
        self._encoder = ChatEncoder(backbone.processor)
        inner = [layer for layer in reader.layers if layer < backbone.num_layers]
        self._live = LiveTeacher(backbone, reader.verbalizers, inner, dtype, freeze=freeze)

    def answers(
        self,
        image: str | Path | Image.Image | Picture | None = None,
        prompt: str = DESCRIBE,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        place: int | None = None,
        top_k: int = TOP_K,
    ) -> Answers:
        """What each layer would answer by itself; see :func:`vlsi_cli.engine.verbalizing.answers.read_answers`.

        Args:
            image: a file, a PIL picture, or None for a question about none.
            prompt: the question.
            max_new_tokens: longest answer, in tokens.
            place: token of the final answer, from 1, at which each layer's likeliest tokens are wanted too.
            top_k: how many of them.

        Raises:
            DataError: a picture that cannot be used.
            ConfigError: a prompt with control tokens, or a number below 1.
            ModelError: numbers that are not finite, or no memory left.
        """
        require_counts(max_new_tokens=max_new_tokens, place=place, top_k=top_k)
        backbone = self._backbone
        picture = given_picture(image) if image is not None else None
        record = _record(picture, prompt, "a")
        with self._telling(record.id):
            whole, asked = self._encoder.encode(record), self._encoder.encode_prompt(record)
        stops = backbone.model.generation_config.eos_token_id
        ends = {int(whole.input_ids[whole.trained][-1])}
        ends |= set(stops if isinstance(stops, list) else [stops] if stops is not None else [])
        inputs = collate_prompts([asked], self._encoder.pad_id).to(backbone.device).inputs
        too_large = ModelError(
            f"reading '{self.name}' on {record.id} does not fit into the memory of {backbone.device}",
            hint="read fewer layers (--layers), lower --max-new-tokens, or take a smaller picture",
        )
        with fitting(too_large):
            return read_answers(
                backbone,
                self._reader.verbalizers,
                inputs,
                self.layers,
                ends=ends,
                max_new_tokens=max_new_tokens,
                place=place,
                top_k=top_k,
            )

    def read(self, image: str | Path | Image.Image | None, prompt: str, response: str) -> LayerStates:
        """What each layer would say in place of a given response, token by token.

        Every layer reads the same text, prompt and response; the state at one token predicts the next.

        Args:
            image, prompt: as for :meth:`answers`.
            response: the text whose tokens are predicted, its end of turn included.

        Raises:
            DataError, ConfigError, ModelError: as :meth:`answers`.
        """
        record = _record(given_picture(image) if image is not None else None, prompt, response)
        with self._telling(record.id):
            encoded = self._encoder.encode(record)
        return self._states(collate([encoded], self._encoder.pad_id))

    def read_data(
        self,
        data: Data | Sequence[Data],
        *,
        samples: int = SAMPLES,
        batch_size: int = BATCH_SIZE,
        seed: int = 0,
    ) -> Iterator[LayerStates]:
        """The same for the first ``samples`` usable records of data, in the order that the seed gives them.

        Two models that read alike get the same records in the same order, with the same tokens.

        Args:
            data: what ``--data`` takes (a file, folder, hub id or ``patterns``), a source as recipes spell it, or
                several.
            samples: records.
            batch_size: records read together; each is one item of what is returned.
            seed: of the order, and of what hub data sets shuffle.

        Raises:
            DataError, ConfigError: data that cannot be read, or a number below 1.
            ModelError: no memory left.
        """
        require_counts(samples=samples, batch_size=batch_size)
        config = data_config(data)
        encoder = encoder_for(self.processor, config)
        with training_stream(config, encoder, seed=seed, beside=self._backbone.device) as stream:
            for group in in_groups(stream.one_pass(samples), batch_size):
                yield self._states(collate(group, encoder.pad_id))

    @torch.no_grad()
    def _states(self, batch: Batch) -> LayerStates:
        backbone = self._backbone
        many = ModelError(
            f"{len(batch.records)} records at a time do not fit into the memory of {backbone.device}",
            hint="read fewer at a time, or fewer layers",
        )
        with fitting(many), left_as_found(backbone):
            batch = batch.to(backbone.device)
            found = self._live.states(batch, self._live.targets)
            states = torch.stack([*(found.layers[layer] for layer in self._live.targets), found.last])
        return LayerStates(
            layers=self.layers,
            states=states,
            targets=batch.targets,
            rows=batch.rows,
            records=batch.records,
            head=backbone.head.weight.detach(),
            vocabulary=backbone.tokenizer_length,
            rule=found.rule,
        )

    @contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        """Have a record that cannot be used told as what was given."""
        try:
            yield
        except BadRecord as bad:
            if bad.reason == "control-token":
                raise ConfigError(
                    f"the prompt holds {bad.detail}, a control token of '{self._backbone.id}'",
                    hint="write it in other words",
                ) from bad
            detail = f" ({bad.detail})" if bad.detail else ""
            raise DataError(
                f"'{self._backbone.id}' cannot be asked about {name}: {REASONS[bad.reason]}{detail}",
                hint=bad.hint,
            ) from bad


def load_layers(
    model: str,
    *,
    verbalizers: Sequence[str | Path] = (),
    logit_lens: bool = False,
    layers: Sequence[int] | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> LayerReader:
    """Load a model and what reads its layers; arguments and errors as of :func:`vlsi_cli.load_layers`."""
    where = resolve_device(device)
    dtype = resolve_precision(precision, where)
    origin = find_model(model)
    places = places_of([origin], verbalizers, logit_lens=logit_lens)
    reader, unused = load_reader(origin, device=where, dtype=dtype, places=places, layers=layers)
    _require_used(verbalizers, unused, origin)
    return LayerReader(reader, dtype)


def given_layers(
    model: Any,
    processor: Any,
    *,
    verbalizers: Sequence[str | Path] = (),
    logit_lens: bool = False,
    layers: Sequence[int] | None = None,
) -> LayerReader:
    """The same of a model that is in memory; as :func:`vlsi_cli.load_layers` has it."""
    backbone = given_backbone(model, processor)
    name = Path(str(model.name_or_path))
    run = find_model(str(name)).run if name.name == "student" else None
    origin = Origin(backbone.id, run, False, str(name))
    reader, unused = read_with(origin, backbone, places=() if logit_lens else verbalizers, layers=layers)
    _require_used(verbalizers, unused, origin)
    return LayerReader(reader, backbone.dtype, freeze=False)


def _require_used(given: Sequence[str | Path], unused: Sequence[str | Path], origin: Origin) -> None:
    if foreign := set(given) & set(unused):
        refuse_foreign(min(foreign, key=str), [origin.shown])


def _record(picture: Picture | None, prompt: str, response: str) -> Record:
    asked = (prompt,) if picture is None else (0, prompt)
    messages = (Message("user", asked), Message("assistant", (response,)))
    name = picture.name if picture is not None else "no picture"
    return make_record(name, messages, [picture.ref] if picture is not None else [])
