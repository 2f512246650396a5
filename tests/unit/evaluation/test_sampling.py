"""Draws by the Gumbel-max trick: the right distribution, and random numbers that belong to the question."""

from __future__ import annotations

import torch

from vlsi_cli.engine.evaluation.sampling import Sampling

CPU = torch.device("cpu")


def drawn(
    sampling: Sampling, logits: torch.Tensor, keys: list[str], tokens: int, steps: int = 1
) -> torch.Tensor:
    """[steps, B]: the tokens that greedy decoding of the noisy logits takes."""
    processors = sampling.processors(keys, CPU, tokens)
    rows = logits.expand(len(keys), -1)
    ids = torch.zeros(len(keys), 1, dtype=torch.long)
    return torch.stack([processors(ids, rows).argmax(-1) for _ in range(steps)])


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 50.0]])  # the last is no token
    taken = drawn(Sampling(0.5, seed=3), logits, ["a", "b"], 3, steps=4_000)
    shares = torch.bincount(taken.flatten(), minlength=4) / taken.numel()
    wanted = torch.softmax(logits[0, :3] / 0.5, dim=0)
    # five standard deviations of a share in 8,000 draws are less than 0.028
    torch.testing.assert_close(shares[:3], wanted, atol=0.028, rtol=0.0)
    assert shares[3] == 0


def test_a_draw_depends_on_seed_and_question_and_not_on_the_batch() -> None:
    logits = torch.zeros(1, 97)
    both = drawn(Sampling(1.0, seed=0), logits, ["a", "b"], 97, steps=8)
    alone = drawn(Sampling(1.0, seed=0), logits, ["b"], 97, steps=8)
    assert torch.equal(both[:, 1:], alone)
    assert not torch.equal(both[:, 0], both[:, 1])
    assert not torch.equal(alone, drawn(Sampling(1.0, seed=1), logits, ["b"], 97, steps=8))


def test_a_temperature_near_zero_is_greedy() -> None:
    logits = torch.tensor([[-40.0, 1.0, 1.001, 0.0]])
    assert drawn(Sampling(1e-300, seed=0), logits, ["a"], 4, steps=50).eq(2).all()


def test_what_the_model_rules_out_is_not_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    assert drawn(Sampling(5.0, seed=0), logits, ["a"], 3, steps=50).eq(1).all()
