"""What reading all layers of a model costs, against one generation a layer.

    PYTHONPATH=. python benchmarks/verbalize.py
    PYTHONPATH=. python benchmarks/verbalize.py --model FOLDER|ID --new-tokens 32 --repeats 3

The naive way is plain transformers: for each layer a generation of its own, with its own prefill and cache, the whole
model for every token, the layer's state caught by a hook. Both ways read through the logit lens and write the same
number of tokens, so that their work does not depend on what the model happens to say.

Decoder-layer tokens are counted by hooks on the decoder layers: one for each token that passes one layer.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from tests.tiny import tiny_folder
from vlsi_cli.engine.backbones.arguments import cache_argument
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.data.collate import collate_prompts
from vlsi_cli.engine.data.pictures import puzzle
from vlsi_cli.engine.data.records import Message, make_record
from vlsi_cli.engine.data.template import ChatEncoder
from vlsi_cli.engine.devices import resolve_device
from vlsi_cli.engine.verbalizing.answers import read_answers

Answers = dict[int, list[int]]


def shared(backbone: Backbone, inputs: dict[str, Any], layers: Sequence[int], longest: int) -> Answers:
    """The toolkit's way."""
    found = read_answers(backbone, None, inputs, layers, ends=(), max_new_tokens=longest)
    return {answer.layer: [token.id for token in answer.tokens] for answer in found.layers}


@torch.no_grad()
def separate(backbone: Backbone, inputs: dict[str, Any], layers: Sequence[int], longest: int) -> Answers:
    """One generation a layer."""
    found: Answers = {}
    for layer in layers:
        cache, ids, given = DynamicCache(), [], inputs
        while len(ids) < longest:
            with backbone.tap([layer]) as tapped:
                if ids:
                    backbone.base(**given, **cache_argument(backbone.base, cache), use_cache=True)
                else:
                    backbone.forward_base(given, cache=cache)
                state = tapped[layer][:, -1]
            logits = backbone.head(backbone.final_norm(state))[0, : backbone.tokenizer_length]
            ids.append(int(logits.float().argmax()))
            given = {"input_ids": torch.tensor([ids[-1:]], device=backbone.device)}
        found[layer] = ids
    return found


@contextmanager
def counted(backbone: Backbone) -> Iterator[list[int]]:
    """Count decoder-layer tokens inside the block."""
    count = [0]

    def add(_: Any, args: tuple[Any, ...], *__: Any) -> None:
        count[0] += args[0].shape[0] * args[0].shape[1]

    handles = [layer.register_forward_pre_hook(add) for layer in backbone.layers]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


def timed(work: Callable[[], Answers], device: torch.device) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(name: str, backbone: Backbone, longest: int, repeats: int) -> list[str]:
    """One row of the table."""
    picture = puzzle(2)
    encoder = ChatEncoder(backbone.processor)
    messages = (Message("user", (0, picture.question or "")), Message("assistant", ("a",)))
    encoded = encoder.encode_prompt(make_record("puzzle", messages, [picture.ref]))
    inputs = collate_prompts([encoded], encoder.pad_id).to(backbone.device).inputs
    layers = range(1, backbone.num_layers + 1)
    ways = (shared, separate)
    counts, answers = [], []
    for way in ways:  # also warms up
        with counted(backbone) as count:
            answers.append(way(backbone, inputs, layers, longest))
        counts.append(count[0])
    seconds: list[list[float]] = [[], []]
    for _ in range(repeats):  # in turn, so that a busy moment of the machine meets both
        for number, way in enumerate(ways):
            seconds[number].append(
                timed(lambda way=way: way(backbone, inputs, layers, longest), backbone.device)
            )
    ours, naive = (statistics.median(row) for row in seconds)
    prompt = inputs["input_ids"].shape[1]
    return [
        name,
        str(len(layers)),
        str(prompt),
        str(longest),
        f"{counts[0]:,}",
        f"{counts[1]:,}",
        f"{counts[1] / counts[0]:.1f}",
        f"{naive / ours:.1f}",
        "yes" if answers[0] == answers[1] else "NO",
    ]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--model", action="append", help="folder or hub id; default: the demo pair and a tall one"
    )
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens that every layer writes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    device = resolve_device(asked.device)
    with tempfile.TemporaryDirectory() as scratch:
        models = {name: name for name in asked.model or ("demo/small", "demo/large")}
        if asked.model is None:  # as deep as the 2B, with random weights: what counts is the number of layers
            tall = tiny_folder("qwen2_vl", Path(scratch) / "tall", layers=28, hidden=128)
            models["28 random layers"] = str(tall)
        head = [
            "model",
            "layers read",
            "prompt",
            "answer",
            "one batch",
            "one each",
            "fewer",
            "faster",
            "equal",
        ]
        rows = [
            measure(name, load_backbone(place, device=device), asked.new_tokens, asked.repeats)
            for name, place in models.items()
        ]
    print(f"torch {torch.__version__}, {device.type}, {torch.get_num_threads()} threads, fp32\n")
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
