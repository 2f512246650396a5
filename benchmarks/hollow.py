"""Checkpoints of any size that take no disk: files of zeros with holes in them.

What a run needs of memory does not ask what the weights are. A hollow checkpoint has the config, the processor and the
tokenizer of a model of the Qwen2-VL architecture and safetensors files whose headers are true and whose bytes are a
hole, so that a 72B one is made in a second and is read by the whole program as any other. Its words are the demo's,
filled up to the shape's vocabulary with ones that no text has; zeros as weights make every word equally likely.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import shapes
from vlsi_cli.config.models import VerbalizerConfig
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.families import FAMILIES
from vlsi_cli.engine.backbones.folders import resolve_folder
from vlsi_cli.engine.backbones.quiet import quiet_transformers
from vlsi_cli.engine.runs.models import new_verbalizers
from vlsi_cli.engine.verbalizing.files import file_sha256
from vlsi_cli.engine.verbalizing.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    TENSOR_FILE,
    Manifest,
    head_fingerprint,
    installed_versions,
)

_TYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def write_model(folder: Path, word: str, *, image_tokens: int = 0) -> None:
    """Write a hollow checkpoint without weights: all that `vlsi plan` asks for.

    Args:
        folder: to be made.
        word: a shape by name, see :func:`benchmarks.shapes.shape_of`.
        image_tokens: about how many of them every picture takes; 0: what its size asks for.
    """
    source, shape = resolve_folder("demo/large", None), shapes.shape_of(word)
    folder.mkdir(parents=True)
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    known = json.loads((source / "config.json").read_text("utf-8"))
    moved = _write_tokenizer(source, folder, shape.vocabulary)
    ids = {name: known[name] + moved for name in known if name.endswith("_token_id")}
    config = shapes.config_of(word, **ids)
    config.architectures = ["Qwen2VLForConditionalGeneration"]
    config.save_pretrained(folder)
    pictures = json.loads((source / "preprocessor_config.json").read_text("utf-8"))
    pictures["patch_size"] = shape.vision[3]
    if image_tokens:
        area = image_tokens * (shape.vision[3] * pictures["merge_size"]) ** 2
        pictures["size"] = {"shortest_edge": area, "longest_edge": area}
    _write_json(folder / "preprocessor_config.json", pictures)


def write_weights(folder: Path, word: str) -> None:
    """Add the hollow weights."""
    tensors = _without_memory(word).model.state_dict()
    if shapes.shape_of(word).tied:
        del tensors["lm_head.weight"]
    write_hole(folder / "model.safetensors", tensors, torch.bfloat16)


def write_verbalizers(folder: Path, model: Path, word: str) -> None:
    """Write a hollow set of verbalizers for a hollow model of that shape."""
    base, shape = _without_memory(word), shapes.shape_of(word)
    said = new_verbalizers(base, shape.targets, VerbalizerConfig(), 0, "meta")
    folder.mkdir(parents=True)
    write_hole(folder / TENSOR_FILE, said.state_dict(), torch.float32)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        base_id=str(model),
        base_revision=None,
        head_sha256=head_fingerprint(torch.zeros(1, shape.hidden).expand(shape.rows, shape.hidden)),
        hidden_size=said.hidden_size,
        intermediate_size=said.intermediate_size,
        layers=said.targets,
        architecture=said.architecture,
        init=said.init,
        residual=said.residual,
        norm=said.normed,
        initializer_range=said.initializer_range,
        training={},
        versions=installed_versions(),
        tensors_sha256=file_sha256(folder / TENSOR_FILE),
    )
    (folder / MANIFEST_FILE).write_text(manifest.to_json(), "utf-8")


def write_hole(path: Path, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Write a safetensors file of zeros that takes a block or two of the disk.

    Args:
        tensors: names and shapes; they may be on the device "meta".
        dtype: of the file.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, each in tensors.items():
        end = place + math.prod(each.shape) * dtype.itemsize
        header[name] = {"dtype": _TYPES[dtype], "shape": list(each.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + place)


def _without_memory(word: str) -> Backbone:
    from transformers import AutoModelForImageTextToText

    with quiet_transformers(), torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(shapes.config_of(word), dtype=torch.bfloat16)
    family = FAMILIES["qwen2_vl"]
    return Backbone(model=model, family=family, processor=None, id=word, revision=None, folder=Path())


def _write_tokenizer(source: Path, folder: Path, vocabulary: int) -> int:
    """The source's words, fillers, and the source's special tokens at the end; by how much these have moved."""
    tokenizer = json.loads((source / "tokenizer.json").read_text("utf-8"))
    words, special = tokenizer["model"]["vocab"], tokenizer["added_tokens"]
    moved = vocabulary - len(words) - len(special)
    words |= {f"<filler {number}>": number for number in range(len(words), len(words) + moved)}
    for token in special:
        token["id"] += moved
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    return moved


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
