"""What a teacher cache is of, from a configuration; and whether a run may read one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlsi_cli.config.data import DataConfig, HubSource, LlavaSource, MessagesSource, PatternsSource
from vlsi_cli.config.run import DistillConfig, InteractionConfig, ModelConfig
from vlsi_cli.config.stages import COMPARING
from vlsi_cli.engine.backbones.compatibility import reading_digests
from vlsi_cli.engine.backbones.fingerprint import weights_fingerprint
from vlsi_cli.engine.backbones.folders import local_folder, resolve_folder, resolve_verbalizers
from vlsi_cli.engine.backbones.load import Description
from vlsi_cli.engine.devices import precision_name, resolve_device, resolve_precision
from vlsi_cli.engine.files import file_sha256
from vlsi_cli.engine.runs import models
from vlsi_cli.engine.runs.data import open_sources
from vlsi_cli.engine.teachers.manifest import CacheIdentity, Content
from vlsi_cli.engine.verbalizing import read_manifest
from vlsi_cli.errors import CheckpointError, CompatibilityError, ConfigError


def content_of(config: DistillConfig) -> Content:
    """What of the large model step 2 compares with; without a step 2, what the paper's would.

    Raises:
        ConfigError: nothing of it.
    """
    settings = config.interaction
    if settings is None:
        return "words"
    if not settings.needs_teacher:
        raise ConfigError(
            "no loss of `interaction` looks at the large model, so there is nothing to cache",
            hint="leave the cache out, or set interaction.intermediate or interaction.last to kld",
        )
    if not settings.matches:
        return "last"
    return "features" if settings.features else "words"


def identity_of(
    config: DistillConfig, small: Description, large: Description, *, top_k: int | None, fetch: bool = True
) -> CacheIdentity:
    """The identity of the cache that a configuration asks for.

    Args:
        small: the small model, whose processor reads the records.
        large: the large one.
        top_k: tokens to keep of each distribution; None keeps the states.
        fetch: fetch weights that are not on this machine; without, their fingerprint is then empty.

    Raises:
        ConfigError: data without an end, or k beyond the vocabulary.
        ModelError, CheckpointError: weights or verbalizers that cannot be read.
    """
    assert config.teacher is not None
    content = content_of(config)
    targets = models.target_layers(config.teacher, large) if content != "last" else ()
    if top_k is not None and not 0 < top_k < small.tokenizer_length:
        raise ConfigError(f"--top-k {top_k} is not a part of a vocabulary of {small.tokenizer_length} tokens")
    if top_k is not None and content == "features":
        raise ConfigError(
            "interaction.features compares hidden states, of which a top-k cache has none",
            hint="leave --top-k out",
        )
    said = config.teacher.verbalizers if content == "words" else None
    here = local_folder(config.teacher.id, config.teacher.revision)
    if here is None and fetch:
        here = resolve_folder(config.teacher.id, config.teacher.revision)
    return CacheIdentity(
        model=config.teacher.id,
        revision=config.teacher.revision,
        weights_sha256=weights_fingerprint(here) if here is not None else "",
        layers=large.num_layers,
        hidden_size=large.hidden_size,
        vocabulary_rows=large.vocabulary_rows,
        kind="states" if top_k is None else "top-k",
        k=top_k or 0,
        content=content,
        targets=targets,
        dtype=stored_dtype(config, config.teacher),
        precision=compute_precision(config),
        quantization=config.teacher.quantization,
        logit_scale=(rule := large.family.logit_rule(large.config)).scale,
        logit_softcap=rule.softcap,
        verbalizers_sha256=read_manifest(resolve_verbalizers(said)).tensors_sha256
        if said is not None
        else None,
        vocabulary=small.tokenizer_length,
        **reading_digests(small.processor),
        sources=tuple(source_identities(config.data, config.seed)),
        max_length=config.data.max_length,
        min_pixels=config.data.min_pixels,
        max_pixels=config.data.max_pixels,
    )


def compute_precision(config: DistillConfig) -> str:
    """The word of what a run computes in."""
    return precision_name(resolve_precision(config.precision, resolve_device(config.device)))


def stored_dtype(config: DistillConfig, model: ModelConfig) -> str:
    """The word of what a frozen model's weights, and so its states, are stored in."""
    if model.dtype == "auto":
        return compute_precision(config)
    return precision_name(resolve_precision(model.dtype, resolve_device(config.device)))


#: Keys of a data set's source that say nothing of what is in it; pictures are known by their pixels.
_NOT_CONTENT = {"weight", "records", "size", "streaming", "image_root"}


def source_identities(data: DataConfig, seed: int) -> list[dict[str, Any]]:
    """What identifies the records of each source, wherever it lies: content for files, names for data sets.

    Raises:
        ConfigError: a source without an end.
        DataError: a source that is not there.
    """
    found = []
    for number, (source, (opened, _)) in enumerate(
        zip(data.located_sources(), open_sources(data, seed), strict=True)
    ):
        if opened.size is None:
            raise ConfigError(_endless(number, source))
        if isinstance(source, LlavaSource | MessagesSource):
            about: dict[str, Any] = {"kind": source.kind, "sha256": file_sha256(source.path)}
        else:
            about = source.model_dump(mode="json", exclude=_NOT_CONTENT)
            if isinstance(source, HubSource) and Path(source.id).exists():
                about["id"] = Path(source.id).name
        found.append({**about, "records": opened.size})
    return json.loads(json.dumps(found))


def _endless(number: int, source: object) -> str:
    key = f"data.sources.{number}"
    if isinstance(source, PatternsSource):
        return (
            f"{key} (patterns) draws fresh puzzles without end, and a cache holds a number of them: give both, the "
            f"cache and the run, the same number with --set {key}.size=20000"
        )
    return (
        f"{key} is streamed, so how many records it has is unknown, and a cache holds a number of them: set "
        f"{key}.streaming=false"
    )


