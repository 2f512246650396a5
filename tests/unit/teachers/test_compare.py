"""One pass over two models gives what comparing every pair of layers by itself gives."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import torch

from tests import pairs
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.losses import divergence, divergence_matrix
from vlsi_cli.engine.teachers import LayerDivergences, LiveTeacher, TeacherStates, layer_divergences
from vlsi_cli.errors import TrainingError


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("n_small", "n_large", "tokens", "widths", "rows", "vocabulary"),
    [
        (1, 1, 1, (4, 4), (11, 11), 11),  # the smallest there is
        (1, 9, 3, (5, 3), (70, 64), 64),  # one small layer; the large blocks end in a block of one
        (5, 5, 13, (7, 24), (129, 200), 127),  # odd everywhere, as many large as small
        (7, 20, 6, (16, 40), (1000, 1024), 997),  # the paper's 7 and 20
    ],
)
def test_odd_shapes_equal_the_loop_over_pairs(
    n_small: int,
    n_large: int,
    tokens: int,
    widths: tuple[int, int],
    rows: tuple[int, int],
    vocabulary: int,
) -> None:
    ours = [draw(tokens, widths[0], seed=s) for s in range(n_small)]
    theirs = [draw(tokens, widths[1], seed=100 + t) for t in range(n_large)]
    w_s, w_t = draw(rows[0], widths[0], seed=7), draw(rows[1], widths[1], seed=8)
    got = divergence_matrix(ours, w_s, theirs, w_t, vocabulary=vocabulary, tile_tokens=2)
    for s, x_s in enumerate(ours):
        for t, x_t in enumerate(theirs):
            pair = divergence(x_s, w_s, x_t, w_t, vocabulary=vocabulary).sum()
            assert got[s, t].item() == pytest.approx(pair.item(), rel=1e-5)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> tuple[LiveTeacher, LiveTeacher]:
    """A pair of unequal width and vocabulary rows; the small model with verbalizers, the large one with none."""
    large, small = (pairs.load(f) for f in pairs.tiny_pair(tmp_path_factory.mktemp("pair")))
    words = pairs.verbalizers(small, pairs.TARGETS_SMALL)
    return LiveTeacher(small, words, pairs.TARGETS_SMALL), LiveTeacher(large, None, (2, 3, 5))


def survey(readers: tuple[LiveTeacher, LiveTeacher], count: int, size: int) -> LayerDivergences:
    small, large = readers
    batches = pairs.batches(small.backbone, pairs.encoded(small.backbone, count), size)
    return layer_divergences(
        small, large, batches, vocabulary=small.backbone.tokenizer_length, device=torch.device("cpu")
    )


def test_two_models_equal_full_softmaxes_in_double_precision(
    readers: tuple[LiveTeacher, LiveTeacher],
) -> None:
    small, large = readers
    assert small.head.shape != large.head.shape
    (batch,) = pairs.batches(small.backbone, pairs.encoded(small.backbone, 5), 5)
    vocabulary = small.backbone.tokenizer_length

    def log_probabilities(side: LiveTeacher) -> list[torch.Tensor]:
        states = side.states(batch, side.targets).layers
        head = side.head[:vocabulary].double()
        return [torch.log_softmax(states[layer].double() @ head.T, -1) for layer in side.targets]

    found = survey(readers, 5, 5)
    ours, theirs = log_probabilities(small), log_probabilities(large)
    for s, log_s in enumerate(ours):
        for t, log_t in enumerate(theirs):
            wanted = (log_t.exp() * (log_t - log_s)).sum(-1).mean().item()
            assert found.mean[s, t].item() == pytest.approx(wanted, rel=1e-5)


def test_the_mean_does_not_know_how_records_were_batched(readers: tuple[LiveTeacher, LiveTeacher]) -> None:
    whole, cut = survey(readers, 7, 7), survey(readers, 7, 3)
    assert [len(found.batches) for found in (whole, cut)] == [1, 3]
    assert whole.records == cut.records == 7
    assert int(whole.tokens.sum()) == int(cut.tokens.sum())
    torch.testing.assert_close(cut.mean, whole.mean, rtol=1e-5, atol=0)  # fp32 sums in another order
    assert float(whole.spread.max()) < 1e-12
    assert float(cut.spread.min()) > 0


def test_a_divergence_that_is_not_finite_is_named(readers: tuple[LiveTeacher, LiveTeacher]) -> None:
    class Broken(LiveTeacher):
        def states(self, batch: Batch, layers: Collection[int]) -> TeacherStates:
            found = super().states(batch, layers)
            found.layers[3] = torch.full_like(found.layers[3], torch.nan)
            return found

    small, large = readers
    with pytest.raises(TrainingError, match=r"of layer 1 of '.*small' from layer 3 of '.*large' is nan"):
        survey((small, Broken(large.backbone, None, large.targets)), 1, 1)


def test_mean_and_spread_by_hand() -> None:
    batches = torch.tensor([[[1.0]], [[5.0]]], dtype=torch.float64)
    found = LayerDivergences(batches, torch.tensor([30, 10]), records=3)
    assert found.mean.item() == 2.0  # (30 * 1 + 10 * 5) / 40
    assert found.spread.item() == pytest.approx(3**0.5)  # (30 * 1 + 10 * 9) / 40 = 3
