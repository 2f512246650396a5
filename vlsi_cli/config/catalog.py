"""Built-in facts of well-known backbones, so that a run can be planned offline, and the names people type for
them.

Sources: the public ``config.json`` of each checkpoint; counts of the vision side are those of the
transformers classes built from it (tests compare). ``demo/large`` and ``demo/small`` are the pair that ships
with this package.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from vlsi_cli.config.experts import Experts
from vlsi_cli.config.facts import (
    ATTENTION_BIASED,
    GATED,
    NORMS,
    QK_NORMED,
    LinearAttention,
    ModelFacts,
    facts_from_folder,
)
from vlsi_cli.config.mixed import MixedLayers
from vlsi_cli.config.presence import cached_snapshot
from vlsi_cli.config.repos import at_home
from vlsi_cli.errors import ConfigError, did_you_mean

DEMO_FOLDER = Path(__file__).resolve().parent.parent / "demo"
_Shape = tuple[int, int, int, int, int, int]
_SIZE = re.compile(r"e?\d+(\.\d+)?[bm]", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """A backbone of the catalogue.

    Attributes:
        group: models that share a tokenizer and an image processor, e.g. ``Qwen2-VL``.
        size: the alias within the group, e.g. ``2b``.
        ids: hub ids; the first is the one that an alias stands for.
        facts: its shape.
        fp8: those of the ids whose weights are in FP8.
    """

    group: str
    size: str
    ids: tuple[str, ...]
    facts: ModelFacts
    fp8: tuple[str, ...] = ()


def _entry(
    group: str,
    model_type: str,
    size: str,
    ids: str,
    shape: _Shape,
    tied: bool,
    vision: int,
    head_dim: int = 0,
    linear: LinearAttention | None = None,
    decoder: str = "",
    experts: Experts | None = None,
    mixed: MixedLayers | None = None,
    unread: int = 0,
) -> Entry:
    layers, hidden, ffn, heads, kv_heads, vocab = shape
    facts = ModelFacts(
        name=f"{group}-{size.upper()}",
        model_type=model_type,
        layers=layers,
        hidden=hidden,
        ffn=experts.width if experts else ffn,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim or hidden // heads,
        vocab=vocab,
        tied=tied,
        vision=vision,
        attention_bias=(decoder or model_type) in ATTENTION_BIASED,
        qk_norm=(decoder or model_type) in QK_NORMED,
        gated=model_type in GATED,
        norms=NORMS.get(model_type, 2),
        linear=linear,
        experts=experts,
        mixed=mixed,
        unread=unread,
    )
    return Entry(group, size, tuple(ids.split()), facts)


def _qwen2(size: str, shape: _Shape, tied: bool, vision: int) -> Entry:
    ids = f"Qwen/Qwen2-VL-{size.upper()}-Instruct Qwen/Qwen2-VL-{size.upper()}"
    return _entry("Qwen2-VL", "qwen2_vl", size, ids, shape, tied, vision)


def _qwen25(size: str, shape: _Shape, tied: bool, vision: int) -> Entry:
    ids = f"Qwen/Qwen2.5-VL-{size.upper()}-Instruct"
    return _entry("Qwen2.5-VL", "qwen2_5_vl", size, ids, shape, tied, vision)


def _qwen3(size: str, shape: _Shape, tied: bool, vision: int, experts: Experts | None = None) -> Entry:
    ids = f"Qwen/Qwen3-VL-{size.upper()}-Instruct"
    family = "qwen3_vl_moe" if experts else "qwen3_vl"
    return _entry("Qwen3-VL", family, size, ids, shape, tied, vision, head_dim=128, experts=experts)


def _qwen35(
    size: str, shape: _Shape, value_heads: int, tied: bool, vision: int, experts: Experts | None = None
) -> Entry:
    # Every fourth layer is one of attention. Without the head that predicts a second token (`mtp`), which
    # transformers does not load.
    linear = LinearAttention(shape[0] - shape[0] // 4, 16, value_heads, 128, 128, 4)
    ids = f"Qwen/Qwen3.5-{size.upper()}"
    family = "qwen3_5_moe" if experts else "qwen3_5"
    return _entry("Qwen3.5", family, size, ids, shape, tied, vision, 256, linear, experts=experts)


def _onevision(size: str, shape: _Shape, tied: bool, vision: int) -> Entry:
    # The hub also holds `-chat` editions of two sizes; the paper compares with the `ov` ones.
    ids = f"llava-hf/llava-onevision-qwen2-{size}-ov-hf"
    return _entry("LLaVA-OV", "llava_onevision", size, ids, shape, tied, vision)


def _intern3(size: str, shape: _Shape, vision: int) -> Entry:
    # `-hf` are the checkpoints in transformers' own format.
    ids = f"OpenGVLab/InternVL3-{size.upper()}-hf"
    return _entry("InternVL3", "internvl", size, ids, shape, False, vision, decoder="qwen2")


def _intern35(size: str, shape: _Shape, vision: int, experts: Experts | None = None) -> Entry:
    ids = f"OpenGVLab/InternVL3_5-{size.upper()}-HF"
    decoder = "qwen3_moe" if experts else "qwen3"
    return _entry(
        "InternVL3.5", "internvl", size, ids, shape, False, vision, 128, decoder=decoder, experts=experts
    )


def _gemma3(size: str, shape: _Shape, head_dim: int, vision: int) -> Entry:
    ids = f"google/gemma-3-{size}-it"
    return _entry("Gemma-3", "gemma3", size, ids, shape, True, vision, head_dim=head_dim)


def _gemma4(size: str, shape: _Shape, mixed: MixedLayers, vision: int, **more: Any) -> Entry:
    ids = f"google/gemma-4-{size.upper()}-it"
    return _entry("Gemma-4", "gemma4", size, ids, shape, True, vision, head_dim=256, mixed=mixed, **more)


def _ministral3(size: str, shape: _Shape, tied: bool, vision: int) -> Entry:
    # What is published as Instruct is in FP8, with an edition in bf16 beside it.
    stem = f"mistralai/Ministral-3-{size.upper()}"
    ids = f"{stem}-Instruct-2512-BF16 {stem}-Instruct-2512 {stem}-Base-2512 {stem}-Reasoning-2512"
    entry = _entry("Ministral-3", "mistral3", size, ids, shape, tied, vision, head_dim=128)
    return replace(entry, fp8=(f"{stem}-Instruct-2512",))


def _smol(size: str, hub_id: str, shape: tuple[int, int, int, int, int, int], vision: int) -> Entry:
    return _entry("SmolVLM", "idefics3", size, f"HuggingFaceTB/{hub_id}", shape, False, vision)


# layers that see the whole text, their heads; keys lent to the last layers; inputs of every layer
_E2B = MixedLayers(7, 512, 1, shared=20, shared_whole=4, widening=2, inputs=256, input_vocab=262144)
_E4B = MixedLayers(7, 512, 2, shared=18, shared_whole=3, inputs=256, input_vocab=262144)
# shape: layers, hidden, ffn, heads, key/value heads, vocabulary rows
ENTRIES: tuple[Entry, ...] = (
    _qwen2("2b", (28, 1536, 8960, 12, 2, 151936), True, 665_271_296),
    _qwen2("7b", (28, 3584, 18944, 28, 4, 152064), False, 675_759_104),
    _qwen2("72b", (80, 8192, 29568, 64, 8, 152064), False, 699_356_672),
    _onevision("0.5b", (24, 896, 4864, 14, 2, 152000), True, 399_585_440),
    _onevision("7b", (28, 3584, 18944, 28, 4, 152128), False, 414_732_320),
    _onevision("72b", (80, 8192, 29568, 64, 8, 152128), False, 474_318_368),
    _qwen25("3b", (36, 2048, 11008, 16, 2, 151936), True, 668_684_288),
    _qwen25("7b", (28, 3584, 18944, 28, 4, 152064), False, 676_550_144),
    _qwen25("32b", (64, 5120, 27648, 40, 8, 152064), False, 688_841_984),
    _qwen25("72b", (80, 8192, 29568, 64, 8, 152064), False, 704_573_696),
    _qwen3("2b", (28, 2048, 6144, 16, 8, 151936), True, 406_957_056),
    _qwen3("4b", (36, 2560, 9728, 32, 8, 151936), True, 415_347_712),
    _qwen3("8b", (36, 4096, 12288, 32, 8, 151936), False, 576_388_336),
    _qwen3("32b", (64, 5120, 25600, 64, 8, 151936), False, 595_266_800),
    _qwen3("30b-a3b", (48, 2048, 0, 32, 4, 151936), False, 538_631_408, Experts(128, 8, 768)),
    _qwen3("235b-a22b", (94, 4096, 0, 64, 4, 151936), False, 576_388_336, Experts(128, 8, 1536)),
    _qwen35("0.8b", (24, 1024, 3584, 8, 2, 248320), 16, True, 100_592_896),
    _qwen35("2b", (24, 2048, 6144, 8, 2, 248320), 16, True, 331_416_576),
    _qwen35("4b", (32, 2560, 9216, 16, 4, 248320), 32, True, 333_514_240),
    _qwen35("9b", (32, 4096, 12288, 16, 4, 248320), 32, False, 456_010_480),
    _qwen35("27b", (64, 5120, 17408, 24, 4, 248320), 48, False, 460_730_096),
    _qwen35("35b-a3b", (40, 2048, 0, 16, 2, 248320), 32, False, 446_571_248, Experts(256, 8, 512, 512)),
    _qwen35("122b-a10b", (48, 3072, 0, 32, 2, 248320), 64, False, 451_290_864, Experts(256, 8, 1024, 1024)),
    _qwen35("397b-a17b", (60, 4096, 0, 32, 2, 248320), 64, False, 456_010_480, Experts(512, 10, 1024, 1024)),
    _intern3("1b", (24, 896, 4864, 14, 2, 151674), 308_495_104),
    _intern3("2b", (28, 1536, 8960, 12, 2, 151674), 312_674_304),
    _intern3("8b", (28, 3584, 18944, 28, 4, 151674), 331_552_768),
    _intern3("14b", (48, 5120, 13824, 40, 8, 151674), 351_216_640),
    _intern3("38b", (64, 5120, 27648, 40, 8, 151674), 5_628_282_240),
    _intern3("78b", (80, 8192, 29568, 64, 8, 151674), 5_708_504_448),
    _intern35("1b", (28, 1024, 3072, 16, 8, 151936), 309_265_408),
    _intern35("2b", (28, 2048, 6144, 16, 8, 151936), 316_607_488),
    _intern35("4b", (36, 2560, 9728, 32, 8, 151936), 321_064_960),
    _intern35("8b", (36, 4096, 12288, 32, 8, 151936), 337_583_104),
    _intern35("14b", (40, 5120, 17408, 40, 8, 151936), 351_216_640),
    _intern35("38b", (64, 5120, 25600, 64, 8, 151936), 5_628_282_240),
    _intern35("30b-a3b", (48, 2048, 0, 32, 4, 151936), 316_607_488, Experts(128, 8, 768)),
    _intern35("241b-a28b", (94, 4096, 0, 64, 4, 151936), 5_605_735_808, Experts(128, 8, 1536)),
    _gemma3("4b", (34, 2560, 10240, 8, 4, 262208), 256, 419_816_304),
    _gemma3("12b", (48, 3840, 15360, 16, 8, 262208), 256, 421_290_864),
    _gemma3("27b", (62, 5376, 21504, 32, 16, 262208), 128, 423_060_336),
    _gemma4("e2b", (35, 1536, 6144, 8, 1, 262144), _E2B, 168_544_256, unread=307_183_904),
    _gemma4("e4b", (42, 2560, 10240, 8, 2, 262144), _E4B, 169_330_688, unread=308_756_768),
    _gemma4("31b", (60, 5376, 21504, 32, 16, 262144), MixedLayers(10, 512, 4, True), 575_741_232),
    _gemma4(
        "26b-a4b",
        (30, 2816, 2112, 16, 8, 262144),
        MixedLayers(5, 512, 2, True),
        572_792_112,
        experts=Experts(128, 8, 704, 2112),
    ),
    _ministral3("3b", (26, 3072, 9216, 32, 8, 131072), True, 420_083_712),
    _ministral3("8b", (34, 4096, 14336, 32, 8, 131072), False, 428_472_320),
    _ministral3("14b", (40, 5120, 16384, 32, 8, 131072), False, 438_958_080),
    _smol("256m", "SmolVLM-256M-Instruct", (30, 576, 1536, 9, 3, 49280), 93_510_912),
    _smol("500m", "SmolVLM-500M-Instruct", (32, 960, 2560, 15, 5, 49280), 98_229_504),
    _smol("2.2b", "SmolVLM-Instruct", (24, 2048, 8192, 32, 32, 49155), 434_220_912),
)
DEMO_IDS = ("demo/large", "demo/small")


def find(model: str) -> Entry | None:
    """The catalogue's entry for a hub id or a name such as ``Qwen2-VL-2B``; case does not matter."""
    return _by_name().get(model.casefold())


