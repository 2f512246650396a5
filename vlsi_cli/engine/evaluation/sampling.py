"""Answers that are drawn instead of taken greedily, each by random numbers of its own.

The largest of ``logits + T * G``, with G independent standard Gumbel variables, is a draw from ``softmax(logits / T)``
(the Gumbel-max trick; scaling the noise up instead of the logits down overflows at no temperature). So greedy decoding
of noisy logits samples, and where the noise of a question comes from a generator that the question seeds, its
answer depends neither on the questions beside it in a batch nor on how many were answered before: a run that was killed
and goes on draws what an unbroken one would have drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: from the whole distribution at a temperature, without top-k or top-p.

    Attributes:
        temperature: more than 0; 1 is the model's own distribution.
        seed: other seeds give other answers.
    """

    temperature: float
    seed: int

    def processors(self, keys: Sequence[str], device: torch.device, tokens: int) -> Any:
        """What ``generate`` needs to draw one batch by greedy decoding.

        Args:
            keys: of the questions, in the order of the batch.
            device: where the logits are; another kind of device draws other answers.
            tokens: real tokens of the vocabulary; rows of the head behind them are never drawn.
        """
        from transformers import LogitsProcessorList

        return LogitsProcessorList([_Noise(self, keys, device, tokens)])

    def generator(self, key: str, device: torch.device) -> torch.Generator:
        """The random numbers of one question."""
        digest = hashlib.sha256(f"{self.seed}/{key}".encode()).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class _Noise:
    """Adds Gumbel noise to logits [B, V] at each step."""

    def __init__(self, sampling: Sampling, keys: Sequence[str], device: torch.device, tokens: int) -> None:
        self._temperature, self._tokens = sampling.temperature, tokens
        self._generators = [sampling.generator(key, device) for key in keys]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        # minus the logarithm of an exponential variable is a Gumbel variable
        gumbel = noise.clamp_min_(torch.finfo(torch.float32).tiny).log_().neg_()
        noisy = scores.float() + self._temperature * gumbel
        noisy[:, self._tokens :] = -torch.inf
        return noisy
