"""Exported graphs against torch on a CPU: speed and memory, as ratios within one run.

    vlsi export MODEL -o fp32; vlsi export MODEL --quantize int8 -o int8; vlsi export MODEL --quantize int4 -o int4
    python benchmarks/export.py MODEL fp32 int8 int4

Speed: every round goes through torch and each folder in turn, and the process's own seconds are counted, so that
whatever else the machine does disturbs them little and alike; shown is the median over rounds of torch's time over
theirs. Memory: one process each, its peak less what it held before
the weights were loaded. One thread throughout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # noqa: F401  # before memory is measured: its own size is not the model's
import torch
from PIL import Image
from transformers import DynamicCache

from vlsi_cli.engine.backbones.arguments import cache_argument
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.backbones.processors import load_processor
from vlsi_cli.engine.data.collate import collate_prompts
from vlsi_cli.engine.data.records import ImageRef, Message, Record
from vlsi_cli.engine.data.template import ChatEncoder
from vlsi_cli.engine.exporting.graphs import has_mrope
from vlsi_cli.engine.exporting.runtime import OnnxModel, mrope_positions

#: Reads a prompt with a picture, then writes tokens; gives seconds for each.
Work = Callable[[int], tuple[float, float]]


def prompt(processor: Any) -> dict[str, torch.Tensor]:
    """A question about a picture of 320 x 240 pixels, resized to the model's budget."""
    encoder = ChatEncoder(processor)
    picture = Image.linear_gradient("L").resize((320, 240)).convert("RGB")
    talk = (Message("user", (0, "Describe the picture. " * 8)), Message("assistant", ("-",)))
    return collate_prompts([encoder.encode_prompt(Record("b", talk, (ImageRef(picture=picture),)))], 0).inputs


def with_torch(model: str) -> Work:
    """The model itself, through its own forward and cache."""
    backbone = load_backbone(model)
    inputs = prompt(backbone.processor)
    places: list[torch.Tensor | None] = [None, None]  # of the prompt, and of the token after it
    if has_mrope(backbone.config):
        ids, mask, grid = (inputs[name].numpy() for name in ("input_ids", "attention_mask", "image_grid_thw"))
        merge = backbone.config.vision_config.spatial_merge_size
        positions, after = mrope_positions(ids, mask, grid, backbone.image_token_id, merge)
        places = [torch.from_numpy(positions), torch.full((3, 1, 1), int(after[0]))]

    @torch.no_grad()
    def work(tokens: int) -> tuple[float, float]:
        began = time.process_time()
        first, place = places
        cache = DynamicCache()
        out = backbone.model(
            **inputs,
            **cache_argument(backbone.model, cache),
            position_ids=first,
            use_cache=True,
            logits_to_keep=1,
        )
        read = time.process_time()
        mask = inputs["attention_mask"]
        for _ in range(tokens):
            token = out.logits[:, -1].argmax(dim=-1, keepdim=True)
            mask = torch.cat([mask, torch.ones_like(token)], dim=1)
            past = {"use_cache": True, "position_ids": place, **cache_argument(backbone.model, cache)}
            out = backbone.model(input_ids=token, attention_mask=mask, **past)
            place = None if place is None else place + 1
        return read - began, time.process_time() - read

    return work


def with_onnx(folder: Path, model: str) -> Work:
    """An exported folder."""
    exported = OnnxModel(folder, threads=1)
    inputs = {name: value.numpy() for name, value in prompt(load_processor(resolve(model))).items()}

    def work(tokens: int) -> tuple[float, float]:
        began = time.process_time()
        logits, talk = exported.begin(inputs)
        read = time.process_time()
        for _ in range(tokens):
            logits = exported.extend(talk, np.asarray(logits[:, -1].argmax(axis=-1))[:, None])
        return read - began, time.process_time() - read

    return work


def resolve(model: str) -> Path:
    """The folder of a model."""
    from vlsi_cli.engine.backbones.folders import resolve_folder

    return resolve_folder(model)


def made(variant: str, model: str) -> Work:
    """``torch``, or an exported folder."""
    return with_torch(model) if variant == "torch" else with_onnx(Path(variant), model)


def kilobytes(field: str) -> int:
    """A line of Linux's account of this process, kB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def memory(variant: str, model: str, tokens: int) -> int:
    """kB at the peak, less what was there before the weights; in a process of its own."""
    command = [sys.executable, __file__, model, variant, "--tokens", str(tokens), "--memory"]
    return int(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.memory:
        before = kilobytes("VmRSS")
        made(asked.folders[0], asked.model)(asked.tokens)
        print(max(kilobytes("VmHWM") - before, 0))
        return
    variants = ["torch", *asked.folders]
    works = {variant: made(variant, asked.model) for variant in variants}
    times: dict[str, list[tuple[float, float]]] = {variant: [] for variant in variants}
    for round_ in range(asked.rounds + 1):
        for variant, work in works.items():
            measured = work(asked.tokens)
            if round_:  # the first warms up
                times[variant].append(measured)
    print("| | reading the prompt | writing a token | memory | weights on disk |")
    print("|---|---|---|---|---|")
    base, disk = memory("torch", asked.model, asked.tokens), bytes_in(resolve(asked.model), ".safetensors")
    for variant in variants:
        ratios = [[t / o for t, o in zip(a, b, strict=True)]
                  for a, b in zip(times["torch"], times[variant], strict=True)]  # fmt: skip
        read, write = (statistics.median(pair[i] for pair in ratios) for i in (0, 1))
        held = memory(variant, asked.model, asked.tokens) / base
        size = 1.0 if variant == "torch" else bytes_in(Path(variant), ".onnx", ".onnx_data") / disk
        print(
            f"| {Path(variant).name} | {read:.1f} x as fast | {write:.1f} x | {held:.2f} x | {size:.2f} x |"
        )


def bytes_in(folder: Path, *endings: str) -> int:
    """Bytes of the files of a folder with one of these endings."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in endings)


if __name__ == "__main__":
    main()
