"""Can these two models be distilled into one another? Checked on facts and probes before anything is trained.

The small model is fed exactly what the large one is fed: the same token ids and the same pixels, position by
position. So both must have the same tokenizer, put the same number of image tokens for the same picture, and read
pixels prepared in the same way. The vocabulary may have more rows than the tokenizer has tokens (padding), on either
side: the losses cut both to the tokenizer's length.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

from PIL import Image

from vlsi_cli.engine.backbones.family import Family
from vlsi_cli.engine.backbones.quiet import quiet_transformers
from vlsi_cli.errors import CompatibilityError

#: Texts on which tokenizers that look alike come apart: scripts, digits, spaces, signs, code, joined emoji.
PROBE_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Größe: 12,5 m²; naïve café — “quotes” … 3½",
    "日本語のテキストと中文字符，以及한국어.",
    "Привет, мир! مرحبا بالعالم שלום नमस्ते",
    "1234567890 3.14159 1,000,000 2^10 x_i+1 007",
    "👩\u200d👩\u200d👧\u200d👦 🙂🚀 \u00e9 vs e\u0301, \ufb01 vs fi, \u200b zero \u00a0 hard",
    "  leading, double  inner,\ttab\nnewline\n\n\nmany   \r\n trailing  ",
    "def f(x):\n    return {'a': [1, 2], \"b\": None}  # <br/> \\frac{a}{b}",
    "'s 're DON'T SHOUTING camelCase snake_case https://example.org/a?b=c&d=%20",
)

#: Sizes (width, height) of the pictures that image tokens are counted on.
PROBE_SIZES = ((32, 32), (56, 84), (224, 224), (640, 480), (200, 600))

#: Differing settings of image preparation that a message names.
_SETTINGS_SHOWN = 4

#: Settings of the vision side that fix how many features a picture has; compared where a model has them.
_VISION_KEYS = ("patch_size", "spatial_merge_size", "temporal_patch_size", "image_size")
_MODEL_KEYS = (
    "vision_feature_select_strategy",
    "vision_aspect_ratio",
    "image_grid_pinpoints",
    "scale_factor",
    "spatial_merge_size",
)


class Side(Protocol):
    """What the checks read of a model: a loaded Backbone and a Description without weights both have it."""

    id: str
    family: Family
    processor: Any

    @property
    def config(self) -> Any:
        """The model's config."""

    @property
    def num_layers(self) -> int:
        """Decoder layers."""

    @property
    def vocabulary_rows(self) -> int:
        """Rows of the head."""

    @property
    def tokenizer_length(self) -> int:
        """The largest token id + 1."""


def check_pair(
    teacher: Side, student: Side, teacher_targets: Sequence[int], student_targets: Sequence[int]
) -> list[str]:
    """Check that the large model can teach the small one.

    Args:
        teacher, student: the large and the small model, loaded or only described.
        teacher_targets, student_targets: their target layers, counted from 1.

    Returns:
        What was found, one sentence each, for the plan and the log.

    Raises:
        CompatibilityError: one sentence for each check that failed, naming both sides and what to do.
    """
    failed: list[str] = []
    failed += _targets(teacher, student, teacher_targets, student_targets)
    tokenizer = _tokenizers(teacher, student)
    failed += tokenizer or _special_ids(teacher, student)
    failed += _vocabulary(teacher) + _vocabulary(student)
    settings = _image_settings(teacher, student)
    failed += settings
    if not tokenizer and not settings:
        failed += _image_counts(teacher, student)
    if failed:
        if teacher.family.name != student.family.name:
            failed.insert(
                0, f"the one is of the family {teacher.family.title}, the other of {student.family.title}"
            )
        raise CompatibilityError(
            f"'{teacher.id}' cannot teach '{student.id}': " + "; ".join(failed),
            hint="take a teacher and a student of one family, or see docs/models.md for what is checked",
        )
    return _facts(teacher, student, teacher_targets, student_targets)


