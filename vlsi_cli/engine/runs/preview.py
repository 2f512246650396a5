"""`vlsi data preview`: one record as a model would be trained on it."""

from __future__ import annotations

from dataclasses import dataclass

from vlsi_cli.config.run import DataConfig
from vlsi_cli.engine.backbones.folders import resolve_folder
from vlsi_cli.engine.backbones.processors import load_processor
from vlsi_cli.engine.data.preview import Piece, pieces
from vlsi_cli.engine.data.schedule import EndOfSource
from vlsi_cli.engine.runs.data import encoder_for, open_sources
from vlsi_cli.errors import DataError


@dataclass(frozen=True)
class PreviewReport:
    """One record, encoded.

    Attributes:
        record: its id; ``where`` is its file and line, ``source`` the name of its source.
        model: whose processor encoded it.
        records: how many the source holds, None when endless or unknown.
        pieces: tokens in order with their trained flag, image runs collapsed.
        tokens, image_tokens, trained_tokens: their numbers.
        tensors: shapes of the image tensors.
    """

    source: str
    records: int | None
    record: str
    where: str
    model: str
    pieces: tuple[Piece, ...]
    tokens: int
    image_tokens: int
    trained_tokens: int
    tensors: dict[str, tuple[int, ...]]


def run(
    data: DataConfig, *, model: str, index: int = 0, source: int = 0, revision: str | None = None
) -> PreviewReport:
    """Encode record ``index`` of source number ``source`` (both counted from 0) for a model's processor.

    Only tokenizer, template and image settings of the model are needed, no weights.

    Raises:
        DataError: no such source or record, or the record cannot be used (the message says why).
        ModelError: the model's processor cannot be found or loaded.
    """
    if not 0 <= source < len(data.sources):
        raise DataError(f"there is no source {source}: the data have {len(data.sources)}, counted from 0")
    chosen = data.model_copy(update={"sources": (data.sources[source],), "shuffle": False})
    opened, _ = open_sources(chosen, seed=0)[0]
    if index < 0 or (opened.size is not None and index >= opened.size):
        raise DataError(f"{opened.name} has no record {index}: it holds {opened.size}, counted from 0")
    folder = resolve_folder(model, revision, weights=False)
    processor = load_processor(folder, min_pixels=data.min_pixels, max_pixels=data.max_pixels, shown=model)
    encoder = encoder_for(processor, data)
    try:
        record = opened.read(index)
    except EndOfSource:
        raise DataError(f"{opened.name} ends before record {index}") from None
    encoded = encoder.encode(record)
    shown = pieces(encoded, processor.tokenizer, encoder.image_token_ids)
    return PreviewReport(
        source=opened.name,
        records=opened.size,
        record=record.id,
        where=record.where,
        model=model,
        pieces=tuple(shown),
        tokens=len(encoded.input_ids),
        image_tokens=sum(piece.tokens for piece in shown if piece.image),
        trained_tokens=int(encoded.trained.sum()),
        tensors={name: tuple(value.shape) for name, value in encoded.tensors.items()},
    )
