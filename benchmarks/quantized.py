"""How far a quantized large model is from itself: the demo's large model in 8 and 4 bits against fp32, on its puzzles.

    python benchmarks/quantized.py [--records 200]

Every row reads the same records. Divergences are KL(fp32 || row) at the response tokens, in nats, at the last layer
and as a mean over the target layers (read through final norm and head, without verbalizers); the small model's row says
what a distance worth training on looks like. Bytes are those of the decoder layers. Needs the extra `quant`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.data.collate import collate, in_groups
from vlsi_cli.engine.data.sources import PatternsSource
from vlsi_cli.engine.data.template import ChatEncoder
from vlsi_cli.engine.losses import divergence
from vlsi_cli.engine.teachers import LiveTeacher

RESULTS = Path(__file__).parent / "results"
LARGE, SMALL = "demo/large", "demo/small"
ROWS = {"fp32": (LARGE, "none"), "8bit": (LARGE, "8bit"), "4bit": (LARGE, "4bit"), "small": (SMALL, "none")}


def read(model: str, quantization: str, records: int, device: str) -> dict[str, Any]:
    """States and answers of one model on the records."""
    backbone = load_backbone(model, quantization=quantization, device=device)  # type: ignore[arg-type]
    targets = tuple(range(2, backbone.num_layers, 4))
    teacher = LiveTeacher(backbone, None, targets)
    encoder, source = ChatEncoder(backbone.processor), PatternsSource("test", size=records)
    states: list[list[Tensor]] = []
    labels: list[Tensor] = []
    start = time.perf_counter()
    for group in in_groups((encoder.encode(source.read(index)) for index in range(records)), 16):
        batch = collate(group, encoder.pad_id).to(device)
        said = teacher.states(batch, targets)
        states.append([*said.layers.values(), said.last])
        labels.append(batch.targets)
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    bits = sum(p.nbytes for layer in backbone.layers for p in layer.parameters())
    return {
        "states": [torch.cat(layer) for layer in zip(*states, strict=True)],
        "labels": torch.cat(labels),
        "head": backbone.head.weight,
        "vocabulary": backbone.tokenizer_length,
        "bytes": bits,
        "seconds": time.perf_counter() - start,
    }


@torch.no_grad()
def measure(records: int, device: str) -> list[dict[str, Any]]:
    """A row a model."""
    found = {name: read(*what, records, device) for name, what in ROWS.items()}
    exact = found["fp32"]
    vocabulary = exact["vocabulary"]
    rows = []
    for name, said in found.items():
        last = divergence(
            said["states"][-1], said["head"], exact["states"][-1], exact["head"], vocabulary=vocabulary
        )
        row: dict[str, Any] = {
            "name": name,
            "layers_bytes": said["bytes"],
            "seconds": round(said["seconds"], 2),
        }
        row["last"] = float(last.mean())
        if len(said["states"]) == len(exact["states"]):
            each = [
                divergence(x, said["head"], x_t, exact["head"], vocabulary=vocabulary).mean()
                for x, x_t in zip(said["states"][:-1], exact["states"][:-1], strict=True)
            ]
            row["targets"] = float(torch.stack(each).mean())
        words, right = (
            torch.nn.functional.linear(s["states"][-1], s["head"][:vocabulary]).argmax(-1)
            for s in (said, exact)
        )
        row["same_word"] = float((words == right).float().mean())
        row["right_word"] = float((words == said["labels"]).float().mean())
        row["tokens"] = len(words)
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    heads = ("KL, last", "KL, targets", "same word", "right word", "layers MiB")
    lines = [f"{'model':8s} " + " ".join(f"{head:>11s}" for head in heads)]
    for row in rows:
        targets = f"{row['targets']:.2e}" if "targets" in row else ""
        lines.append(
            f"{row['name']:8s} {row['last']:11.2e} {targets:>11s} {row['same_word']:11.4f} {row['right_word']:11.4f} "
            f"{row['layers_bytes'] / 2**20:11.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, store, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    from importlib import metadata

    torch.set_num_threads(1)
    rows = measure(chosen.records, chosen.device)
    versions = {name: metadata.version(name).split("+")[0] for name in ("torch", "bitsandbytes")}
    found = {"device": chosen.device, "records": chosen.records, "versions": versions, "rows": rows}
    chosen.output.mkdir(parents=True, exist_ok=True)
    path = chosen.output / f"quantized-{chosen.device.split(':')[0]}.json"
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
