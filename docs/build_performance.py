"""Write docs/performance.md from the stored results of benchmarks/, so that no figure in it was typed.

python docs/build_performance.py            rewrite the page
python docs/build_performance.py --check    exit 1 when the page is not what the results say
"""

from __future__ import annotations

from pathlib import Path

import pages
import performance_parts as parts

PAGE = Path(__file__).parent / "performance.md"
HEAD = """\
# Performance

<!-- Written by docs/build_performance.py from benchmarks/results; edit those instead. -->

What a divergence through two language heads costs. Times are multiples of the products that no exact method can do
without, measured in the same process around each technique (processor seconds of one thread, the median of runs that
take turns); so they carry over to other machines better than seconds do. Memory is what a technique takes beyond its
inputs. Figures of a GPU are not here yet: `python benchmarks/gpu.py` takes all of them in one command that ends within
eight minutes, and this page shows them once they are stored.

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

## Who waits for the device in a step { #waits }

A number that is read from a GPU makes the host wait until the GPU has done all that it was given, and then the GPU
waits for the host. What a model asks about the sizes of its pictures is therefore answered from the host before the
forward pass begins (`vlsi_cli/engine/backbones/ahead.py`), by the model's own functions: states and gradients are the
same, bit for bit. Counted on a [simulated GPU](scaling.md#on-a-simulated-gpu) with transformers 5.23, for four records
of unequal length with a picture each; **what it is worth on a real GPU has not been measured**. On a CPU it costs
nothing that can be seen (a forward pass of tiny models takes 0.99 to 1.02 times as long).

| who | waits | was | for what |
|---|---|---|---|
| forward, Qwen2-VL | 4 | 138 | do features and image tokens match (2); is anything padded (2) |
| forward, Qwen2.5-VL | 4 | 145 | the same |
| forward, Qwen3-VL | 10 | 133 | the same; three layers that features enter (6, and 9 going backward) |
| forward, LLaVA-OneVision | 5 | 25 | the same; a tensor of lengths (1) |
| forward, Ministral 3 | 6 | 25 | the same (4); sizes of pictures that go there and come back (2) |
| forward, Idefics3 and SmolVLM | 7 | 7 | the same (3); which tiles are padding (4), told by pixels on the device |
| forward over text alone | 2 | 2 | is anything padded |
| a micro-batch of the interaction | 1 | 11 | the matrix of layers to draw from; with `uniform` or `random` none |
| the end of a step | 1 | 2 | losses and norm, finite before anything changes; with fp16 the scaler's own (1) |
| a checkpoint | many | many | each tensor is written |

Before, the Qwen towers asked three times a block: those counts are for 32 blocks (27 in Qwen3-VL), and the 11 for
seven small target layers in bf16. A forward pass of Qwen2-VL or Qwen2.5-VL in which nothing is padded waits twice.
All that is left of a pass waits at one place, between vision tower and decoder. It is the same for the large model
(live, or while a cache of it is built) and in every stage; a cached large model asks nothing. Batches go to a GPU
from page-locked memory. Where the large model's layers lie in host memory or on the disk, what stays on the host is
moved along with them, and its tower asks as before.

## What it cannot do yet

- There is no kernel of our own for CUDA. With `compile: true` what happens to a rectangle between its products is
  compiled by `torch.compile` (`vlsi_cli/engine/losses/bodies.py`): one or two kernels instead of a dozen operations.
  On a GPU that has not been measured, so it is not the default; on a CPU, where rectangles stay in the cache, it is
  worth what the tables say. A kernel that fuses the products as well would go behind `Readout` in
  `vlsi_cli/engine/losses/readout.py`, with what is there as its oracle.
- JSD (of any β), reverse KL and L2 have no one-walk form; they keep the logits of a block of tokens, or project twice.
"""


def page() -> str:
    """The whole page as Markdown."""
    kinds = (parts.pair, parts.matrix, parts.scaling, parts.blocks, parts.cancellation)
    losses = [kind(device) for kind in kinds for device in parts.DEVICES]
    steps = [parts.step(path) for path in sorted(parts.RESULTS.glob("step-*.json"))]
    if any(steps):
        steps.insert(0, parts.STEP)
    halves = [parts.precision(device) for device in parts.DEVICES]
    return "\n".join(
        part for part in [HEAD, _ladder(), *losses, *steps, parts.quantized(), *halves, TAIL] if part
    )


def _ladder() -> str:
    """One row a technique: what it changes, against what, by which program."""
    pair, step = parts.load("losses-pair", "cpu"), parts.load("step-small-large", "cpu")
    if pair is None or step is None:
        return ""
    tokens = max(row["shape"]["tokens"] for row in pair["rows"] if row["name"] == "eager")
    one = {r["name"]: r for r in pair["rows"] if r["shape"]["tokens"] == tokens and "ratio" in r}
    ways = {r["name"]: r for r in step["rows"] if "seconds" in r}
    rungs = [
        ("losses in rectangles, one walk", one, "ours", "eager", "dense logits", "losses.py pair"),
        ("the same", one, "ours", "trl", "TRL's chunked divergence", "losses.py pair"),
        ("the same", one, "ours", "liger", "Liger's chunked loss", "losses.py pair"),
        ("all pairs from one pass (VLsI)", ways, "vlsi", "last", "last-layer distillation", "step.py"),
        ("the same", ways, "vlsi", "trl", "off-policy distillation as TRL computes it", "step.py"),
        ("large model in 8 bits", ways, "vlsi-8bit", "vlsi", "VLsI, live", "step.py"),
        ("large model from a cache", ways, "vlsi-cached", "vlsi", "VLsI, live", "step.py"),
        ("vision features kept", ways, "vlsi-cached-vision", "vlsi-cached", "VLsI, cached", "step.py"),
    ]
    lines = [
        "## The ladder\n",
        f"On a CPU; the loss of one pair at {tokens} tokens, and a whole training step. Shapes are below.\n",
        "| technique | against | time | memory | program |",
        "|---|---|---|---|---|",
    ]
    for title, rows, ours, theirs, against, program in rungs:
        if ours in rows and theirs in rows:
            a, b = rows[ours], rows[theirs]
            key = "ratio" if "ratio" in a else "seconds"
            lines.append(
                f"| {title} | {against} | × {a[key] / b[key]:.2f} | × {a['peak'] / b['peak']:.2f} | "
                f"`benchmarks/{program}` |"
            )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    complaint = "docs/performance.md is not what the results say; run python docs/build_performance.py"
    raise SystemExit(pages.write_or_check(PAGE, page(), complaint))