def facts_of(model: str, revision: str | None = None) -> ModelFacts | None:
    """Facts of a demo model, of a local folder, of the catalogue, or of a snapshot in the hub's cache; else
    None."""
    if model in DEMO_IDS:
        return facts_from_folder(DEMO_FOLDER / model.removeprefix("demo/"), name=model)
    if Path(model).is_dir():
        return facts_from_folder(Path(model))
    if entry := find(model):
        in_fp8 = model.casefold() in map(str.casefold, entry.fp8)
        return replace(entry.facts, rounded="fp8") if in_fp8 else entry.facts
    snapshot = cached_snapshot(model, revision)
    return facts_from_folder(snapshot, name=model) if snapshot else None


def resolve_alias(model: str, teacher: str | None = None) -> str:
    """What a typed name stands for.

    ``2b`` is the 2B of the teacher's family (its instruct checkpoint), ``small`` next to ``demo/large`` is
    ``demo/small``, a catalogue name such as ``Qwen2-VL-2B`` is its first hub id. Hub ids and folders stay as
    typed, but for ``~``, so that ``Qwen/Qwen2-VL-72B`` remains the base checkpoint of that name.

    Raises:
        ConfigError: a size that the teacher's family does not have, or a word that names nothing.
    """
    if _SIZE.fullmatch(model) or (model in ("small", "large") and not Path(model).is_dir()):
        return _resolve_size(model, teacher)
    if "/" in model or "\\" in model or Path(model).is_dir():
        return at_home(model)
    if entry := find(model):
        return entry.ids[0]
    names = [entry.facts.name for entry in ENTRIES] + list(DEMO_IDS)
    near = did_you_mean(model, [*names, *_folders_here()])
    raise ConfigError(
        f"no model is named '{model}'",
        hint=f"did you mean {near}?"
        if near
        else "give a hub id (owner/name), a local folder, or one of " + ", ".join(names),
    )


