"""What a cache of a large model says about itself: of which model, for which reader and data, and its shards.

    manifest.json                what is described here
    head.safetensors             the language head, where states are stored: then nothing else of the model is needed
    shards/00000.safetensors     see ``teachers.shards``

The manifest is written before the first shard and again after each; until the last one stands it says that the
cache is not complete. It holds no times and no paths of a machine, so equal caches are equal byte by byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from vlsi_cli.engine.files import write_json
from vlsi_cli.errors import CheckpointError

FORMAT_VERSION = 2
MANIFEST_FILE, HEAD_FILE, SHARDS = "manifest.json", "head.safetensors", "shards"

#: What the stored layers are: verbalized target layers, final-normed target layers (Table 4d'), or none of them.
Content = Literal["words", "features", "last"]
Kind = Literal["states", "top-k"]


@dataclass(frozen=True)
class CacheIdentity:
    """Everything that the stored values depend on; two caches with one identity hold the same.

    Attributes:
        model: id of the large model; ``revision`` as it was asked for.
        weights_sha256: ``backbones.fingerprint.weights_fingerprint`` of its checkpoint.
        layers, hidden_size, vocabulary_rows: its shape.
        kind: ``states`` (what enters the head; exact) or ``top-k`` (log-probabilities of the likeliest tokens).
        k: how many tokens; 0 for states.
        content: see :data:`Content`.
        targets: its target layers that are stored, beside the last layer.
        dtype: of stored states, ``fp32``, ``bf16`` or ``fp16``: the model's own, so that nothing is rounded.
        precision: what the forward pass computed in.
        quantization: of the decoder layers, ``none``, ``8bit`` or ``4bit``.
        logit_scale, logit_softcap: what the model does to its logits behind its head (``losses.LogitRule``).
        verbalizers_sha256: of the verbalizers' tensors; None where there are none.
        vocabulary: the tokenizer's length, at which distributions are cut.
        tokenizer, chat_template, images: digests of how records become token ids and pixels.
        sources: one entry a data source: what identifies its records, and ``records``, how many there are.
        max_length, min_pixels, max_pixels: as in the data configuration.
    """

    model: str
    revision: str | None
    weights_sha256: str
    layers: int
    hidden_size: int
    vocabulary_rows: int
    kind: Kind
    k: int
    content: Content
    targets: tuple[int, ...]
    dtype: str
    precision: str
    quantization: str
    logit_scale: float
    logit_softcap: float | None
    verbalizers_sha256: str | None
    vocabulary: int
    tokenizer: str
    chat_template: str
    images: str
    sources: tuple[Mapping[str, Any], ...]
    max_length: int
    min_pixels: int | None
    max_pixels: int | None

    @property
    def digest(self) -> str:
        """SHA-256 of all of it; every shard carries it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def num_layers(self) -> int:
        """Decoder layers of the large model."""
        return self.layers

    @property
    def stored_layers(self) -> int:
        """Layers a token: the targets and the last one."""
        return len(self.targets) + 1

    @property
    def token_bytes(self) -> int:
        """Bytes that one response token takes in a shard."""
        if self.kind == "top-k":
            return self.stored_layers * (6 * self.k + 4)
        return self.stored_layers * self.hidden_size * (4 if self.dtype == "fp32" else 2)


#: How a difference in a field is told; the others go by their name.
_WORDS = {
    "weights_sha256": "the weights of the large model",
    "verbalizers_sha256": "the large model's verbalizers",
    "vocabulary": "the length of the tokenizer",
    "chat_template": "the chat template",
    "images": "the preparation of images",
    "sources": "the data",
    "max_length": "data.max_length",
    "min_pixels": "data.min_pixels",
    "max_pixels": "data.max_pixels",
    "targets": "the target layers",
}


