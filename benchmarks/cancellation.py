"""Error of the forward KL's gradient as the small model nears the large one, by plan and precision, against fp64.

    python benchmarks/cancellation.py                  # fp32, and bf16 operands, on a CPU
    python benchmarks/cancellation.py --device cuda    # on a GPU, where bf16 products are bf16 products

Both models share a head, and the large one's states are the small one's plus noise of a given size. ``online``
subtracts two sums of rows of the head, which cancel; the other plans subtract two probabilities first. Errors are
relative, of the whole gradient; the exact one is that of the rounded inputs. On an accelerator ``online`` is never
chosen for half-precision heads, and here it is forced, to show why.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.meters import device_name
from benchmarks.techniques import chunked_logits, head
from vlsi_cli.engine.losses import divergence

RESULTS = Path(__file__).parent / "results"
NOISE = (1.0, 0.1, 0.01, 0.001)
PLANS = ("online", "kept", "recomputed")


def measure(device: str, tokens: int, hidden: int, vocabulary: int) -> list[dict[str, Any]]:
    """A row a precision, noise and plan."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        weight = head(vocabulary, hidden, device=device, dtype=dtype)
        small, noise = (torch.randn(tokens, hidden, device=device) for _ in range(2))
        for size in NOISE:
            x_s, x_t = small.to(dtype), (small + size * noise).to(dtype)
            exact, mean = exact_gradient(x_s, x_t, weight)
            row: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "noise": size, "kl": mean}
            for plan in PLANS:
                x = (
                    x_s.float().clone().requires_grad_()
                )  # rounded values, but a gradient that is not rounded again
                divergence(x, weight, x_t, weight, vocabulary=vocabulary, plan=plan).sum().backward()
                assert x.grad is not None
                row[plan] = float((x.grad.double() - exact).norm() / exact.norm())
            rows.append(row)
    return rows


def exact_gradient(x_s: Tensor, x_t: Tensor, weight: Tensor) -> tuple[Tensor, float]:
    """``[R, H]`` gradient of the summed forward KL in fp64, and its mean a token in nats."""
    p_s, p_t = (chunked_logits(x, weight, len(weight)).log_softmax(-1) for x in (x_s, x_t))
    mean = float((p_t.exp() * (p_t - p_s)).sum(-1).mean())
    gap = p_s.exp() - p_t.exp()
    parts = [gap[:, i : i + 4096] @ weight[i : i + 4096].double() for i in range(0, len(weight), 4096)]
    return torch.stack(parts).sum(0), mean


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [f"{'dtype':9s} {'noise':>6s} {'KL':>9s} " + " ".join(f"{plan:>11s}" for plan in PLANS)]
    for row in rows:
        errors = " ".join(f"{row[plan]:11.1e}" for plan in PLANS)
        lines.append(f"{row['dtype']:9s} {row['noise']:6g} {row['kl']:9.2e} {errors}")
    return "\n".join(lines)


def main() -> None:
    """Measure, store, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: does everything run?")
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    whole = 151_936 if chosen.device != "cpu" else 18_992  # the cancellation does not know the width
    shape = (4, 16, 600) if chosen.tiny else (16, 1536, whole)
    rows = measure(chosen.device, *shape)
    assert all(math.isfinite(row[plan]) for row in rows for plan in PLANS)
    about = {"device": device_name(chosen.device), "versions": {"torch": torch.__version__.split("+")[0]}}
    found = {**about, "tokens": shape[0], "hidden": shape[1], "vocabulary": shape[2], "rows": rows}
    chosen.output.mkdir(parents=True, exist_ok=True)
    path = chosen.output / f"cancellation-{chosen.device.split(':')[0]}.json"
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
