"""The large model of a run, live or from a cache, behind one interface; and the checks before either is loaded."""

from __future__ import annotations

import torch

from vlsi_cli.config.experts import require_dense_student
from vlsi_cli.config.planning import smaller_teacher
from vlsi_cli.config.run import DistillConfig
from vlsi_cli.engine.backbones.compatibility import check_pair
from vlsi_cli.engine.backbones.families import read_config
from vlsi_cli.engine.backbones.load import Description
from vlsi_cli.engine.backbones.quantization import check_quantization
from vlsi_cli.engine.devices import resolve_device
from vlsi_cli.engine.runs import models
from vlsi_cli.engine.runs.identity import check_cache, compute_precision
from vlsi_cli.engine.teachers import CachedTeacher
from vlsi_cli.events import Events, Note, Warn


def describe_pair(config: DistillConfig, events: Events) -> tuple[Description, Description]:
    """Small and large model without weights, refused when the one cannot learn from the other.

    Raises:
        CompatibilityError: naming everything that does not fit.
        ConfigError: weights that cannot be quantized here.
    """
    assert config.teacher is not None
    small = models.describe_model(config.student, config)
    require_dense_student(small.experts, config.student.id)
    large = models.describe_model(config.teacher, config, chat_template=small.processor.chat_template)
    if config.teacher.quantization != "none":
        raw = read_config(large.folder, config.teacher.id)
        check_quantization(config.teacher.quantization, resolve_device(config.device), raw, config.teacher.id)
    targets_small = models.target_layers(config.student, small)
    targets_large = models.target_layers(config.teacher, large)
    for fact in check_pair(large, small, targets_large, targets_small):
        events(Note(fact))
    if (odd := smaller_teacher(config)) is not None:
        events(Warn(odd))
    return small, large


def open_cache(config: DistillConfig, device: torch.device, events: Events) -> CachedTeacher:
    """The large model of a run from its cache, which is refused when it is of anything else.

    Raises:
        CheckpointError: damaged, unfinished or foreign, with the reason.
    """
    assert config.teacher is not None
    assert config.teacher.cache is not None
    path = config.teacher.cache
    cached = CachedTeacher(path, device)
    identity = cached.manifest.identity
    check_cache(path, identity, config, models.describe_model(config.student, config))
    if identity.kind == "states":
        cached.head  # noqa: B018 - a damaged head is told now rather than after step 1
    manifest = cached.manifest
    events(
        Note(
            f"{identity.model} is read from {path}: {manifest.records:,} records, {manifest.tokens:,} response "
            "tokens; it is neither loaded nor measured"
        )
    )
    if identity.precision != (ours := compute_precision(config)):
        events(
            Warn(
                f"the cache was computed in {identity.precision} and this run computes in {ours}: its losses are "
                f"those of a large model in {identity.precision}"
            )
        )
    return cached