def reading_digests(processor: Any) -> dict[str, str]:
    """SHA-256 of what turns a record into token ids and pixels: ``tokenizer``, ``chat_template`` and ``images``.

    Of the tokenizer the vocabulary and the order of merges, of the image processor its settings. Two processors
    with equal digests read alike, but for rounding between image libraries.
    """
    tokenizer = processor.tokenizer
    parts = {
        "tokenizer": [sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]), _merges(tokenizer)],
        "chat_template": processor.chat_template,
        "images": _image_processor_settings(processor.image_processor),
    }
    return {
        name: hashlib.sha256(json.dumps(part, sort_keys=True, default=str).encode()).hexdigest()
        for name, part in parts.items()
    }


def _targets(teacher: Side, student: Side, large: Sequence[int], small: Sequence[int]) -> list[str]:
    failed = []
    for side, targets in ((teacher, large), (student, small)):
        if not targets:
            failed.append(
                f"'{side.id}' has {side.num_layers} decoder layers and no target layer among them: choose a smaller "
                "start or stride"
            )
        elif any(b <= a for a, b in pairwise(targets)):
            failed.append(f"the target layers of '{side.id}', {_listed(targets)}, do not ascend")
        elif targets[0] < 1 or targets[-1] >= side.num_layers:
            failed.append(
                f"the target layers of '{side.id}', {_listed(targets)}, leave 1..{side.num_layers - 1} (it has "
                f"{side.num_layers} decoder layers and the last one has its own loss)"
            )
    if not failed and len(small) > len(large):
        failed.append(
            f"'{student.id}' has {len(small)} target layers and '{teacher.id}' only {len(large)}: each small one "
            "needs a large one of its own, so widen the student's stride or narrow the teacher's"
        )
    return failed


def _tokenizers(teacher: Side, student: Side) -> list[str]:
    """Same pieces, same ids, same cuts: vocabulary and merge ranks are compared whole, the other rules by probes."""
    large, small = teacher.processor.tokenizer, student.processor.tokenizer
    ours, theirs = small.get_vocab(), large.get_vocab()
    if ours != theirs:
        odd = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
        large_id, small_id = (words.get(odd[0], "absent") for words in (theirs, ours))
        return [
            f"their tokenizers differ in {len(odd)} tokens ('{teacher.id}' has {len(theirs)}, '{student.id}' has "
            f"{len(ours)}; {odd[0]!r} is {large_id} in the one and {small_id} in the other), so their distributions "
            "are over different words"
        ]
    if _merges(large) != _merges(small):
        return [
            f"the tokenizers of '{teacher.id}' and '{student.id}' have the same tokens but merge them in another order"
        ]
    specials = [str(token) for token in small.all_special_tokens]
    for text in (*PROBE_TEXTS, "".join(specials), " ".join(specials)):
        if large(text)["input_ids"] != small(text)["input_ids"]:
            return [
                f"the tokenizers of '{teacher.id}' and '{student.id}' have the same tokens but cut {text!r} differently"
            ]
    return []


