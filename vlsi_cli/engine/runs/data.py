"""From a data configuration to a stream of batches: the only place that turns source configs into sources."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from vlsi_cli.config import launching
from vlsi_cli.config.data import unanswered as without_answers
from vlsi_cli.config.run import (
    DataConfig,
    HubSource,
    ImagesSource,
    ImageUrlsConfig,
    LlavaSource,
    PatternsSource,
    Source,
)
from vlsi_cli.engine.batch import Batch, PromptBatch
from vlsi_cli.engine.data import sources
from vlsi_cli.engine.data.collate import collate, collate_prompts
from vlsi_cli.engine.data.digests import with_digest
from vlsi_cli.engine.data.huggingface import HuggingFaceSource
from vlsi_cli.engine.data.lengths import record_length
from vlsi_cli.engine.data.order import Exchange
from vlsi_cli.engine.data.pictures import PicturesSource
from vlsi_cli.engine.data.records import Record
from vlsi_cli.engine.data.report import DataReport
from vlsi_cli.engine.data.schedule import RecordSource
from vlsi_cli.engine.data.stream import RecordStream, alone
from vlsi_cli.engine.data.template import ChatEncoder, Encoded, EncodedPrompt

if TYPE_CHECKING:
    from vlsi_cli.engine.data.fetched import ImageFetcher

_BESIDE_A_GPU = 4

_Item = TypeVar("_Item")
_Out = TypeVar("_Out")


def open_source(
    config: Source,
    *,
    shuffle_seed: int | None,
    unanswered: bool = False,
    without: Collection[Path] = (),
) -> RecordSource:
    """One source.

    Args:
        shuffle_seed: for streamed data sets, which shuffle in their own buffer.
        unanswered: take records too that end with the user's message.
        without: files and folders that are no part of a folder of pictures.

    Raises:
        DataError: it is not there or cannot be read.
    """
    if isinstance(config, PatternsSource):
        return sources.PatternsSource(
            config.split,
            size=config.size,
            questions=config.questions,
            turns=config.turns,
            seed=config.seed,
        )
    if isinstance(config, HubSource):
        return HuggingFaceSource(
            config.id,
            name=config.name,
            split=config.split,
            streaming=config.streaming,
            revision=config.revision,
            columns={str(k): v for k, v in config.columns.items()} if config.columns else None,
            image_root=config.image_root,
            shuffle_seed=shuffle_seed,
            unanswered=unanswered,
        )
    if isinstance(config, ImagesSource):
        if not unanswered:
            raise without_answers(config)
        return PicturesSource(config.path, config.prompt, without)
    style: sources.Style = "llava" if isinstance(config, LlavaSource) else "messages"
    return sources.JsonSource(config.path, style, image_root=config.image_root, unanswered=unanswered)


def open_sources(config: DataConfig, seed: int) -> list[tuple[RecordSource, float]]:
    """Every source of a configuration with its weight."""
    shuffle_seed = seed if config.shuffle else None
    return [(open_source(s, shuffle_seed=shuffle_seed), s.weight) for s in config.located_sources()]


def encoder_for(processor: Any, config: DataConfig) -> ChatEncoder:
    """How a model's processor reads the records of a configuration.

    Raises:
        OutputError: images are to be fetched, and there is no room to keep them.
    """
    return ChatEncoder(processor, max_length=config.max_length, fetch=image_fetcher(config.image_urls))


def image_fetcher(config: ImageUrlsConfig) -> ImageFetcher | None:
    """What fetches images from their addresses; None where none may be fetched."""
    if not config.fetch:
        return None
    # what speaks HTTP is loaded for those who ask for it: the other runs do without the package
    from vlsi_cli.engine.data import fetching
    from vlsi_cli.engine.data.addresses import HostRules
    from vlsi_cli.engine.data.fetched import ImageFetcher

    return ImageFetcher(
        config.place,
        HostRules(config.hosts, config.private_hosts),
        fetching.FetchLimits(config.timeout, config.tries, config.max_bytes),
        give_up_after=config.give_up_after,
        network=fetching.WORLD,
    )


def reading_ahead(config: DataConfig, device: torch.device | None) -> int:
    """Processes that read ahead of a device: as many as the configuration says, else a few beside a GPU.

    On a CPU the model computes on the cores that they would use; beside a GPU one is left to the process that trains.
    """
    if config.workers is not None:
        return config.workers
    if device is None or device.type == "cpu":
        return 0
    return min(_BESIDE_A_GPU, max(0, cores() // launching.local_size() - 1))


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def training_stream(
    config: DataConfig,
    encoder: ChatEncoder,
    *,
    seed: int,
    beside: torch.device | None = None,
    report: DataReport | None = None,
    rank: int = 0,
    world_size: int = 1,
    exchange: Exchange = alone,
    digests: bool = False,
) -> RecordStream[Encoded, Batch]:
    """Endless training batches of a configuration: ``stream.next_step(n)``. Close it: it may have workers.

    ``beside`` as in :func:`reading_ahead`; ``rank``, ``world_size`` and ``exchange`` as in :class:`RecordStream`,
    ``digests`` as in ``collate``.
    """
    report = report or DataReport()
    together = partial(_collate, pad_id=encoder.pad_id, digests=digests, report=report)
    return _stream(
        config,
        partial(_encode_with_digest, encoder) if digests else encoder.encode,
        together,
        seed,
        report,
        workers=reading_ahead(config, beside),
        rank=rank,
        world_size=world_size,
        exchange=exchange,
        group_steps=config.group_by_length,
        measure=partial(record_length, encoder),
    )


def prompt_stream(
    config: DataConfig, encoder: ChatEncoder, *, seed: int, report: DataReport | None = None
) -> RecordStream[EncodedPrompt, PromptBatch]:
    """Generation prompts of held-out data: ``stream.one_pass(samples)`` gives them one by one."""
    together = partial(_collate_prompts, pad_id=encoder.pad_id)
    return _stream(config, encoder.encode_prompt, together, seed, report, workers=reading_ahead(config, None))


def _encode_with_digest(encoder: ChatEncoder, record: Record) -> Encoded:
    return with_digest(encoder.encode(record))


def _collate(records: list[Encoded], *, pad_id: int, digests: bool, report: DataReport) -> Batch:
    for record in records:
        if record.written_image and not report.written_image:
            report.written_image = record.record
    return collate(records, pad_id, digests=digests)


def _collate_prompts(prompts: list[EncodedPrompt], *, pad_id: int) -> PromptBatch:
    return collate_prompts(prompts, pad_id)


def _stream(
    config: DataConfig,
    encode: Callable[[Record], _Item],
    collate_items: Callable[[list[_Item]], _Out],
    seed: int,
    report: DataReport | None,
    **settings: Any,
) -> RecordStream[_Item, _Out]:
    return RecordStream(
        open_sources(config, seed),
        encode,
        collate_items,
        seed=seed,
        shuffle=config.shuffle,
        policy=config.on_bad_record,
        report=report,
        prefetch=config.prefetch,
        **settings,
    )
