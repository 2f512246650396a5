"""The sections of docs/performance.md, each from one kind of stored results; none where there are no results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks/results"
TITLES = {
    "ours": "this package, `online` (the default in fp32)",
    "ours-kept": "this package, `kept` (two walks, logits of a block kept)",
    "ours-recomputed": "this package, `recomputed` (two walks)",
    "ours-fused": "this package, its default plan compiled (`compile: true`)",
    "trl": "TRL, chunked divergence",
    "liger": "Liger, chunked JSD loss with β = 0",
    "liger-triton": "Liger, fused linear JSD (Triton)",
    "compile": "`torch.compile` of the textbook form",
    "eager": "textbook form, dense logits",
    "top-64": "top-64 and a bucket for the rest (another loss)",
    "matrix": "matrix of all pairs",
    "matrix+sums": "matrix, then a drawn pair a layer with gradient, S − Q",
    "matrix+recompute": "matrix, then a drawn pair a layer with gradient, recomputed",
    "matrix+drawn": "matrix and drawn pairs, by the cheaper way (the default)",
    "matrix+fused": "the same compiled (`compile: true`)",
}
WAYS = {
    "sft": "SFT, no large model",
    "last": "last-layer distillation",
    "trl": "off-policy distillation as TRL's GKD trainer computes it",
    "vlsi": "VLsI, live large model",
    "vlsi-compiled": "VLsI, decoder layers and losses compiled (`compile: true`)",
    "vlsi-8bit": "VLsI, large model in 8 bits",
    "vlsi-cached": "VLsI, cached large model",
    "vlsi-cached-vision": "the same, with vision features kept (`student.vision_memory`)",
}
DEVICES = ("cpu", "cuda")
STEP = """\
## A training step

