"""The learning rate's course, and which parameters decay."""

from __future__ import annotations

import pytest
import torch

from vlsi_cli.engine.training.optimizer import learning_rate_at, make_optimizer


def test_the_paper_s_cosine_starts_and_ends_where_it_says() -> None:
    rates = [learning_rate_at(step, 101, peak=1e-4, final=1e-6) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[50] == pytest.approx((1e-4 + 1e-6) / 2)  # half way down, by hand
    assert rates[100] == pytest.approx(1e-6)
    assert rates == sorted(rates, reverse=True)


def test_warm_up_rises_to_the_peak() -> None:
    rates = [learning_rate_at(step, 20, peak=1.0, final=0.0, warmup=4) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[-1] == pytest.approx(0.0)


def test_constant_stays() -> None:
    assert learning_rate_at(7, 10, peak=0.5, final=0.0, schedule="constant") == 0.5


def test_a_single_step_has_the_peak() -> None:
    assert learning_rate_at(0, 1, peak=0.5, final=0.1) == 0.5


def test_vectors_do_not_decay() -> None:
    layer = torch.nn.Linear(3, 3)
    optimizer = make_optimizer(layer.named_parameters(), weight_decay=0.1)
    assert [(len(g["params"]), g["weight_decay"]) for g in optimizer.param_groups] == [(1, 0.1), (1, 0.0)]
