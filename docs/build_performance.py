"""Write docs/performance.md from the stored results of benchmarks/, so that no figure in it was typed.

python docs/build_performance.py            rewrite the page
python docs/build_performance.py --check    exit 1 when the page is not what the results say
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "performance.md"
RESULTS = Path(__file__).parents[1] / "benchmarks/results"
TITLES = {
    "ours": "this package, `online` (the default in fp32)",
    "ours-kept": "this package, `kept` (two walks, logits of a block kept)",
    "ours-recomputed": "this package, `recomputed` (two walks)",
    "trl": "TRL, chunked divergence",
    "liger": "Liger, chunked JSD loss with β = 0",
    "liger-triton": "Liger, fused linear JSD (Triton)",
    "compile": "`torch.compile` of the textbook form",
    "eager": "textbook form, dense logits",
    "top-64": "top-64 and a bucket for the rest (another loss)",
    "matrix": "matrix of all pairs",
    "matrix+sums": "matrix, then a drawn pair a layer with gradient, S − Q",
    "matrix+recompute": "matrix, then a drawn pair a layer with gradient, recomputed",
    "matrix+drawn": "matrix and drawn pairs",
}
HEAD = """\
# Performance

<!-- Written by docs/build_performance.py from benchmarks/results; edit those instead. -->

What a divergence through two language heads costs. Times are multiples of the products that no exact method can do
without, measured in the same process around each technique (processor seconds of one thread, the median of runs that
take turns); so they carry over to other machines better than seconds do. Memory is what a technique takes beyond its
inputs. Figures of a GPU are not here yet.

The peers are dependencies of the benchmark alone:

```bash
python3 -m venv venv-bench
venv-bench/bin/pip install -c constraints.txt -e . -r benchmarks/requirements.txt
```
"""
TAIL = """\
## What others publish

Their figures, from their own settings, not repeated here:

| who | figure | for |
|---|---|---|
| Liger Kernel, its README | up to 80 % less memory | its post-training losses, the chunked JSD among them |

## How it is done

- **Rectangles.** Logits exist in rectangles of tokens by words that fit the cache of a CPU (or fill an accelerator),
  not as rows of the vocabulary, let alone a batch of them. `vlsi_cli/engine/losses/rectangles.py` states the rule.
- **One walk.** With a frozen head the gradient of the forward KL is S − Q, two sums of rows of the head weighted with
  each model's probabilities; both are summed up unnormalised beside the softmax itself. So nothing is projected twice,
  which is what a second pass costs. S and Q cancel as the student nears the teacher, and are fp32: the relative
  error grows as one over the distance, about 1e-6 over it. Where products run in half precision (a GPU), probabilities
  are subtracted first instead and the logits of a block of tokens are kept for it.
- **No weight gradient** and no buffer for one where the head does not train. Where it does, each row of its gradient is
  summed over all tokens in fp32 and written once.
- **All pairs.** The layer-by-layer matrix is one small product a rectangle on top of the projections, and
  the layers of a short batch are stacked into one taller product, which is faster than theirs apart. Layers are matched
  on it, and only the drawn pairs get a gradient: from S and Q taken along, or from one more projection,
  whichever needs fewer products and fits (`choose_gradient`).
- **Response positions only.** Heads see the states that predict a response token, nothing else.

## What it cannot do yet

- There is no fused kernel for CUDA: the rectangles run as torch operations there too. `Readout` in
  `vlsi_cli/engine/losses/readout.py` is where one would go.
- JSD, reverse KL and L2 have no one-walk form; they keep the logits of a block of tokens, or project twice.
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD, _pair(), _matrix(), _scaling(), _blocks(), _quantized(), TAIL]
    return "\n".join(part for part in parts if part)


def _load(what: str) -> dict[str, Any] | None:
    path = RESULTS / f"losses-{what}-cpu.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _command(what: str) -> str:
    return f"```bash\npython benchmarks/losses.py {what}\n```\n"


def _shape(shape: dict[str, Any]) -> str:
    small, large = shape["hidden"]
    return f"{shape['tokens']} tokens, {small} and {large} hidden, {shape['vocabulary']:,} words, fp32, frozen head"


def _mib(row: dict[str, Any]) -> str:
    if row["peak"] < 2**20:  # it found room in what the allocator had not given back
        return "within what earlier runs had left"
    return f"{row['peak'] / 2**20:,.0f} MiB"


