"""An exported folder under onnxruntime: the loop around the three graphs, for both layouts.

Shapes: B rows, S new positions, P positions in the cache, F picture features, H hidden width, V vocabulary rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from vlsi_cli.engine.exporting.layouts import MROPE, NESTED, PRECISIONS, TILED, Layout, layout_for
from vlsi_cli.errors import CheckpointError

#: Pixels of one call of a vision graph: 16 tiles of SmolVLM-256M, whose attention weights take 0.8 GB.
_PIXELS = 2**22

Inputs = Mapping[str, np.ndarray[Any, Any]]
Array = np.ndarray[Any, Any]


@dataclass
class Talk:
    """Where a generation stands.

    Attributes:
        cache: the decoder's cache by input name, [B, G, P, D] each.
        mask: [B, P], 1 for tokens and 0 for padding.
        place: [B] the position that the next token gets.
    """

    cache: dict[str, Array]
    mask: Array
    place: Array


class OnnxModel:
    """Three sessions and the arithmetic between them.

    Args:
        folder: an exported folder.
        threads: of onnxruntime; None leaves the choice to it.

    Raises:
        CheckpointError: the folder is no export, or a graph in it cannot be loaded.
    """

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        self.folder = folder
        self.layout, self.precision, self.config = _recognise(folder)
        self.files = self.layout.files(self.precision)
        self.vision, self.embedding, self.decoder = (_session(folder / name, threads) for name in self.files)
        self.mrope = self.config["model_type"] in MROPE
        self._cache = {i.name: i for i in self.decoder.get_inputs() if i.name.startswith("past_key_values.")}

    @property
    def image_token_id(self) -> int:
        """Id of the token that each picture feature replaces."""
        llava = self.config["model_type"] == "llava_onevision"
        return int(self.config["image_token_index" if llava else "image_token_id"])

    def features(self, inputs: Inputs) -> Array:
        """Features of all pictures of a batch, [F, H], in the order of their tokens."""
        if self.mrope:
            feeds = {"pixel_values": inputs["pixel_values"], self.layout.grid: inputs["image_grid_thw"]}
            return _run(self.vision, feeds)
        if self.config["model_type"] in NESTED:
            return self._nested_features(inputs)
        if self.config["model_type"] in TILED:
            return self._tile_features(inputs["pixel_values"])
        return self._packed_features(inputs)

    def begin(self, inputs: Inputs, *, keep: int = 1) -> tuple[Array, Talk]:
        """Read a batch of prompts.

        Args:
            inputs: what the processor made, left padded, as numpy arrays.
            keep: logits of how many last positions; 0 for all of them.

        Returns:
            logits [B, keep, V] in fp32, and where the generation stands.
        """
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if self.mrope:
            grids = inputs.get("image_grid_thw")
            merge = int(self.config["vision_config"].get("spatial_merge_size", 2))
            positions, place = mrope_positions(ids, mask, grids, self.image_token_id, merge)
        else:
            positions = np.where(mask == 1, mask.cumsum(axis=1) - 1, 0)
            place = mask.sum(axis=1)
        cache = {
            name: np.zeros(
                [len(ids), i.shape[1], 0, i.shape[3]], np.float16 if "16" in i.type else np.float32
            )
            for name, i in self._cache.items()
        }
        features = self.features(inputs) if "pixel_values" in inputs else None
        talk = Talk(cache, mask, place)
        return self._step(self._embeds(ids, features), positions, talk, keep), talk

    def extend(self, talk: Talk, tokens: Array) -> Array:
        """Read one more token a row, [B, 1]; logits [B, 1, V] of what follows."""
        talk.mask = np.concatenate([talk.mask, np.ones_like(tokens)], axis=1)
        positions = talk.place[:, None]
        if self.mrope:
            positions = np.broadcast_to(positions, (3, *positions.shape)).copy()
        talk.place = talk.place + 1
        return self._step(self._embeds(tokens, None), positions, talk, 1)

    def generate(self, inputs: Inputs, *, ends: set[int], max_new_tokens: int = 32) -> list[list[int]]:
        """Greedy answers of a batch, each up to and without its end token."""
        logits, talk = self.begin(inputs)
        rows: list[list[int]] = [[] for _ in logits]
        done = np.zeros(len(rows), bool)
        for step in range(max_new_tokens):
            tokens = logits[:, -1].argmax(axis=-1)
            done |= np.isin(tokens, list(ends))
            for row in np.flatnonzero(~done):
                rows[row].append(int(tokens[row]))
            if done.all() or step + 1 == max_new_tokens:
                break
            logits = self.extend(talk, tokens[:, None])
        return rows

    def _embeds(self, ids: Array, features: Array | None) -> Array:
        if self.layout.merged:
            width = self.decoder.get_inputs()[0].shape[-1]
            none = np.zeros((0, width), np.float32)
            return _run(
                self.embedding, {"input_ids": ids, "image_features": none if features is None else features}
            )
        embeds = _run(self.embedding, {"input_ids": ids})
        if features is not None:
            embeds[ids == self.image_token_id] = features
        return embeds

    def _step(self, embeds: Array, positions: Array, talk: Talk, keep: int) -> Array:
        feeds: dict[str, Array] = {
            "inputs_embeds": embeds,
            "attention_mask": talk.mask,
            "position_ids": positions,
        }
        if self.layout.keep:
            feeds["num_logits_to_keep"] = np.array(keep, np.int64)
        logits, *grown = self.decoder.run(None, feeds | talk.cache)
        talk.cache = dict(zip(talk.cache, grown, strict=True))
        return np.asarray(logits if self.layout.keep or not keep else logits[:, -keep:])

    def _nested_features(self, inputs: Inputs) -> Array:
        """SmolVLM and Idefics3: tiles of all rows to features; the graph leaves padding out.

        A large batch goes through in parts, since the graph holds the attention weights of all tiles of a call.
        """
        pixels, mask = inputs["pixel_values"], inputs["pixel_attention_mask"].astype(bool)
        together = max(1, _PIXELS // pixels.shape[-1] ** 2)
        if pixels.shape[0] * pixels.shape[1] > together:
            pixels, mask = (value.reshape(1, -1, *value.shape[2:]) for value in (pixels, mask))
        parts = [
            _run(self.vision, {"pixel_values": pixels[:, at:end], "pixel_attention_mask": mask[:, at:end]})
            for at, end in ((at, at + together) for at in range(0, pixels.shape[1], together))
            if mask[:, at:end].any()
        ]
        return np.concatenate(parts).reshape(-1, parts[0].shape[-1])

    def _tile_features(self, pixels: Array) -> Array:
        """InternVL: tiles to features."""
        together = max(1, _PIXELS // pixels.shape[-1] ** 2)
        parts = [
            _run(self.vision, {"pixel_values": pixels[at : at + together]})
            for at in range(0, len(pixels), together)
        ]
        return np.concatenate(parts).reshape(-1, parts[0].shape[-1])

    def _packed_features(self, inputs: Inputs) -> Array:
        """LLaVA-OneVision: tiles to features, laid out as transformers does it."""
        import torch
        from transformers import AutoConfig
        from transformers.models.llava_onevision import modeling_llava_onevision as stock

        config: Any = AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        sizes = torch.from_numpy(inputs["image_sizes"])
        # a prompt with several pictures shows one tile of each
        alone = [n == 1 for n in inputs.get("batch_num_images", [1] * len(sizes)) for _ in range(n)]
        counts = [
            stock.image_size_to_num_patches(
                size, config.image_grid_pinpoints, config.vision_config.image_size
            )
            if tiled
            else 1
            for size, tiled in zip(sizes, alone, strict=True)
        ]
        tiles = np.concatenate([t[:n] for t, n in zip(inputs["pixel_values"], counts, strict=True)])
        seen = torch.from_numpy(_run(self.vision, {"pixel_values": tiles}))
        packed, _ = stock.LlavaOnevisionModel.pack_image_features(
            SimpleNamespace(config=config),
            torch.split(seen[:, :-1], counts),
            sizes,
            image_newline=seen[0, -1],
            vision_aspect_ratio=config.vision_aspect_ratio,
        )
        return torch.cat(list(packed)).numpy()


def mrope_positions(
    ids: Array, mask: Array, grids: Array | None, image_token_id: int, merge: int
) -> tuple[Array, Array]:
    """Positions of M-RoPE: what Qwen2-VL and Qwen2.5-VL expect as ``position_ids``.

    Text counts on in all three parts. A picture of R x C features starts one past the text before it; its features
    share that time, and their rows and columns count from it. Text goes on one past the largest position so far.

    Args:
        ids: [B, S] tokens.
        mask: [B, S]; padding gets position 0.
        grids: [I, 3] grids of the pictures in order, in patches; None without pictures.
        image_token_id: the token of a feature.
        merge: patches a side of a feature.

    Returns:
        positions [3, B, S] and, for each row, the position of the next token, [B].
    """
    positions = np.zeros((3, *ids.shape), np.int64)
    following = np.zeros(len(ids), np.int64)
    pictures = iter([] if grids is None else grids.tolist())
    for row in range(len(ids)):
        columns = np.flatnonzero(mask[row])
        at, place = 0, 0
        while at < len(columns):
            if ids[row, columns[at]] != image_token_id:
                positions[:, row, columns[at]] = place
                at, place = at + 1, place + 1
                continue
            frames, high, wide = next(pictures)
            high, wide = high // merge, wide // merge
            span = columns[at : at + frames * high * wide]
            inside = np.stack(np.unravel_index(np.arange(len(span)), (frames, high, wide)))
            positions[:, row, span] = inside + place
            at, place = at + len(span), place + max(high, wide)
        following[row] = place
    return positions, following


def _recognise(folder: Path) -> tuple[Layout, str, dict[str, Any]]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for name in ("transformers.js", "ort-genai"):
            layout = layout_for(name, config["model_type"])
            for precision in PRECISIONS:
                if all((folder / file).is_file() for file in layout.files(precision)):
                    return layout, precision, config
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is not an exported model: its config.json cannot be read ({error})",
            hint="export one: vlsi export MODEL --output DIR",
        ) from error
    raise CheckpointError(
        f"{folder} is not an exported model: it lacks one of the three graphs",
        hint="export one: vlsi export MODEL --output DIR",
    )


def _session(path: Path, threads: int | None) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = options.inter_op_num_threads = threads
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # damaged files raise errors of many unrelated kinds
        cause = str(error).strip().splitlines()[0]
        raise CheckpointError(f"the graph {path} cannot be loaded: {cause}") from error


def _run(session: Any, feeds: dict[str, Array]) -> Array:
    return np.asarray(session.run(None, feeds)[0])
