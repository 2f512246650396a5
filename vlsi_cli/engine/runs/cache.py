"""``vlsi cache``: build, describe and verify a cache of a large model's answers."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vlsi_cli.config.folders import require_readable_name
from vlsi_cli.config.loading import Resolved
from vlsi_cli.config.run import DataConfig, DistillConfig
from vlsi_cli.engine.data.records import BadRecord
from vlsi_cli.engine.data.stream import RecordStream
from vlsi_cli.engine.data.template import ChatEncoder, Encoded
from vlsi_cli.engine.files import LOCK_FILE, is_half, only_process, writing
from vlsi_cli.engine.places import require_space, require_writable
from vlsi_cli.engine.runs import models
from vlsi_cli.engine.runs.cache_reports import CacheReport, CacheSize, VerifyReport
from vlsi_cli.engine.runs.data import encoder_for, training_stream
from vlsi_cli.engine.runs.identity import content_of, identity_of
from vlsi_cli.engine.runs.teachers import describe_pair
from vlsi_cli.engine.teachers import LiveTeacher
from vlsi_cli.engine.teachers.building import build_shards
from vlsi_cli.engine.teachers.cached import CachedTeacher, head_misfit, write_head
from vlsi_cli.engine.teachers.manifest import (
    HEAD_FILE,
    MANIFEST_FILE,
    SHARDS,
    CacheIdentity,
    CacheManifest,
    difference,
    read_cache_manifest,
)
from vlsi_cli.engine.teachers.shards import misfit
from vlsi_cli.engine.training.signals import Wish, heed_signals
from vlsi_cli.engine.verbalizing.manifest import installed_versions
from vlsi_cli.errors import CheckpointError, ConfigError, Interrupted, OutputError, TrainingError, fitting
from vlsi_cli.events import Advanced, Events, Note, Warn

#: Records that are read to estimate the size of a cache.
SAMPLE = 64


def build(
    resolved: Resolved,
    *,
    path: Path,
    top_k: int | None = None,
    batch_size: int | None = None,
    shard_bytes: int = 256 * 2**20,
    events: Events,
    overwrite: bool = False,
    dry_run: bool = False,
) -> CacheReport:
    """Run the large model over the data once and keep what a distillation asks of it.

    Args:
        resolved: the configuration of the run that the cache is for; ``teacher.verbalizers`` is the trained set.
        path: the cache; one that was left unfinished is gone on with.
        top_k: keep the k likeliest tokens of each layer instead of its states.
        batch_size: records that go through the model together; None takes that of step 2.
        shard_bytes: size at which a shard is closed.
        events: told of progress.
        overwrite: replace another cache that is in ``path``.
        dry_run: only say how large it would be; nothing is written and no weights are loaded.

    Raises:
        VlsiError: any branch of it; a build that was started goes on with the same command.
    """
    started = time.perf_counter()
    config = resolved.config
    _require_trained(config)
    if not dry_run:
        _require_place(path)
    device, dtype = models.place(config)
    small, large = describe_pair(config, events)
    encoder = encoder_for(small.processor, config.data)
    identity = identity_of(config, small, large, top_k=top_k, fetch=not dry_run)
    size = _size(identity, _ordered(config, encoder, device), events)
    if dry_run:
        return _report(path, CacheManifest(identity, _made_with(device)), 0.0, size)
    load = partial(_load_teacher, config, identity, small.processor.chat_template, dtype, device)
    # another cache is only taken away for a model that can be loaded
    teacher = load() if overwrite and (path / MANIFEST_FILE).is_file() else None
    manifest = _begin(path, CacheManifest(identity, _made_with(device)), overwrite)
    with only_process(path, f"the teacher cache {path}"), heed_signals() as wish:
        for left in [*path.glob(".*.json"), *path.glob(".*.safetensors"), *(path / SHARDS).glob(".*")]:
            left.unlink(missing_ok=True)  # what a kill left half written
        whole = not any(misfit(path, entry) for entry in manifest.shards) and not head_misfit(path, manifest)
        if manifest.complete and whole:
            events(Note(f"{path} is complete: nothing is left to do"))
            return _report(path, manifest, time.perf_counter() - started, size)
        require_space(path, max(0, size.bytes - manifest.bytes), f"the teacher cache {path}")
        teacher = teacher or load()
        if identity.kind == "states" and (manifest.head is None or head_misfit(path, manifest)):
            manifest = replace(manifest, head=write_head(path, teacher.head))
            manifest.write(path)
        records = batch_size or (config.interaction.batch_size if config.interaction else 1)
        stream = _ordered(config, encoder, device)
        too_large = TrainingError(
            f"the large model and {records} records at a time do not fit into the memory of {device}",
            hint=f"lower --batch-size (now {records}), data.max_length or data.max_pixels",
        )
        try:
            with fitting(too_large):
                manifest = build_shards(
                    path,
                    manifest,
                    teacher,
                    stream,
                    pad_id=encoder.pad_id,
                    batch_size=records,
                    shard_bytes=shard_bytes,
                    on_batch=_watch(events, wish, manifest),
                )
        finally:
            stream.close()
    if manifest.skipped:
        why = ", ".join(f"{reason} {count}" for reason, count in sorted(manifest.skipped.items()))
        events(Warn(f"data: {sum(manifest.skipped.values())} records could not be used ({why})"))
    return _report(path, manifest, time.perf_counter() - started, size)


def info(path: Path) -> CacheReport:
    """What a cache says about itself; its shards are not touched.

    Raises:
        CheckpointError: there is none, or its manifest is damaged.
    """
    return _report(path, read_cache_manifest(path), 0.0, None)


def verify(path: Path) -> VerifyReport:
    """Compare every byte of a cache with what was written.

    Raises:
        CheckpointError: there is no cache, or its manifest is damaged.
    """
    manifest = read_cache_manifest(path)
    problems = [misfit(path, entry, content=True) for entry in manifest.shards]
    problems.append(head_misfit(path, manifest))
    found = [problem for problem in problems if problem is not None]
    if not manifest.complete:
        found.append(f"it is not complete: {manifest.records:,} records of {manifest.draws:,}")
    elif not found:
        try:
            CachedTeacher(path)  # files that are whole, but of another cache
        except CheckpointError as error:
            found.append(error.message)
    return VerifyReport(path, len(manifest.shards), manifest.bytes, tuple(found))


# ---------------------------------------------------------------- parts of a build


def _require_trained(config: DistillConfig) -> None:
    if config.teacher is None:
        raise ConfigError(
            "there is no teacher to cache", hint="name one with --teacher, or a recipe that has one"
        )
    if config.teacher.cache is not None:
        raise ConfigError(
            "a cache is built from a large model, but the configuration has `teacher.cache`",
            hint="add --set teacher.cache=null",
        )
    if content_of(config) == "words" and config.teacher.verbalizers is None:
        raise ConfigError(
            "a cache holds what the large model's verbalizers say, and they are not trained yet",
            hint="train them by `vlsi distill` (with --set interaction=null --set reinforcement=null nothing else is "
            "trained), then give that run with --run, or its verbalizers/large with --verbalizers",
        )


def _load_teacher(
    config: DistillConfig, identity: CacheIdentity, template: str, dtype: torch.dtype, device: torch.device
) -> LiveTeacher:
    """The large model with what of its verbalizers the cache is of."""
    assert config.teacher is not None
    backbone = models.load_model(config.teacher, config, dtype, device, trained=False, chat_template=template)
    said = None
    if identity.content == "words":
        assert config.teacher.verbalizers is not None
        said = models.stored_verbalizers(config.teacher.verbalizers, backbone, identity.targets)
    return LiveTeacher(backbone, said, identity.targets, dtype)


def _ordered(config: DistillConfig, encoder: ChatEncoder, device: torch.device) -> RecordStream[Encoded, Any]:
    """The data in their own order, each record once, as the small model reads them."""
    once = tuple(source.model_copy(update={"weight": 1.0}) for source in config.data.sources)
    data: DataConfig = config.data.model_copy(update={"sources": once, "shuffle": False})
    return training_stream(data, encoder, seed=config.seed, beside=device, digests=True)


def _size(identity: CacheIdentity, stream: RecordStream[Encoded, Any], events: Events) -> CacheSize:
    """Sizes from the response tokens of some records spread over the data, told before anything is written."""
    draws = stream.records_per_epoch
    assert draws is not None
    places = sorted({draw * draws // min(draws, SAMPLE) for draw in range(min(draws, SAMPLE))})
    tokens = 0
    for place in places:
        item = stream.at(place)
        tokens += 0 if isinstance(item, BadRecord) else int(item.trained[1:].sum())
    tokens = round(tokens * draws / len(places))
    head = 0
    if identity.kind == "states":
        head = identity.vocabulary_rows * identity.hidden_size * (4 if identity.dtype == "fp32" else 2)
    size = CacheSize(
        draws, len(places), tokens, identity.token_bytes, head, tokens * identity.token_bytes + head
    )
    how = "" if size.sampled == draws else f" (estimated from {size.sampled} records)"
    events(
        Note(
            f"{draws:,} records, {tokens:,} response tokens{how}, {identity.stored_layers} layers: "
            f"{size.token_bytes:,} bytes a token, {_readable(size.bytes)} in all"
        )
    )
    return size


def _readable(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _require_place(path: Path) -> None:
    """Refuse, before anything is read, a folder that cannot be written or holds something else.

    Raises:
        OutputError: it is such a one.
    """
    require_readable_name(path)
    require_writable(path / MANIFEST_FILE)
    if _holds_something(path) and not (path / MANIFEST_FILE).is_file():
        raise OutputError(f"{path} is not empty and no teacher cache", hint="give another folder")


def _begin(path: Path, fresh: CacheManifest, overwrite: bool) -> CacheManifest:
    """The manifest to go on with: that of an unfinished cache of the same identity, or the fresh one, written."""
    with writing(path):
        if _holds_something(path):
            if not overwrite:
                held = read_cache_manifest(path)
                differs = difference(held.identity, fresh.identity)
                if not differs:
                    return held
                if held.records:  # one without any was refused or killed before its first
                    raise OutputError(
                        f"{path} holds another teacher cache, which differs in {differs}",
                        hint="give another folder, or replace it with --overwrite",
                    )
            with only_process(path, f"the teacher cache {path}"):
                shutil.rmtree(path / SHARDS, ignore_errors=True)
                (path / MANIFEST_FILE).unlink()  # last: until then it can be told for a cache
                (path / HEAD_FILE).unlink(missing_ok=True)
        (path / SHARDS).mkdir(parents=True, exist_ok=True)
    fresh.write(path)
    return fresh


def _holds_something(path: Path) -> bool:
    """Whether a folder holds more than what a build leaves that was killed before it had its manifest."""
    names = {child.name for child in path.iterdir()} if path.is_dir() else set()
    if SHARDS in names and not any((path / SHARDS).iterdir()):
        names.discard(SHARDS)
    return any(name not in (LOCK_FILE, HEAD_FILE) and not is_half(name) for name in names)


def _watch(events: Events, wish: Wish, manifest: CacheManifest) -> Any:
    started, first = time.perf_counter(), manifest.shards[-1].stop if manifest.shards else 0

    def on_batch(done: int) -> None:
        elapsed = time.perf_counter() - started
        left = elapsed / (done - first) * (manifest.draws - done) if done > first else None
        events(Advanced("cache", done, manifest.draws, left))
        if wish.signal is not None:
            raise Interrupted(
                f"stopped after {done:,} of {manifest.draws:,} records; finished shards are kept",
                hint="the same command goes on with the shard that was begun",
                exit_code=wish.exit_code,
            )

    return on_batch


def _made_with(device: torch.device) -> dict[str, str]:
    return {**installed_versions(), "device": device.type}


def _report(path: Path, manifest: CacheManifest, seconds: float, size: CacheSize | None) -> CacheReport:
    return CacheReport(
        path=path,
        complete=manifest.complete,
        about=dict(vars(manifest.identity)),
        versions=manifest.versions,
        draws=manifest.draws,
        records=manifest.records,
        tokens=manifest.tokens,
        shards=len(manifest.shards),
        bytes=manifest.bytes,
        skipped=manifest.skipped,
        seconds=seconds,
        size=size,
    )