def _folders_here() -> list[str]:
    """Folders that a name without a slash may have meant."""
    try:
        return sorted(path.name for path in Path().iterdir() if path.is_dir() and path.name[0] != ".")
    except OSError:
        return []


def _resolve_size(size: str, teacher: str | None) -> str:
    if teacher is None:
        raise ConfigError(
            f"'{size}' is a size within the teacher's family, but no teacher is given",
            hint="add --teacher, or give the whole hub id",
        )
    if teacher in DEMO_IDS:
        choices = {"small": "demo/small", "large": "demo/large"}
        family = "demo"
    else:
        group = group_of(teacher)
        if group is None:
            near = did_you_mean(teacher, [id for entry in ENTRIES for id in entry.ids])
            raise ConfigError(
                f"'{size}' cannot be resolved: the family of the teacher '{teacher}' is not in the catalogue",
                hint=(f"did you mean {near}? " if near else "") + "give the student's hub id or folder",
            )
        # those with experts have names, and cannot be students
        choices = {e.size: e.ids[0] for e in ENTRIES if e.group == group and e.facts.experts is None}
        family = group
    if size.casefold() in choices:
        return choices[size.casefold()]
    near = did_you_mean(size, choices)
    raise ConfigError(
        f"the family {family} has no size '{size}'",
        hint=(f"did you mean {near}? " if near else "") + f"it has {', '.join(choices)}",
    )


def group_of(model: str) -> str | None:
    """The family group of a hub id, or of a local folder by its model type; None when the catalogue has
    none."""
    if entry := find(model):
        return entry.group
    facts = facts_of(model)
    if facts is None:
        return None
    # two groups of one family differ in their decoders
    groups = {(entry.facts.model_type, entry.facts.qk_norm): entry.group for entry in ENTRIES}
    return groups.get((facts.model_type, facts.qk_norm))


@cache
def _by_name() -> dict[str, Entry]:
    names: dict[str, Entry] = {}
    for entry in ENTRIES:
        for name in (entry.facts.name, *entry.ids):
            names[name.casefold()] = entry
        if entry.group == "LLaVA-OV":
            names[f"llava-onevision-{entry.size}"] = entry
    return names
