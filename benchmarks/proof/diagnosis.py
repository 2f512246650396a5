"""What pulls the student where in the interaction step: ``python -m benchmarks.proof.diagnosis [options]``.

At some steps of a VLsI run, on its next batches: how far matched layers are apart, how the draws fall, and the
gradients of the terms beside the one that would help with held-out puzzles. Nothing of it touches the test split.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.proof.arms import vlsi
from benchmarks.proof.laboratory import Laboratory
from benchmarks.proof.results import DIAGNOSIS, append, fingerprint
from benchmarks.proof.settings import Run, Settings, changed
from benchmarks.proof.shared import KeptTeacher, Supply
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.matching import Match, match
from vlsi_cli.engine.stages import InteractionStage
from vlsi_cli.engine.training import Stage
from vlsi_cli.engine.verbalizing import Verbalizers

#: Batches whose gradients are averaged.
BATCHES = 12


@dataclass
class Draws:
    """A matcher that keeps what it saw: the method's own, at every batch of a look."""

    seen: list[list[Match]] = field(default_factory=list)
    matrices: list[Tensor] = field(default_factory=list)

    def __call__(self, matrix: Tensor, generator: torch.Generator) -> list[Match]:
        """The method's matches."""
        matches = match(matrix, generator=generator)
        self.seen.append(matches)
        self.matrices.append(matrix.detach())
        return matches

    def rows(self) -> list[dict[str, float]]:
        """Of each small target layer, means over the batches: divergences of its window and how even the draw is.

        ``evenness`` is the entropy of the draw over that of an even one: 1 where all large layers are equally likely.
        A window of one layer, where nothing is drawn, does not count.
        """
        told = []
        for place in range(len(self.seen[0])):
            spreads, chances = [], []
            for matches, matrix in zip(self.seen, self.matrices, strict=True):
                first, last = matches[place].window
                inside, chance = matrix[place, first : last + 1], matches[place].probabilities
                if chance is not None and len(chance) > 1:
                    spreads.append((float(inside.min()), float(inside.max())))
                    chances.append(chance)
            told.append(
                {
                    "nearest": _mean([low for low, _ in spreads]),
                    "farthest": _mean([high for _, high in spreads]),
                    "likeliest": _mean([max(chance) for chance in chances]),
                    "evenness": _mean([_evenness(chance) for chance in chances]),
                }
            )
        return told


def _mean(values: Sequence[float]) -> float:
    return round(math.fsum(values) / len(values), 4) if values else math.nan


def _evenness(chances: Sequence[float]) -> float:
    return -math.fsum(p * math.log(p) for p in chances if p > 0) / math.log(len(chances))


def look(
    laboratory: Laboratory, supply: Supply, step: int, teacher: KeptTeacher, own: Verbalizers
) -> dict[str, Any]:
    """Losses, draws and gradients before optimizer step ``step``, over the batches that come next.

    Returns:
        ``rows`` of the draws; ``losses`` of the terms, nats a token; ``norms`` and ``cosines`` of their gradients on
        the decoder layers, the latter with the gradient of the loss on held-out right answers.
    """
    small, draws = laboratory.small, Draws()
    shape = {"targets": own.targets, "vocabulary": small.tokenizer_length, "matcher": draws}
    ask = [supply.batch(step + i) for i in range(BATCHES)]
    held_out = laboratory.held_out.batches("validation")
    words = InteractionStage(small, teacher, own, last="none", seed=step, **shape)
    last = InteractionStage(small, teacher, None, intermediate="none", seed=step, **shape)
    right = InteractionStage(small, None, None, intermediate="none", last="ce", seed=step, **shape)
    stages: dict[str, tuple[Stage, list[Batch]]] = {
        "intermediate": (words, ask),
        "last": (last, ask),
        "right answers": (right, ask),
        "held out": (right, held_out),
    }
    losses, gradients = {}, {}
    for name, (stage, batches) in stages.items():
        losses[name], gradients[name] = _gradient(stage, batches)
    goal = gradients.pop("held out")
    return {
        "rows": draws.rows(),
        "losses": {name: round(loss, 4) for name, loss in losses.items()},
        "norms": {name: round(float(g.norm()), 4) for name, g in gradients.items()},
        "cosines": {
            name: round(float(torch.cosine_similarity(g, goal, 0)), 4) for name, g in gradients.items()
        },
    }


def _gradient(stage: Stage, batches: Sequence[Batch]) -> tuple[float, Tensor]:
    """Mean loss a response token and its gradient on the decoder layers, as one vector."""
    layers = [parameter for name, parameter in stage.trained() if name.startswith("model.")]
    tokens, loss, total = 0, 0.0, torch.zeros(sum(p.numel() for p in layers))
    for batch in batches:
        out = stage(batch).loss
        pieces = torch.autograd.grad(out, layers, allow_unused=True)
        total += torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(layers, pieces, strict=True)]
        )
        tokens, loss = tokens + batch.num_tokens, loss + out.item()
    return loss / tokens, total / tokens


def diagnose(laboratory: Laboratory, run: Run, looks: Sequence[int]) -> list[dict[str, Any]]:
    """Look at a run at some numbers of steps done."""
    supply, found = laboratory.batches(run.seed), []

    def watch(step: int, teacher: KeptTeacher | None, own: Verbalizers | None) -> None:
        if step in looks:
            assert teacher is not None
            assert own is not None
            found.append({"step": step} | look(laboratory, supply, step, teacher, own))

    laboratory.run(run, watch)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Look at one run and store what is seen."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proof.diagnosis", description=__doc__)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--seed", type=int, default=902)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a field of Settings"
    )
    given = parser.parse_args(arguments)
    settings, _ = changed(Settings(), given.set)
    run = replace(vlsi(settings), rate=given.rate, seed=given.seed, split="validation")
    looks = [round(run.interaction_steps * share) for share in (0, 1 / 3, 1)]
    for seen in diagnose(Laboratory(settings), run, looks):
        line = {"settings": settings.to_json(), "pair": fingerprint(settings), "run": run.to_json()}
        append(DIAGNOSIS, line | {"seen": seen})
        print(seen, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
