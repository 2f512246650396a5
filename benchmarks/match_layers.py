"""How much the one-pass divergence matrix saves over comparing layers pair by pair, at the size of real vocabularies.

    python benchmarks/match_layers.py                             # V = 151,936 on a CPU: minutes, 4 GB
    python benchmarks/match_layers.py --device cuda --tokens 512 --small 1536 --large 8192 --dtype bf16

Three ways to the same matrix ``KL(large l || small s)``, on random states and heads:

- *pair by pair*: every pair projects both its layers and compares them (what a loop over a loss function does);
- *pair by pair, projected once*: the log-probabilities of all layers are made once and kept, a full tensor of tokens
  by vocabulary for each layer, and every pair compares two of them: the time of a careful loop, at its memory;
- *one pass*: ``divergence_matrix``, as `vlsi distill` and `vlsi match-layers` use it.

The ways take turns within one process, and on a CPU its own processor seconds are counted, so that other work on the
machine disturbs them little and alike. The ratio is what is to be read, not the seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from vlsi_cli.engine.losses import divergence, divergence_matrix


def pair_by_pair(xs_s: list[Tensor], w_s: Tensor, xs_t: list[Tensor], w_t: Tensor, vocabulary: int) -> Tensor:
    """A loop over the loss of a single pair."""
    rows = [[divergence(x_s, w_s, x_t, w_t, vocabulary=vocabulary).sum() for x_t in xs_t] for x_s in xs_s]
    return torch.stack([torch.stack(row) for row in rows])


def projected_once(
    xs_s: list[Tensor], w_s: Tensor, xs_t: list[Tensor], w_t: Tensor, vocabulary: int
) -> Tensor:
    """A loop over pairs of kept log-probabilities."""
    log_s = [torch.log_softmax((x @ w_s[:vocabulary].T).float(), -1) for x in xs_s]
    log_t = [torch.log_softmax((x @ w_t[:vocabulary].T).float(), -1) for x in xs_t]
    rows = [[(large.exp() * (large - small)).sum() for large in log_t] for small in log_s]
    return torch.stack([torch.stack(row) for row in rows])


def one_pass(xs_s: list[Tensor], w_s: Tensor, xs_t: list[Tensor], w_t: Tensor, vocabulary: int) -> Tensor:
    """What this package does."""
    return divergence_matrix(xs_s, w_s, xs_t, w_t, vocabulary=vocabulary)


WAYS: dict[str, Callable[..., Tensor]] = {
    "pair by pair": pair_by_pair,
    "pair by pair, projected once": projected_once,
    "one pass": one_pass,
}


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--small", type=int, default=896, help="width of the small model")
    parser.add_argument("--large", type=int, default=1536, help="width of the large model")
    parser.add_argument("--pairs", default="3x5,7x20", help="small x large target layers, several by commas")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    chosen = parser.parse_args()
    device, dtype = torch.device(chosen.device), torch.float32 if chosen.dtype == "fp32" else torch.bfloat16
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    w_s, w_t = (draw(chosen.vocabulary, width).mul_(0.05) for width in (chosen.small, chosen.large))
    print(
        f"V = {chosen.vocabulary}, {chosen.tokens} tokens, widths {chosen.small} and {chosen.large}, {chosen.dtype}, "
        f"{device.type}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, "
        f"median of {chosen.repeats} turns\n"
    )
    unit = "processor seconds" if device.type == "cpu" else "seconds"
    print(f"| layers (small x large) | way | {unit} | one pass is faster by | largest relative difference |")
    print("|---|---|---|---|---|")
    for size in chosen.pairs.split(","):
        n_small, n_large = map(int, size.split("x"))
        states = [draw(chosen.tokens, chosen.small) for _ in range(n_small)]
        larges = [draw(chosen.tokens, chosen.large) for _ in range(n_large)]
        seconds: dict[str, list[float]] = {name: [] for name in WAYS}
        found: dict[str, Tensor] = {}
        for _ in range(chosen.repeats):
            for name, way in WAYS.items():
                started = clock()
                with torch.no_grad():
                    found[name] = way(states, w_s, larges, w_t, chosen.vocabulary)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds[name].append(clock() - started)
        base = statistics.median(seconds["one pass"])
        for name, taken in seconds.items():
            off = float(((found[name] - found["one pass"]) / found["one pass"]).abs().max())
            ratio = statistics.median(taken) / base
            print(
                f"| {n_small} x {n_large} | {name} | {statistics.median(taken):.2f} | {ratio:.1f} | {off:.1e} |"
            )


if __name__ == "__main__":
    main()
