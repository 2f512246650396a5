"""Compiled layers compute what the layers compute, taps and gradients included, and are gone after the block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from tests import pairs
from tests.tiny import tiny_folder
from vlsi_cli.engine.backbones.compiled import compiled_layers, require_compiler
from vlsi_cli.errors import ConfigError


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the tracer looks at tensors of every kind
@pytest.mark.parametrize(
    ("family", "compiled_ones"),
    [("qwen2_vl", [True, True]), ("qwen3_5", [False, True]), ("gemma4", [True] * 4)],
)
def test_the_same_states_and_gradients(
    family: str, compiled_ones: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the tracing is torch.compile's own; its code generator needs minutes on a CPU and is not what is tested
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model = pairs.load(tiny_folder(family, tmp_path, layers=len(compiled_ones), hidden=32))
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
        assert ["forward" in vars(layer) for layer in model.layers] == compiled_ones
        compiled = passes()
    assert not any("forward" in vars(layer) for layer in model.layers)
    for a, b in zip(plain, compiled, strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_lengths_padding_and_counts_of_records_compile_a_bounded_number_of_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 batches of 50 lengths, as data have them: all run compiled, and the later ones compile nothing."""
    graphs, calls = [], [0]

    def counting(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)

        def call(*args: object) -> object:
            calls[0] += 1
            return graph.forward(*args)

        return call

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    torch.compiler.reset()
    model = pairs.load(tiny_folder("qwen2_vl", tmp_path, layers=2, hidden=32))
    model.set_trainable({"layers"})
    compiled = []
    with compiled_layers(model):
        for step in range(50):
            count, length = (1, 3, 2)[step % 3], 9 + 7 * step % 50
            ids = torch.arange(count * length).reshape(count, length) % 200 + 5
            seen = torch.ones_like(ids)
            if step % 2:
                seen[0, length // 2 :] = 0
            inputs = {"input_ids": ids, "attention_mask": seen, "mm_token_type_ids": 0 * ids}
            if step % 5:
                model.forward_base(inputs).sum().backward()
            else:
                with torch.no_grad():
                    model.forward_base(inputs)
            compiled.append(len(graphs))
    torch.compiler.reset()
    assert calls == [50 * 2]  # no layer gave up being compiled
    assert compiled[-1] == compiled[20] <= 16


def test_what_cannot_compile_is_told_before_a_run_begins(monkeypatch) -> None:
    def no_compiler(graph, inputs):
        raise RuntimeError("No working C++ compiler found")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", partial(compile_, backend=no_compiler))
    with pytest.raises(ConfigError, match="cannot be had here: No working C") as raised:
        require_compiler(torch.device("cpu"))
    assert "g++" in str(raised.value.hint)
    monkeypatch.setattr(torch, "compile", partial(compile_, backend="eager"))
    require_compiler(torch.device("cpu"))
