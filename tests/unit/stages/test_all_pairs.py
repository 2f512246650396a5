"""The interaction takes values and gradients of its drawn pairs from one pass: equal to computing each pair anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import pairs
from vlsi_cli.config.run import InteractionConfig, LossWeights, MatchingConfig
from vlsi_cli.engine.losses import divergence
from vlsi_cli.engine.runs.stages import interaction_stage
from vlsi_cli.engine.stages import interaction as module
from vlsi_cli.engine.teachers import LiveTeacher


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return pairs.tiny_pair(tmp_path_factory.mktemp("pair"))


class Anew:
    """What AllPairs promises, each drawn pair computed by itself."""

    def __init__(
        self, xs_s, weight_s, xs_t, weight_t, *, vocabulary, mask, rule_s, rule_t, temperature
    ) -> None:
        self.given = xs_s, weight_s, xs_t, weight_t
        self.asked = {"vocabulary": vocabulary, "temperature": temperature}
        with torch.no_grad():
            rows = [[self.loss(s, [t]).sum() for t in range(len(xs_t))] for s in range(len(xs_s))]
        self.matrix = torch.stack([torch.stack(row) for row in rows]) * mask

    def loss(self, small, large):
        xs_s, weight_s, xs_t, weight_t = self.given
        each = [divergence(xs_s[small], weight_s, xs_t[t], weight_t, **self.asked) for t in large]
        return torch.stack(each).mean(0)


@pytest.mark.parametrize(
    "settings",
    [
        InteractionConfig(),
        InteractionConfig(matching=MatchingConfig(strategy="bottom-k", k=2)),
        InteractionConfig(intermediate="l2", last="l2"),
        InteractionConfig(temperature=2.0, weights=LossWeights(intermediate=0.5)),
    ],
    ids=["multinomial", "bottom-2", "l2", "warm"],
)
def test_one_pass_is_the_pairs_computed_anew(folders, monkeypatch, settings) -> None:
    found = []
    for fake in (None, Anew):
        if fake is not None:
            monkeypatch.setattr(module, "AllPairs", fake)
        large, small = (pairs.load(folder) for folder in folders)
        own = pairs.verbalizers(small, pairs.TARGETS_SMALL, seed=1)
        teacher = LiveTeacher(large, pairs.verbalizers(large, pairs.TARGETS_LARGE), pairs.TARGETS_LARGE)
        stage = interaction_stage(settings, small, teacher, own, targets=pairs.TARGETS_SMALL, seed=3)
        outputs = [stage(batch) for batch in pairs.batches(small, pairs.encoded(small, 4), 2)]
        torch.stack([output.loss for output in outputs]).sum().backward()
        grad = torch.cat([p.grad.flatten() for _, p in stage.trained() if p.grad is not None])
        assert stage.generator is not None
        found.append((outputs, grad, stage.generator.get_state()))
    (ours, grad, state), (anew, expected, state_anew) = found
    assert [output.matched for output in ours] == [output.matched for output in anew]
    assert torch.equal(state, state_anew)  # the same numbers were drawn
    assert (grad - expected).norm() < 1e-5 * expected.norm()
    for a, b in zip(ours, anew, strict=True):
        assert a.terms.keys() == b.terms.keys()
        torch.testing.assert_close(a.loss, b.loss, rtol=1e-5, atol=1e-5)