def _pair() -> str:
    if (found := _load("pair")) is None:
        return ""
    rows = sorted(found["rows"], key=lambda row: row.get("peak", float("inf")))
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = ["## One pair of layers\n", f"{_shape(rows[0]['shape'])}; {versions}.\n", _command("pair")]
    lines += [
        "| technique | time, × bare products | memory beyond inputs | error of the gradient against fp64 |"
    ]
    lines += ["|---|---|---|---|"]
    for row in rows:
        title = TITLES[row["name"]]
        if "why_not" in row:
            lines.append(f"| {title} | not run: {row['why_not']} | | |")
            continue
        error = f"{row['error']:.1e}" if row.get("error") is not None else "not the same loss"
        lines.append(f"| {title} | {row['ratio']:.2f} | {_mib(row)} | {error} |")
    return "\n".join([*lines, ""])


def _matrix() -> str:
    if (found := _load("matrix")) is None:
        return ""
    small, large = found["rows"][0]["shape"]["layers"]
    lines = [
        f"## All pairs of {small} small and {large} large layers\n",
        f"{_shape(found['rows'][0]['shape'])}; in multiples of the {small + large} projections.\n",
        _command("matrix"),
        "| technique | time, × projections | memory beyond inputs |",
        "|---|---|---|",
    ]
    lines += [f"| {TITLES[row['name']]} | {row['ratio']:.2f} | {_mib(row)} |" for row in found["rows"]]
    return "\n".join([*lines, ""])


def _scaling() -> str:
    if (found := _load("scaling")) is None:
        return ""
    lines = [
        "## Against target layers, candidates and tokens\n",
        "The matrix and a drawn pair a small layer with its gradient, in multiples of the projections of all layers;",
        f"{_shape(found['rows'][0]['shape']).split(', ', 1)[1]}.\n",
        _command("scaling"),
        "| small layers | large layers | tokens | time, × projections | memory beyond inputs |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        small, large = row["shape"]["layers"]
        lines.append(f"| {small} | {large} | {row['shape']['tokens']} | {row['ratio']:.2f} | {_mib(row)} |")
    return "\n".join([*lines, ""])


def _blocks() -> str:
    if (found := _load("blocks")) is None:
        return ""
    lines = [
        "## Memory against tokens\n",
        f"One pair, {_shape(found['rows'][0]['shape']).split(', ', 1)[1]}. Dense logits of one model would "
        "take the last column.\n",
        _command("blocks"),
        "| tokens | memory beyond inputs | one tensor of logits |",
        "|---|---|---|",
    ]
    for row in found["rows"]:
        dense = row["shape"]["tokens"] * row["shape"]["vocabulary"] * 4 / 2**20
        lines.append(f"| {row['shape']['tokens']} | {_mib(row)} | {dense:,.0f} MiB |")
    return "\n".join([*lines, ""])


def _quantized() -> str:
    path = RESULTS / "quantized-cpu.json"
    if not path.is_file():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        "## A quantized large model { #quantized }\n",
        f"The demo's large model on {found['records']} held-out puzzles, decoder layers rounded as ",
        "[`teacher.quantization`](models.md#quantization) says, on a CPU: KL(fp32 || row) in nats a response token;",
        f"{versions}. Target layers are read through final norm and head. The last row is the small model",
        "that is to be trained. A model of real size has more layers for errors to add up in, and outlying features",
        "that a tiny one lacks; none has been measured.\n",
        "```bash\npip install 'vlsi-cli[quant]'\npython benchmarks/quantized.py\n```\n",
        "| large model | KL, last layer | KL, mean of target layers | same likeliest word | decoder layers |",
        "|---|---|---|---|---|",
    ]
    titles = {
        "fp32": "fp32",
        "8bit": "`8bit`",
        "4bit": "`4bit`",
        "small": "(the small model, before training)",
    }
    for row in found["rows"]:
        targets = f"{row['targets']:.1e}" if "targets" in row else ""
        lines.append(
            f"| {titles[row['name']]} | {row['last']:.1e} | {targets} | {row['same_word']:.1%} | "
            f"{row['layers_bytes'] / 2**20:.2f} MiB |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    text = page()
    if sys.argv[1:] == ["--check"]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit("docs/performance.md is not what the results say; run python docs/build_performance.py")
    else:
        PAGE.write_text(text, encoding="utf-8")
