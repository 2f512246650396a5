from __future__ import annotations

import copy

import pytest
import torch

from tests.tiny import FAMILIES


def positions(inputs):
    rows = torch.tensor([0, 0, 1, 1, 1])
    ends = inputs["attention_mask"].sum(1)
    cols = torch.tensor([3, int(ends[0]) - 1, 0, 4, int(ends[1]) - 1])
    return rows, cols


def test_gathered_inside_the_hook(load, batch_of):
    backbone = load("qwen2_vl")
    inputs = batch_of(backbone)
    rows, cols = positions(inputs)
    with torch.no_grad():
        with backbone.tap([2, 4]) as whole:
            backbone.forward_base(inputs)
        with backbone.tap([2, 4], rows=rows, cols=cols) as tapped:
            backbone.forward_base(inputs)
    for layer in (2, 4):
        assert tapped[layer].shape == (5, 64)
        assert torch.equal(tapped[layer], whole[layer][rows, cols])


def test_the_model_is_left_as_it_was(load, batch_of):
    backbone = load("qwen2_vl")

    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.model.modules())

    before = hooks()
    with backbone.tap([1, 2]) as tapped:
        assert hooks() > before
        backbone.forward_base(batch_of(backbone))
    assert hooks() == before
    assert 3 not in tapped
    with pytest.raises(RuntimeError), backbone.tap([1, 2]):
        raise RuntimeError
    assert hooks() == before


def test_layers_outside_the_decoder_are_refused(load):
    backbone = load("qwen2_vl")
    for layer in (0, 5):
        with pytest.raises(ValueError, match="count from 1 to 4"), backbone.tap([layer]):
            pass
    with pytest.raises(ValueError, match="belong together"), backbone.tap([1], rows=torch.tensor([0])):
        pass


def test_each_pass_replaces_the_last(load, batch_of):
    backbone = load("qwen2_vl")
    inputs = batch_of(backbone)
    text = dict(backbone.processor(text=["Hi"], return_tensors="pt"))
    with torch.no_grad(), backbone.tap([1]) as tapped:
        backbone.forward_base(inputs)
        assert tapped[1].shape[0] == 2
        backbone.forward_base(text)
        assert tapped[1].shape[0] == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_are_enough_to_run_a_layer_of_the_kind(family, load, batch_of):
    """What a decoder verbalizer does: run another decoder layer of the tapped one's kind."""
    backbone = load(family)
    inputs = batch_of(backbone)
    with torch.no_grad(), backbone.tap([2, 3], calls=True) as tapped:
        backbone.forward_base(inputs)
    with torch.no_grad():
        again = copy.deepcopy(backbone.layers[2])(tapped[2], **tapped.call[3])
    assert torch.equal(again, tapped[3])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("inside", [True, False], ids=["backward-inside", "backward-after"])
def test_checkpointing_changes_no_gradient_and_no_state(family, inside, load, batch_of):
    """Recomputation in backward runs the hooks again on some transformers versions: it must not be heard."""
    gradients, states = [], []
    for checkpointing in (False, True):
        backbone = load(family)
        inputs = batch_of(backbone)
        rows, cols = positions(inputs)
        backbone.set_trainable({"layers", "embeddings"})
        backbone.set_gradient_checkpointing(checkpointing)
        with backbone.tap([1, 3, 4], rows=rows, cols=cols) as tapped:
            last = backbone.forward_base(inputs)
            kept = dict(tapped)
            loss = sum((v * v).sum() * k for k, v in kept.items()) + last.sum()
            if inside:
                loss.backward()
                assert all(tapped[k] is v for k, v in kept.items())
        if not inside:
            loss.backward()
        gradients.append({n: p.grad for n, p in backbone.model.named_parameters() if p.requires_grad})
        states.append(kept)
    for layer in (1, 3, 4):
        assert torch.equal(states[0][layer], states[1][layer])
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        # fp32 sums in another order: some 1e-7 of the tensor's own size; a lost or doubled path would be of order 1
        assert (gradients[1][name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_checkpointing_really_recomputes(load, batch_of):
    backbone = load("qwen2_vl")
    backbone.set_trainable({"layers"})
    backbone.set_gradient_checkpointing(True)
    runs = []
    backbone.layers[0].self_attn.register_forward_hook(lambda *_: runs.append(1))
    loss = backbone.forward_base(batch_of(backbone)).sum()
    before = len(runs)
    loss.backward()
    assert (before, len(runs)) == (1, 2)
    backbone.set_gradient_checkpointing(False)
    runs.clear()
    backbone.forward_base(batch_of(backbone)).sum().backward()
    assert len(runs) == 1
