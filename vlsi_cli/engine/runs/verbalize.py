"""`vlsi verbalize`: what each layer of a model would answer about a picture."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from vlsi_cli.engine.data.pictures import Picture, open_pictures, puzzle
from vlsi_cli.engine.devices import precision_name, resolve_device, resolve_precision
from vlsi_cli.engine.places import require_writable
from vlsi_cli.engine.reports.page import write_page
from vlsi_cli.engine.runs.layers import DESCRIBE, LayerReader
from vlsi_cli.engine.runs.readers import Reader, find_model, load_reader, places_of, refuse_foreign
from vlsi_cli.engine.verbalizing.answers import Answers
from vlsi_cli.errors import ConfigError
from vlsi_cli.events import Events, Note

LOGIT_LENS = "logit lens"


@dataclass(frozen=True)
class ModelReading:
    """A model and how its layers were read.

    Attributes:
        model: what the user called it.
        num_layers: its decoder layers.
        layers: those that were read.
        through: ``verbalizers`` or ``logit lens``.
        verbalizers: folder of the set or its place in a repository of the hub, None for the logit lens.
        later_head: whether the model's head was trained on after the set.
        precision: of the computation.
    """

    model: str
    num_layers: int
    layers: tuple[int, ...]
    through: str
    verbalizers: Path | None
    later_head: bool
    precision: str

    @property
    def sentence(self) -> str:
        """How the layers were read, in words."""
        if self.verbalizers is None:
            return f"{self.model}: logit lens (the model's own final norm and head on each layer; nothing trained)"
        later = "; step 3 has trained the head on since" if self.later_head else ""
        return f"{self.model}: trained verbalizers in {self.verbalizers}{later}"

    def settled(self, answers: Answers) -> str:
        """Where the final answer comes up, in words."""
        if answers.first == self.num_layers:
            return "only the last layer gives the final answer"
        if answers.first == answers.settled:
            return f"the final answer stands from layer {answers.first} on"
        return f"layer {answers.first} is the first with the final answer, which stands from layer {answers.settled} on"


@dataclass(frozen=True)
class PictureReading:
    """One picture as every model reads it.

    Attributes:
        name: of the picture.
        size: its width and height.
        prompt: what was asked.
        reference: the right answer, None where nobody knows it.
        answers: one for each model.
        source: where its pixels are; they are not kept.
    """

    name: str
    size: tuple[int, int]
    prompt: str
    reference: str | None
    answers: tuple[Answers, ...]
    source: Picture

    @property
    def image(self) -> Image.Image:
        """Its pixels."""
        return self.source.load()

    def to_json(self) -> dict[str, Any]:
        """Everything but the pixels."""
        fields = {k: v for k, v in vars(self).items() if k not in ("source", "answers")}
        return fields | {"answers": [asdict(answers) for answers in self.answers]}


@dataclass(frozen=True)
class VerbalizeReport:
    """What was read.

    Attributes:
        models: one, or two that are compared.
        pictures: in the order in which they were named.
        place: token of the final answer whose candidates are shown, from 1; None for none.
        rows: for each line of a table the index of a layer read, one for each model; None where a model has no layer
            at that depth.
    """

    models: tuple[ModelReading, ...]
    pictures: tuple[PictureReading, ...]
    place: int | None
    rows: tuple[tuple[int | None, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON document."""
        return {
            "models": [asdict(model) for model in self.models],
            "pictures": [picture.to_json() for picture in self.pictures],
            "place": self.place,
        }