# ---------------------------------------------------------------- may a run read this cache?


def check_cache(path: Path, identity: CacheIdentity, config: DistillConfig, small: Description) -> None:
    """Refuse a cache that is not of this run's large model, reader or data, with the reason.

    Raises:
        CheckpointError: the cache is of something else.
        CompatibilityError: more small than large target layers.
        ConfigError: data without an end.
    """
    _check_model(path, identity, config)
    _check_losses(path, identity, config, small)
    for key in ("min_pixels", "max_pixels"):
        theirs, ours = getattr(identity, key), getattr(config.data, key)
        if theirs != ours:
            raise _foreign(path, f"it was built with data.{key} {theirs}, and this run has {ours}")
    digests = reading_digests(small.processor) | {"vocabulary": small.tokenizer_length}
    names = {"chat_template": "chat template", "images": "image processor", "vocabulary": "tokenizer"}
    for key, value in digests.items():
        if getattr(identity, key) != value:
            raise _foreign(
                path,
                f"its records were read with another {names.get(key, key)} than that of {config.student.id}",
                "take the student that the cache was built for, or build one with this student",
            )
    if config.data.max_length > identity.max_length:
        raise _foreign(
            path,
            f"it holds records of up to {identity.max_length} tokens, and this run takes {config.data.max_length}",
            f"set data.max_length to {identity.max_length} or less",
        )
    _check_data(path, identity, config)


def _check_model(path: Path, identity: CacheIdentity, config: DistillConfig) -> None:
    model = config.teacher
    assert model is not None
    here = local_folder(model.id, model.revision)
    same = weights_fingerprint(here) == identity.weights_sha256 if here is not None else None
    if same is False:
        raise _foreign(
            path,
            f"it is of {_named(identity.model, identity.revision)} with other weights than {model.id} here has",
        )
    if same is None and (model.id, model.revision) != (identity.model, identity.revision):
        raise _foreign(
            path,
            f"it is of {_named(identity.model, identity.revision)}, and this run's teacher is "
            f"{_named(model.id, model.revision)}",
            f"name that model with --teacher {identity.model}, or build a cache of this one",
        )
    if model.quantization != identity.quantization:
        raise _foreign(
            path,
            f"it was built with teacher.quantization {identity.quantization}, and this run has {model.quantization}",
            f"set teacher.quantization to {identity.quantization}, or build a cache without it",
        )
    if model.verbalizers is not None and identity.content == "words":
        given = read_manifest(resolve_verbalizers(model.verbalizers)).tensors_sha256
        if given != identity.verbalizers_sha256:
            raise _foreign(
                path,
                f"it was built with other verbalizers than {model.verbalizers}",
                "leave teacher.verbalizers out",
            )


def _check_losses(path: Path, identity: CacheIdentity, config: DistillConfig, small: Description) -> None:
    settings, model = config.interaction, config.teacher
    assert settings is not None
    assert model is not None
    content = content_of(config)
    if content not in ("last", identity.content):
        what = {
            "words": "verbalized layers",
            "features": "layers without verbalizers",
            "last": "the last layer",
        }
        raise _foreign(path, f"it holds {what[identity.content]}, and this run compares {what[content]}")
    if content != "last":
        wanted = model.targets.resolve(identity.layers)
        if wanted != identity.targets:
            raise _foreign(
                path,
                f"it holds target layers {_list(identity.targets)} of the large model, and this run has "
                f"{_list(wanted)}",
                "set teacher.targets to those of the cache",
            )
        ours = models.target_layers(config.student, small)
        if len(ours) > len(wanted):
            raise CompatibilityError(
                f"{config.student.id} has {len(ours)} target layers ({_list(ours)}), but the cache of "
                f"{identity.model} only {len(wanted)} ({_list(wanted)}): each small one needs its own",
                hint="set student.targets",
            )
    if identity.kind == "top-k" and (beyond := _beyond_top_k(settings)):
        raise _foreign(
            path,
            f"it holds the top {identity.k} tokens, which serve kld at temperature 1, and this run has {beyond}",
            "build a cache without --top-k for it",
        )


def _beyond_top_k(settings: InteractionConfig) -> str | None:
    """What of a configuration the likeliest tokens alone cannot give."""
    for loss in (settings.intermediate, settings.last):
        if loss in COMPARING and loss != "kld":
            return loss
    return f"the temperature {settings.temperature:g}" if settings.temperature != 1.0 else None


def _check_data(path: Path, identity: CacheIdentity, config: DistillConfig) -> None:
    for number, ours in enumerate(source_identities(config.data, config.seed)):
        count = ours["records"]
        alike = [held for held in identity.sources if {**held, "records": count} == ours]
        key, kind = f"data.sources.{number}", ours["kind"]
        if not alike:
            raise _foreign(
                path,
                f"{key} of this run ({kind}) is not among the data that it was built from",
                "`vlsi cache info` lists them; a data file that was edited counts as another",
            )
        most = max(int(held["records"]) for held in alike)
        if count > most or (kind != "patterns" and count != most):
            raise _foreign(
                path,
                f"it holds {most:,} records of {key}, and this run has {count:,}",
                f"set {key}.size to {most} or less" if kind == "patterns" else None,
            )


def _foreign(path: Path, reason: str, hint: str | None = None) -> CheckpointError:
    return CheckpointError(f"the teacher cache {path} does not fit this run: {reason}", hint=hint)


def _named(model: str, revision: str | None) -> str:
    return model + (f" at {revision}" if revision else "")


def _list(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers)) or "none"
