"""What the large model says where the data are wrong: ``python -m benchmarks.proof.known``.

Of training puzzles of one seed: at response tokens that a wrong answer has in place of the right one's, how likely the
large model's last layer and its verbalizers hold either. Before such a token the model reads the data as they are.
Every word of an answer is one token of the demo pair's, so that both answers have their tokens at the same places.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch

from benchmarks.proof.fields import NOISY
from benchmarks.proof.laboratory import Laboratory
from benchmarks.proof.results import KNOWN, append, fingerprint
from vlsi_cli.engine.teachers import LiveTeacher

#: Batches that are looked at.
BATCHES = 50


def known(noisy: Laboratory, clean: Laboratory, seed: int, batches: int = BATCHES) -> dict[str, Any]:
    """Probabilities of the large model on wrongly answered questions.

    Args:
        noisy: with wrong answers; its verbalizers learn from them.
        clean: with the same puzzles and right answers.
        seed: of the training puzzles.
        batches: how many are looked at.

    Returns:
        ``tokens`` looked at and how many of them are ``wrong``; ``layers``: for each target layer, and ``last``, means
        over the wrong ones of the probability of the ``right`` token and of the one in the ``data``, and the share
        where the right one is the ``first`` of all.
    """
    said = noisy.verbalizers("large", "verb-ffn", seed).verbalizers
    teacher = LiveTeacher(noisy.large, said, said.targets)
    tokens = wrong = 0
    found: dict[str, list[torch.Tensor]] = defaultdict(list)
    for step in range(batches):
        given, right = noisy.batches(seed).batch(step), clean.batches(seed).batch(step)
        states = teacher.states(given, teacher.targets)
        apart = given.targets != right.targets
        tokens, wrong = tokens + len(apart), wrong + int(apart.sum())
        for name, hidden in {**states.layers, "last": states.last}.items():
            chance = (hidden[apart] @ teacher.head.detach().T).softmax(-1)
            columns = [
                chance.gather(1, right.targets[apart, None])[:, 0],
                chance.gather(1, given.targets[apart, None])[:, 0],
                (chance.argmax(-1) == right.targets[apart]).float(),
            ]
            found[str(name)].append(torch.stack(columns))
    layers = {}
    for name, pieces in found.items():
        means = torch.cat(pieces, 1).mean(1).tolist()
        layers[name] = {k: round(v, 4) for k, v in zip(("right", "data", "first"), means, strict=True)}
    return {"tokens": tokens, "wrong": wrong, "layers": layers}


def main(arguments: list[str] | None = None) -> None:
    """Look at the noisy field's puzzles of one seed and store what is seen."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proof.known", description=__doc__)
    parser.add_argument("--seed", type=int, default=902)
    seed = parser.parse_args(arguments).seed
    settings = NOISY.settings
    seen = known(Laboratory(settings), Laboratory(replace(settings, wrong=0.0)), seed)
    line = {"settings": settings.to_json(), "pair": fingerprint(settings), "seed": seed, "seen": seen}
    append(KNOWN, line)
    print(seen, file=sys.stderr)


if __name__ == "__main__":
    main()