def run(
    images: Sequence[str],
    *,
    stdin: BinaryIO,
    model: str,
    compare: str | None,
    prompt: str,
    puzzle_index: int,
    verbalizers: Sequence[str | Path],
    logit_lens: bool,
    layers: Sequence[int] | None,
    place: int | None,
    top_k: int,
    max_new_tokens: int,
    device: str,
    precision: str,
    events: Events,
) -> VerbalizeReport:
    """Let every layer of a model, or of two, answer a question about each picture.

    Args:
        images: files, folders, or ``-``; none means a built-in puzzle.
        stdin: what ``-`` reads.
        model, compare: hub ids, folders, run folders, or models of the demo pair.
        prompt: the question; "" means the puzzle's own, or a request for a description.
        puzzle_index: which puzzle, when no image is named.
        verbalizers: sets of verbalizers, run folders that hold some, or hub ids of models that were pushed with some;
            each must belong to one of the models.
        logit_lens: read without trained verbalizers, even where there are some.
        layers: decoder layers to read; None for those with a verbalizer, or for all.
        place, top_k: see :func:`read_answers`.
        max_new_tokens: longest answer.
        device, precision: as for a distillation.
        events: told what happens.

    Raises:
        DataError, ConfigError: a picture or value that cannot be used.
        ModelError, CheckpointError: a model that cannot be read, or verbalizers of another one.
    """
    pictures = open_pictures(images, stdin) if images else [puzzle(puzzle_index)]
    if not images:
        events(Note(f"no picture was named: this is {pictures[0].name}, one of the built-in puzzles"))
    for picture in pictures:
        if picture.deep:
            events(Note(f"{picture.name} has 16 bits a channel and is read with 8"))
    where = resolve_device(device)
    dtype = resolve_precision(precision, where)
    origins = [find_model(word) for word in (model, compare) if word is not None]
    places = places_of(origins, verbalizers, logit_lens=logit_lens)
    foreign = set(verbalizers if not logit_lens else ())
    readers: list[ModelReading] = []
    read: list[list[Answers]] = []
    for number, origin in enumerate(origins):
        reader, unused = load_reader(origin, device=where, dtype=dtype, places=places, layers=layers)
        foreign &= set(unused)
        if foreign and number + 1 == len(origins):
            refuse_foreign(min(foreign, key=str), [origin.shown for origin in origins])
        readers.append(_described(reader))
        events(Note(f"reading {len(reader.layers)} layers of {origin.shown}"))
        asked = LayerReader(reader, dtype)
        read.append(
            [
                asked.answers(
                    picture,
                    _question(picture, prompt),
                    max_new_tokens=max_new_tokens,
                    place=place,
                    top_k=top_k,
                )
                for picture in pictures
            ]
        )
        del reader, asked  # its memory goes before the other model comes
        gc.collect()
    if place is not None:
        _check_place(place, pictures, readers, read)
    return VerbalizeReport(
        models=tuple(readers),
        pictures=tuple(
            PictureReading(
                picture.name,
                picture.load().size,
                _question(picture, prompt),
                picture.reference if not prompt else None,
                tuple(answers[number] for answers in read),
                picture,
            )
            for number, picture in enumerate(pictures)
        ),
        place=place,
        rows=_rows(readers),
    )


def require_html(path: Path) -> None:
    """Refuse, before the work, a page that could not be written after it.

    Raises:
        OutputError: it is a folder, or its folder may not be written.
    """
    require_writable(path)


def write_html(path: Path, report: VerbalizeReport) -> None:
    """Write the report as one self-contained page.

    Raises:
        OutputError: it cannot be written.
    """
    write_page(path, "verbalize", title="What each layer would answer", report=report)


def _question(picture: Picture, prompt: str) -> str:
    return prompt or picture.question or DESCRIBE


def _described(reader: Reader) -> ModelReading:
    return ModelReading(
        model=reader.name,
        num_layers=reader.backbone.num_layers,
        layers=reader.layers,
        through=LOGIT_LENS if reader.verbalizers is None else "verbalizers",
        verbalizers=reader.source,
        later_head=reader.later_head,
        precision=precision_name(reader.backbone.dtype),
    )


def _check_place(
    place: int,
    pictures: Sequence[Picture],
    readers: Sequence[ModelReading],
    read: Sequence[Sequence[Answers]],
) -> None:
    """Somebody must have something to show there.

    Raises:
        ConfigError: every final answer is shorter.
    """
    if any(answers.candidates for row in read for answers in row):
        return
    longest = max(len(answers.layers[-1].tokens) for row in read for answers in row)
    raise ConfigError(
        f"--tokens {place}: the longest final answer has {longest} tokens, its end included",
        hint=f"choose a place from 1 to {longest}",
    )


def _rows(models: Sequence[ModelReading]) -> tuple[tuple[int | None, ...], ...]:
    """Which layers stand on one line of a comparison: those that are nearest to each other by relative depth.

    Two models of one depth are thus compared layer by layer. A layer that is not the nearest of its nearest stands
    alone.
    """
    if len(models) == 1:
        return tuple((index,) for index in range(len(models[0].layers)))
    depths = [[layer / model.num_layers for layer in model.layers] for model in models]

    def nearest(depth: float, side: int) -> int:
        return min(range(len(depths[side])), key=lambda index: abs(depths[side][index] - depth))

    rows: list[tuple[float, tuple[int | None, int | None]]] = []
    for left, depth in enumerate(depths[0]):
        right = nearest(depth, 1)
        mutual = nearest(depths[1][right], 0) == left
        rows.append((depth, (left, right if mutual else None)))
    paired = {row[1] for _, row in rows}
    rows += [(depth, (None, right)) for right, depth in enumerate(depths[1]) if right not in paired]
    return tuple(row for _, row in sorted(rows, key=lambda item: item[0]))