def difference(held: CacheIdentity, wanted: CacheIdentity) -> str | None:
    """What two identities differ in first, in words; None when they are equal."""
    for each in fields(CacheIdentity):
        a, b = getattr(held, each.name), getattr(wanted, each.name)
        if a != b:
            return f"{_WORDS.get(each.name, each.name)}: {_short(a)} there, {_short(b)} here"
    return None


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64 and " " not in value:
        return value[:12]
    if isinstance(value, tuple) and value and isinstance(value[0], Mapping):  # sources
        return "; ".join(", ".join(f"{k} {v}" for k, v in each.items() if v is not None) for each in value)
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:197] + "..."


@dataclass(frozen=True)
class ShardEntry:
    """One shard: draws ``start`` to ``stop`` of the data, of which ``records`` could be used.

    Attributes:
        file: its name under ``shards/``.
        tokens: response tokens.
        bytes, sha256: of the whole file.
        skipped: reason -> draws that could not be used.
    """

    file: str
    start: int
    stop: int
    records: int
    tokens: int
    bytes: int
    sha256: str
    skipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CacheManifest:
    """A cache: its identity, what it was made with, how far it is built, its head and its shards."""

    identity: CacheIdentity
    versions: Mapping[str, str]
    complete: bool = False
    head: Mapping[str, Any] | None = None
    shards: tuple[ShardEntry, ...] = ()

    @property
    def draws(self) -> int:
        """Draws of the data that a complete build goes through."""
        return sum(int(source["records"]) for source in self.identity.sources)

    @property
    def records(self) -> int:
        """Records stored."""
        return sum(shard.records for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Response tokens stored."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of shards and head."""
        return sum(shard.bytes for shard in self.shards) + (int(self.head["bytes"]) if self.head else 0)

    @property
    def skipped(self) -> dict[str, int]:
        """Records that could not be used, by reason."""
        counts: dict[str, int] = {}
        for shard in self.shards:
            for reason, count in shard.skipped.items():
                counts[reason] = counts.get(reason, 0) + count
        return counts

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``, whole or not at all."""
        write_json(folder / MANIFEST_FILE, {"format_version": FORMAT_VERSION, **asdict(self)})


def read_cache_manifest(folder: Path) -> CacheManifest:
    """Read a cache's manifest without touching its shards.

    Raises:
        CheckpointError: there is no cache, or its manifest is damaged or of another version.
    """
    file = folder / MANIFEST_FILE
    if not file.is_file():
        raise CheckpointError(
            f"no teacher cache in {folder}: {MANIFEST_FILE} is missing",
            hint="give the folder that `vlsi cache build` wrote",
        )
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(raw, dict) or not {"format_version", "identity"} <= raw.keys():
            raise CheckpointError(
                f"{file} is not that of a teacher cache",
                hint="give the folder that `vlsi cache build` wrote",
            )
        if raw["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{file} has format version {raw['format_version']}; this vlsi reads {FORMAT_VERSION}",
                hint="build it again with this version: vlsi cache build --overwrite",
            )
        identity = dict(raw["identity"])
        identity |= {name: tuple(identity[name]) for name in ("targets", "sources")}
        manifest = CacheManifest(
            identity=CacheIdentity(**identity),
            versions=dict(raw["versions"]),
            complete=raw["complete"] is True,
            head=raw["head"],
            shards=tuple(ShardEntry(**entry) for entry in raw["shards"]),
        )
        sound = (
            manifest.identity.kind in get_args(Kind)
            and manifest.identity.content in get_args(Content)
            and all(isinstance(source["records"], int) for source in manifest.identity.sources)
            and all(
                shard.file == f"{number:05d}.safetensors" and shard.bytes > 0 and shard.start < shard.stop
                for number, shard in enumerate(manifest.shards)
            )
            # A kill can come between the last shard and the word that all is complete.
            and (not manifest.complete or (manifest.shards and manifest.shards[-1].stop == manifest.draws))
        )
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if not sound:
        raise CheckpointError(f"{file} is damaged: its entries do not fit each other")
    return manifest
