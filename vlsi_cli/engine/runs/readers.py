"""From a model's name to a model that can be read layer by layer: its weights, its verbalizers, its layers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vlsi_cli.config.loading import CONFIG_FILE, load_saved
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.folders import is_hub_id, resolve_verbalizer_sets
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.runs import models
from vlsi_cli.engine.runs.student import restore_layers
from vlsi_cli.engine.verbalizing import (
    Verbalizers,
    decoder_layers_like,
    head_fingerprint,
    load_verbalizers,
    read_manifest,
)
from vlsi_cli.engine.verbalizing.manifest import MANIFEST_FILE
from vlsi_cli.errors import CheckpointError, ConfigError, ModelError

AFTER_STEP_2 = "small-after"
_NAMES = ("large", "small", AFTER_STEP_2)


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
        source: the set's folder, or its place in a repository of the hub.
        later_head: whether the head was trained on after the set (a student read by the set of its step 2).
        layers: decoder layers to read, the last one included.
    """

    name: str
    backbone: Backbone
    verbalizers: Verbalizers | None
    source: Path | None
    later_head: bool
    layers: tuple[int, ...]


@dataclass(frozen=True)
class _Set:
    """A set of verbalizers: its folder, and what to call that."""

    folder: Path
    shown: Path


def find_model(word: str) -> Origin:
    """Tell run folders, their students and their step 2 from other models.

    Raises:
        ModelError: a run that has not come that far.
    """
    path = Path(word).expanduser()
    if (path / CONFIG_FILE).is_file() and (path / "progress.json").is_file():
        if not (path / "student").is_dir():
            raise ModelError(
                f"the run {word} has no student yet",
                hint=f"finish it: vlsi distill --resume {shlex.quote(str(word))}",
            )
        return Origin(word, path, False, str(path / "student"))
    run = path.absolute().parent
    if path.name == "student" and (run / "progress.json").is_file():
        return Origin(word, run, False, word)
    if (path / "layers.safetensors").is_file() and (run.parent / CONFIG_FILE).is_file():
        return Origin(word, run.parent, True, load_saved(run.parent).config.student.id)
    return Origin(word, None, False, word)


def places_of(
    origins: Sequence[Origin], given: Sequence[str | Path], *, logit_lens: bool
) -> list[str | Path]:
    """Where sets of verbalizers for these models may be: where the user says, then beside the models."""
    if logit_lens:
        return []
    homes = [o.run if o.run is not None else Path(o.folder).expanduser() for o in origins]
    return [*given, *dict.fromkeys(home for home in homes if (home / "verbalizers").is_dir())]


def load_reader(
    origin: Origin,
    *,
    device: torch.device,
    dtype: torch.dtype,
    places: Sequence[str | Path],
    layers: Sequence[int] | None,
) -> tuple[Reader, list[str | Path]]:
    """Load a model and the first fitting set of verbalizers.

    Args:
        origin: from :func:`find_model`.
        places: sets of verbalizers that may be this model's: their folders, runs or folders of pushed models with
            some, or hub ids of models that were pushed with some.
        layers: decoder layers to read; None takes those that have a verbalizer, or all without any.

    Returns:
        The reader, and those of ``places`` that hold nothing for this model.

    Raises:
        ModelError: it cannot be loaded.
        CheckpointError: a set that cannot be read.
        ConfigError: a layer that the model or its verbalizers do not have.
    """
    return read_with(origin, _load(origin, device, dtype), places=places, layers=layers)


def read_with(
    origin: Origin, backbone: Backbone, *, places: Sequence[str | Path], layers: Sequence[int] | None
) -> tuple[Reader, list[str | Path]]:
    """Give a model that is loaded what reads its layers; arguments and errors as of :func:`load_reader`."""
    chosen, foreign = _choose(origin, backbone, places)
    verbalizers, later_head = None, False
    if chosen is not None:
        manifest = read_manifest(chosen.folder)
        head = head_fingerprint(backbone.head.weight)
        later_head = manifest.head_sha256 != head
        verbalizers, _ = load_verbalizers(
            chosen.folder,
            base_id=origin.shown,
            head_sha256=manifest.head_sha256 if later_head else head,
            hidden_size=backbone.hidden_size,
            norm=backbone.final_norm,
            decoder_factory=decoder_layers_like(list(backbone.layers)),
            device=backbone.device,
        )
        verbalizers.requires_grad_(False).eval()
    read = _layers(origin.shown, backbone, verbalizers, layers)
    source = chosen.shown if chosen is not None else None
    return Reader(origin.shown, backbone, verbalizers, source, later_head, read), foreign


def refuse_foreign(place: str | Path, names: Sequence[str]) -> None:
    """Say why the verbalizers in ``place`` belong to none of the models called ``names``.

    Raises:
        CheckpointError: always.
    """
    folder = resolve_verbalizer_sets(str(place), _NAMES) if is_hub_id(place) else Path(place)
    sets = [folder] if (folder / MANIFEST_FILE).is_file() else sorted((folder / "verbalizers").glob("*"))
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
        restore_layers(origin.run / "stages" / "interaction", backbone)
        return backbone
    pixels = config.data if config is not None else None
    return load_backbone(
        origin.folder,
        dtype=dtype,
        device=device,
        min_pixels=pixels.min_pixels if pixels else None,
        max_pixels=pixels.max_pixels if pixels else None,
    )


def _choose(
    origin: Origin, backbone: Backbone, places: Sequence[str | Path]
) -> tuple[_Set | None, list[str | Path]]:
    """The first set that belongs to the model, and the places that hold none."""
    head = head_fingerprint(backbone.head.weight)
    home = (origin.run or backbone.folder).resolve()
    chosen, foreign = None, []
    for place in places:
        fitting = [found for found in _sets(origin, home, place) if _fits(home, found.folder, head)]
        if fitting:
            chosen = chosen or fitting[0]
        else:
            foreign.append(place)
    return chosen, foreign


def _sets(origin: Origin, home: Path, place: str | Path) -> list[_Set]:
    """Sets of verbalizers in a place, the likeliest for this model first.

    The base and the model after step 2 have one head, and a set each: only where the model comes from tells them.
    """
    others = ("large", "small")
    if is_hub_id(place):
        names = (AFTER_STEP_2,) if str(place) == origin.folder else others
        folder = resolve_verbalizer_sets(str(place), names)
    else:
        folder = Path(place).expanduser()
        if (folder / MANIFEST_FILE).is_file() or not (folder / "verbalizers").is_dir():
            return [_Set(folder, folder)]
        names = (AFTER_STEP_2,) if folder.resolve() == home else others
    found = [Path("verbalizers") / name for name in names]
    return [
        _Set(folder / path, Path(place) / path) for path in found if (folder / path / MANIFEST_FILE).is_file()
    ]


def _fits(home: Path, path: Path, head: str) -> bool:
    if not path.is_dir() or not (path / MANIFEST_FILE).is_file():
        read_manifest(path)  # says what is there instead
    if read_manifest(path).head_sha256 == head:
        return True
    # Step 3 trains the head on. The set that was trained together with this very student is still its own.
    return path.resolve() == (home / "verbalizers" / AFTER_STEP_2).resolve()


def _layers(
    shown: str, backbone: Backbone, verbalizers: Verbalizers | None, wanted: Sequence[int] | None
) -> tuple[int, ...]:
    last = backbone.num_layers
    if wanted is None:
        chosen = set(verbalizers.targets) if verbalizers is not None else set(range(1, last + 1))
    else:
        chosen = set(wanted)
        if beyond := sorted(layer for layer in chosen if not 1 <= layer <= last):
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