Forward, backward, clipping and AdamW of one micro-batch with random weights; the median of some steps. SFT and TRL's
way train the whole language model, the others its decoder layers (VLsI: and the verbalizers). Shares are of the step:
the large model's pass with its verbalizers, or the reading of its states; verbalizers of both sides going forward; the
small model's vision tower. Memory is the peak of everything, models included, and beside it what `vlsi plan` counts
over that. `small` and `large` are a pair for a CPU: 14 layers of width 256 and 512, 3 target layers each, 18,900 words.
"""


def load(what: str, device: str) -> dict[str, Any] | None:
    """Stored results of a kind on a device, None where there are none."""
    path = RESULTS / f"{what}-{device}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _on(found: dict[str, Any]) -> str:
    """What a title says of the device: nothing where it is a CPU."""
    return "" if found["device"] == "cpu" else f", on one {found['device']}"


def _command(program: str, device: str, *arguments: str) -> str:
    words = [f"python benchmarks/{program}", *arguments, *(["--device cuda"] if device == "cuda" else [])]
    return f"```bash\n{' '.join(words)}\n```\n"


def _shape(shape: dict[str, Any], found: dict[str, Any]) -> str:
    small, large = shape["hidden"]
    dtype = {"float32": "fp32", "bfloat16": "bf16"}[found.get("dtype", "float32")]
    return f"{small} and {large} hidden, {shape['vocabulary']:,} words, {dtype}, frozen head"


def _mib(row: dict[str, Any]) -> str:
    if row["peak"] < 2**20:  # it found room in what the allocator had not given back
        return "within what earlier runs had left"
    return f"{row['peak'] / 2**20:,.0f} MiB"


def _versions(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found["versions"].items())


def _commands(rows: list[dict[str, Any]], counts: list[int], device: str) -> str:
    """What measures the rows again; a line for each choice of techniques, since not all were run at all lengths."""
    chosen: dict[tuple[str, ...], list[str]] = {}
    for count in counts:
        names = tuple(name for name in TITLES if any(_is(row, name, count) for row in rows))
        chosen.setdefault(names, []).append(str(count))
    whole = max(chosen, key=len)
    lines = [
        _command(
            "losses.py",
            device,
            f"pair --tokens {','.join(at)}",
            *([] if names == whole else [f"--only {','.join(names)}"]),
        )
        for names, at in chosen.items()
    ]
    return "".join(lines).replace("```\n```bash\n", "")


def _is(row: dict[str, Any], name: str, count: int) -> bool:
    return bool(row["name"] == name and row["shape"]["tokens"] == count)


def pair(device: str) -> str:
    """The loss of one pair of layers."""
    if (found := load("losses-pair", device)) is None:
        return ""
    counts = sorted({row["shape"]["tokens"] for row in found["rows"]})
    lines = [
        f"## One pair of layers{_on(found)}\n",
        f"{_shape(found['rows'][0]['shape'], found)}; {_versions(found)}. One dense tensor of logits would take",
        ", ".join(
            f"{count * found['rows'][0]['shape']['vocabulary'] * 4 / 2**20:,.0f} MiB" for count in counts
        )
        + f" in fp32 at {', '.join(map(str, counts))} tokens.\n",
        _commands(found["rows"], counts, device),
    ]
    runs = min(len(row["ratios"]) for row in found["rows"] if "ratios" in row)
    lines.append(
        f"Each technique ran {runs} time{'s' if runs > 1 else ''}, between two runs of the products.\n"
    )
    dense = [count for count in counts if any(_is(row, "eager", count) for row in found["rows"])]
    if dense and (large := [str(count) for count in counts if count > dense[-1]]):
        lines.append(
            f"At {', '.join(large)} tokens what makes dense logits was left out, for want of memory.\n"
        )
    for count in counts:
        rows = [row for row in found["rows"] if row["shape"]["tokens"] == count]
        rows.sort(key=lambda row: row.get("peak", float("inf")))
        lines += [
            f"| {count} tokens | time, × bare products | memory beyond inputs | error of the gradient against fp64 |",
            "|---|---|---|---|",
        ]
        for row in rows:
            title = TITLES[row["name"]]
            if "ratio" not in row:
                lines.append(f"| {title} | not run: {row.get('why_not', 'it failed')} | | |")
                continue
            error = f"{row['error']:.1e}" if row.get("error") is not None else "not the same loss"
            lines.append(f"| {title} | {row['ratio']:.2f} | {_mib(row)} | {error} |")
        lines.append("")
    return "\n".join(lines)


def matrix(device: str) -> str:
    """All pairs of layers."""
    if (found := load("losses-matrix", device)) is None:
        return ""
    shape = found["rows"][0]["shape"]
    small, large = shape["layers"]
    lines = [
        f"## All pairs of {small} small and {large} large layers{_on(found)}\n",
        f"{shape['tokens']} tokens, {_shape(shape, found)}; in multiples of the {small + large} projections.\n",
        _command("losses.py", device, "matrix"),
        "| technique | time, × projections | memory beyond inputs |",
        "|---|---|---|",
    ]
    lines += [
        f"| {TITLES[row['name']]} | {row['ratio']:.2f} | {_mib(row)} |"
        for row in found["rows"]
        if "ratio" in row
    ]
    lines += [
        f"| {TITLES[row['name']]} | not run: {row['why_not']} | |"
        for row in found["rows"]
        if "why_not" in row
    ]
    return "\n".join([*lines, ""])


def scaling(device: str) -> str:
    """Cost against layers and tokens."""
    if (found := load("losses-scaling", device)) is None:
        return ""
    lines = [
        f"## Against target layers, candidates and tokens{_on(found)}\n",
        "The matrix and a drawn pair a small layer with its gradient, in multiples of the projections of all layers;",
        f"{_shape(found['rows'][0]['shape'], found)}.\n",
        _command("losses.py", device, "scaling"),
        "| small layers | large layers | tokens | time, × projections | memory beyond inputs |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        small, large = row["shape"]["layers"]
        lines.append(f"| {small} | {large} | {row['shape']['tokens']} | {row['ratio']:.2f} | {_mib(row)} |")
    return "\n".join([*lines, ""])


def blocks(device: str) -> str:
    """Memory against tokens."""
    if (found := load("losses-blocks", device)) is None:
        return ""
    lines = [
        f"## Memory against tokens{_on(found)}\n",
        f"One pair, {_shape(found['rows'][0]['shape'], found)}. Dense logits would take the last column.\n",
        _command("losses.py", device, "blocks"),
        "| tokens | memory beyond inputs | one tensor of logits |",
        "|---|---|---|",
    ]
    for row in found["rows"]:
        dense = row["shape"]["tokens"] * row["shape"]["vocabulary"] * 4 / 2**20
        lines.append(f"| {row['shape']['tokens']} | {_mib(row)} | {dense:,.0f} MiB |")
    return "\n".join([*lines, ""])


def cancellation(device: str) -> str:
    """The gradient's error as the models near each other."""
    if (found := load("cancellation", device)) is None:
        return ""
    lines = [
        f"## As the small model nears the large one{_on(found)}\n",
        f"Relative error of the forward KL's gradient against fp64; {found['tokens']} tokens, {found['hidden']}",
        f"hidden, {found['vocabulary']:,} words. The large model's states are the small one's plus noise. `online`",
        "subtracts two sums of rows of the head, which cancel; the other plans subtract probabilities first.\n",
        _command("cancellation.py", device),
        "| head and states | noise | KL, nats | `online` | `kept` | `recomputed` |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        dtype = {"float32": "fp32", "bfloat16": "bf16"}[row["dtype"]]
        errors = " | ".join(f"{row[plan]:.1e}" for plan in ("online", "kept", "recomputed"))
        lines.append(f"| {dtype} | {row['noise']:g} | {row['kl']:.1e} | {errors} |")
    return "\n".join([*lines, ""])


def step(path: Path) -> str:
    """A training step of one pair of shapes."""
    found = json.loads(path.read_text(encoding="utf-8"))
    device = path.stem.rpartition("-")[2]
    lines = [
        f"### {found['small']} from {found['large']}{_on(found)}\n",
        f"{found['records']} records of {found['length']} tokens, half of them a picture's, a tenth response;",
        f"{found['precision']}; {_versions(found)}.\n",
        _command("step.py", device, *_unless(f"--shapes {found['small']},{found['large']}", "small,large")),
        "| way | time, × last layer | tokens/s | peak memory | plan / peak | large model | verbalizers | vision |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base = next(row["seconds"] for row in found["rows"] if row["name"] == "last")
    for row in found["rows"]:
        title = WAYS[row["name"]]
        if "why_not" in row:
            lines.append(f"| {title} | not run: {row['why_not']} | | | | | | |")
            continue
        planned = f"{row['planned'] / row['peak']:.2f}" if row["planned"] else ""
        shares = (row["shares"].get(part) for part in ("large model", "verbalizers", "vision"))
        cells = " | ".join("" if share is None else f"{share:.1%}" for share in shares)
        lines.append(
            f"| {title} | {row['seconds'] / base:.2f} | {row['tokens_per_second']:,.0f} | "
            f"{row['peak'] / 2**20:,.0f} MiB | {planned} | {cells} |"
        )
    return "\n".join([*lines, ""])


def _unless(text: str, usual: str) -> list[str]:
    return [] if text.endswith(usual) else [text]


def quantized() -> str:
    """How far a quantized large model is from itself."""
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


def precision(device: str) -> str:
    """What half precision does to the losses of a run."""
    if (found := load("precision", device)) is None:
        return ""
    steps = {row["stage"]: row["steps"] for row in found["rows"]}
    lines = [
        f"## Half precision, step by step{_on(found)}\n",
        "The demo from one seed in fp32 and in half precision: the difference of a step's loss over the loss in fp32,",
        "mean and largest; the same of the mean loss over the last tenth of the steps, with its sign; draws of the",
        "matching that took the same layer; and steps that fp16's loss scaling left out.\n",
        _command("precision.py", device),
        "| precision | stage | steps | mean | largest | end | same draws | left out |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        same = "" if row["same"] is None else f"{row['same']:.1%}"
        lines.append(
            f"| {row['precision']} | {row['stage']} | {steps[row['stage']]} | {row['mean']:.1e} | {row['largest']:.1e} "
            f"| {row['end']:+.1e} | {same} | {row['left_out']} |"
        )
    ends = [
        f"{name} {end['loss']:.4f} and {end['accuracy']:.1%}"
        for name, end in found["ends"].items()
        if "accuracy" in end
    ]
    return "\n".join([*lines, "", f"Held-out loss and right answers at the end: {', '.join(ends)}.", ""])
