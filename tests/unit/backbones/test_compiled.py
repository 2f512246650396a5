"""Compiled layers compute what the layers compute, taps and gradients included, and are gone after the block."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from tests import pairs
from tests.tiny import tiny_folder
from vlsi_cli.engine.backbones.compiled import compiled_layers


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the tracer looks at tensors of every kind
def test_the_same_states_and_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the tracing is torch.compile's own; its code generator needs minutes on a CPU and is not what is tested
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model = pairs.load(tiny_folder("qwen2_vl", tmp_path, layers=2, hidden=32))
    parameters = [p for _, p in model.set_trainable({"layers"})]
    batches = pairs.batches(model, pairs.encoded(model, 3), 1)

    def passes() -> list[torch.Tensor]:
        found = []
        for batch in batches:  # of different lengths
            with model.tap([1], rows=batch.rows, cols=batch.cols) as tapped:
                last = model.forward_base(batch.inputs)
                found += [tapped[1], last]
        loss = torch.stack([states.square().sum() for states in found]).sum()
        return [*found, *torch.autograd.grad(loss, parameters)]

    plain = passes()
    with compiled_layers(model):
        assert all("forward" in vars(layer) for layer in model.layers)
        compiled = passes()
    assert not any("forward" in vars(layer) for layer in model.layers)
    for a, b in zip(plain, compiled, strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-5)