def _merges(tokenizer: Any) -> Any:
    """The ranked merges of a byte-pair tokenizer, or None for one that has no such thing to show."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return json.loads(backend.to_str())["model"].get("merges") if backend is not None else None


def _special_ids(teacher: Side, student: Side) -> list[str]:
    failed = []
    for what in ("image_token_id", "video_token_id"):
        large = getattr(teacher.family, what)(teacher.config)
        small = getattr(student.family, what)(student.config)
        if large is not None and small is not None and large != small:
            failed.append(f"the {what} of '{teacher.id}' is {large} and that of '{student.id}' is {small}")
    return failed


def _vocabulary(side: Side) -> list[str]:
    if side.vocabulary_rows >= side.tokenizer_length:
        return []
    return [
        f"'{side.id}' has {side.vocabulary_rows} vocabulary rows for a tokenizer of {side.tokenizer_length} tokens: "
        "its folder mixes two models"
    ]


def _image_settings(teacher: Side, student: Side) -> list[str]:
    """Pixels must be prepared alike, and cut into features alike."""
    differing: dict[str, tuple[Any, Any]] = {}
    large, small = (_image_processor_settings(s.processor.image_processor) for s in (teacher, student))
    for key in sorted(large.keys() | small.keys()):
        if large.get(key) != small.get(key):
            differing[key] = (large.get(key), small.get(key))
    for owner, keys in ((lambda s: s.config.vision_config, _VISION_KEYS), (lambda s: s.config, _MODEL_KEYS)):
        for key in keys:
            pair = (_plain(getattr(owner(teacher), key, None)), _plain(getattr(owner(student), key, None)))
            if pair[0] != pair[1]:
                differing.setdefault(key, pair)
    if not differing:
        return []
    shown = sorted(differing.items(), key=lambda item: item[0] != "size")[:_SETTINGS_SHOWN]
    more = f" and {len(differing) - len(shown)} more" if len(differing) > len(shown) else ""
    one_budget = " (set data.min_pixels and data.max_pixels to give both one budget)"
    budget = one_budget if student.family.pixel_budget else ""
    return [
        "images are prepared differently: "
        + ", ".join(
            f"{key} is {_short(values[0])} for '{teacher.id}' and {_short(values[1])} for '{student.id}'"
            + (budget if key == "size" else "")
            for key, values in shown
        )
        + more
    ]


def _image_processor_settings(image_processor: Any) -> dict[str, Any]:
    names = ("image_processor_type", "processor_class", "auto_map", "device", "return_tensors")
    # A setting without a value is no setting: old folders write nulls where new ones write nothing. The budget of
    # pixels is written twice in some folders; `size` is the one that is read.
    left_out: tuple[str, ...] = (*names, "min_pixels", "max_pixels", "data_format", "input_data_format")
    settings = image_processor.to_dict()
    if "max_soft_tokens" in settings:  # Gemma 4's folders may have sizes too, which nothing reads
        left_out = (*left_out, "size", "image_seq_length")
    return {k: _plain(v) for k, v in settings.items() if v is not None and k not in left_out and k[0] != "_"}


def _image_counts(teacher: Side, student: Side) -> list[str]:
    for size in PROBE_SIZES:
        large, small = (image_token_count(s, size) for s in (teacher, student))
        if large != small:
            return [
                f"a picture of {size[0]}x{size[1]} takes {large} image tokens in '{teacher.id}' and {small} in "
                f"'{student.id}', so their positions do not correspond"
            ]
    return []


def image_token_count(side: Side, size: tuple[int, int]) -> int:
    """How many image tokens the processor puts for one grey picture of a size (width, height)."""
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    with quiet_transformers():
        text = side.processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        picture = Image.new("RGB", size, (127, 127, 127))
        inputs = side.processor(text=[text], images=[picture], return_tensors="pt")
    return side.family.image_tokens(side.config, inputs)[0]


def _facts(teacher: Side, student: Side, large: Sequence[int], small: Sequence[int]) -> list[str]:
    length = student.tokenizer_length
    counts = ", ".join(f"{w}x{h}: {image_token_count(student, (w, h))}" for w, h in PROBE_SIZES)
    facts = [
        f"one tokenizer of {length} tokens; vocabulary rows {teacher.vocabulary_rows} (large) and "
        f"{student.vocabulary_rows} (small), both cut to {length}",
        f"image tokens a picture: {counts}",
        f"{len(small)} small target layer{'s' * (len(small) != 1)} {_listed(small)} find partners among "
        f"{len(large)} large ones {_listed(large)}",
    ]
    ends = [s.processor.tokenizer.eos_token for s in (teacher, student)]
    if ends[0] != ends[1]:
        # base and instruct checkpoints of one family differ here; both were fed the same tokens all the same
        facts.append(
            f"'{teacher.id}' ends a text with {ends[0]}: responses end as those of '{student.id}', {ends[1]}"
        )
    if teacher.processor.chat_template != student.processor.chat_template:
        facts.append(f"chat templates differ: prompts are written with that of '{student.id}'")
    if teacher.family.name != student.family.name:
        facts.append(f"families differ: {teacher.family.title} teaches {student.family.title}")
    return facts


def _plain(value: Any) -> Any:
    """Tuples, lists and size objects as plain data, so that equal settings compare equal."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(k): _plain(v) for k, v in value.items() if v is not None}
    return value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _listed(layers: Sequence[int]) -> str:
    return ",".join(map(str, layers)) if len(layers) <= 8 else f"{layers[0]},{layers[1]},...,{layers[-1]}"
