"""From a model's name to a model that can be read layer by layer: its weights, its verbalizers, its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vlsi_cli.config.loading import CONFIG_FILE, load_saved
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.runs import models
from vlsi_cli.engine.verbalizing import (
    Verbalizers,
    decoder_layers_like,
    head_fingerprint,
    load_verbalizers,
    read_manifest,
)
from vlsi_cli.engine.verbalizing.manifest import MANIFEST_FILE
from vlsi_cli.errors import CheckpointError, ConfigError, ModelError

_AFTER_STEP_2 = "small-after"


@dataclass(frozen=True)
class Origin:
    """What a model's name stands for.

    Attributes:
        shown: what to call it.
        run: the run folder it came out of; None for any other model.
        interaction: whether it is that run's small model as step 2 left it; otherwise its student.
        folder: id or folder to load.
    """

    shown: str
    run: Path | None
    interaction: bool
    folder: str


@dataclass
class Reader:
    """A model with what reads its layers.

    Attributes:
        name: what the user called it.
        backbone: the model, frozen.
        verbalizers: a trained set, or None: the logit lens.
        source: the set's folder.
        later_head: whether the head was trained on after the set (a student read by the set of its step 2).
        layers: decoder layers to read, the last one included.
    """

    name: str
    backbone: Backbone
    verbalizers: Verbalizers | None
    source: Path | None
    later_head: bool
    layers: tuple[int, ...]


def find_model(word: str) -> Origin:
    """Tell run folders, their students and their step 2 from other models.

    Raises:
        ModelError: a run that has not come that far.
    """
    path = Path(word).expanduser()
    if (path / CONFIG_FILE).is_file() and (path / "progress.json").is_file():
        if not (path / "student").is_dir():
            raise ModelError(
                f"the run {word} has no student yet", hint=f"finish it: vlsi distill --resume {word}"
            )
        return Origin(word, path, False, str(path / "student"))
    run = path.absolute().parent
    if path.name == "student" and (run / "progress.json").is_file():
        return Origin(word, run, False, word)
    if (path / "layers.safetensors").is_file() and (run.parent / CONFIG_FILE).is_file():
        return Origin(word, run.parent, True, load_saved(run.parent).config.student.id)
    return Origin(word, None, False, word)


def load_reader(
    origin: Origin,
    *,
    device: torch.device,
    dtype: torch.dtype,
    places: Sequence[Path],
    layers: Sequence[int] | None,
) -> tuple[Reader, list[Path]]:
    """Load a model and the first fitting set of verbalizers.

    Args:
        origin: from :func:`find_model`.
        places: sets of verbalizers, or run folders with some, that may be this model's.
        layers: decoder layers to read; None takes those that have a verbalizer, or all without any.

    Returns:
        The reader, and those of ``places`` that hold nothing for this model.

    Raises:
        ModelError: it cannot be loaded.
        CheckpointError: a set that cannot be read.
        ConfigError: a layer that the model or its verbalizers do not have.
    """
    backbone = _load(origin, device, dtype)
    chosen, foreign = _choose(origin, backbone, places)
    verbalizers, later_head = None, False
    if chosen is not None:
        manifest = read_manifest(chosen)
        head = head_fingerprint(backbone.head.weight)
        later_head = manifest.head_sha256 != head
        verbalizers, _ = load_verbalizers(
            chosen,
            base_id=origin.shown,
            head_sha256=manifest.head_sha256 if later_head else head,
            hidden_size=backbone.hidden_size,
            norm=backbone.final_norm,
            decoder_factory=decoder_layers_like(list(backbone.layers)),
            device=device,
        )
        verbalizers.requires_grad_(False).eval()
    read = _layers(origin.shown, backbone, verbalizers, layers)
    return Reader(origin.shown, backbone, verbalizers, chosen, later_head, read), foreign


def refuse_foreign(place: Path, names: Sequence[str]) -> None:
    """Say why the verbalizers in ``place`` belong to none of the models called ``names``.

    Raises:
        CheckpointError: always.
    """
    sets = [place] if (place / MANIFEST_FILE).is_file() else sorted((place / "verbalizers").glob("*"))
    bases = sorted({read_manifest(path).base_id for path in sets if (path / MANIFEST_FILE).is_file()})
    if not bases:
        raise CheckpointError(
            f"there are no verbalizers in {place}",
            hint="give a folder with manifest.json and verbalizers.safetensors, or a run folder of vlsi distill",
        )
    raise CheckpointError(
        f"the verbalizers in {place} were trained on {' and '.join(bases)}, through another language head than that of "
        f"{' or '.join(names)}",
        hint="name the model they were trained on, or leave --verbalizers out to read through the logit lens",
    )


def _load(origin: Origin, device: torch.device, dtype: torch.dtype) -> Backbone:
    config = load_saved(origin.run).config if origin.run is not None else None
    if config is not None and origin.interaction:
        backbone = models.load_model(config.student, config, dtype, device, trained=False)
        assert origin.run is not None
        models.restore_layers(origin.run / "stages" / "interaction", backbone)
        return backbone
    pixels = config.data if config is not None else None
    return load_backbone(
        origin.folder,
        dtype=dtype,
        device=device,
        min_pixels=pixels.min_pixels if pixels else None,
        max_pixels=pixels.max_pixels if pixels else None,
    )


def _choose(origin: Origin, backbone: Backbone, places: Sequence[Path]) -> tuple[Path | None, list[Path]]:
    """The first set that belongs to the model, and the places that hold none."""
    head = head_fingerprint(backbone.head.weight)
    chosen, foreign = None, []
    for place in places:
        fitting = [path for path in _sets(origin, place) if _fits(origin, path, head)]
        if fitting:
            chosen = chosen or fitting[0]
        else:
            foreign.append(place)
    return chosen, foreign


def _sets(origin: Origin, place: Path) -> list[Path]:
    """Sets of verbalizers in a place, the likeliest for this model first."""
    if (place / MANIFEST_FILE).is_file() or not (place / "verbalizers").is_dir():
        return [place]
    own = origin.run is not None and origin.run.resolve() == place.resolve()
    # The base and the model after step 2 have one head, and a set each: only where the model comes from tells them.
    names = (_AFTER_STEP_2,) if own else ("large", "small")
    return [path for name in names if ((path := place / "verbalizers" / name) / MANIFEST_FILE).is_file()]


def _fits(origin: Origin, path: Path, head: str) -> bool:
    if not path.is_dir() or not (path / MANIFEST_FILE).is_file():
        read_manifest(path)  # says what is there instead
    if read_manifest(path).head_sha256 == head:
        return True
    # Step 3 trains the head on. The set that was trained together with this very student is still its own.
    return origin.run is not None and path.resolve() == (origin.run / "verbalizers" / _AFTER_STEP_2).resolve()


def _layers(
    shown: str, backbone: Backbone, verbalizers: Verbalizers | None, wanted: Sequence[int] | None
) -> tuple[int, ...]:
    last = backbone.num_layers
    if wanted is None:
        chosen = set(verbalizers.targets) if verbalizers is not None else set(range(1, last + 1))
    else:
        chosen = set(wanted)
        if beyond := sorted(layer for layer in chosen if layer > last):
            raise ConfigError(
                f"'{shown}' has {last} decoder layers, so there is no layer {beyond[0]} to read"
            )
        without = sorted(chosen - set(verbalizers.targets) - {last}) if verbalizers is not None else []
        if without:
            assert verbalizers is not None
            named = ", ".join(map(str, verbalizers.targets))
            raise ConfigError(
                f"layer {without[0]} of '{shown}' has no verbalizer: the set has {named}",
                hint="choose among these, or read all layers with --logit-lens",
            )
    return tuple(sorted(chosen | {last}))
