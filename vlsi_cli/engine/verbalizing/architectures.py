"""The blocks a verbalizer can be made of: Table 4f of the paper, each with its initialisation.

Every projection is without bias and every activation is SiLU (method choices [D]). A verbalizer is one
block or, in the "x2" forms, two. The paper does not say how two are joined: here they stand one after the
other, each with its own residual connection when residuals are on. The exception is ``mlp-x2``: two
matrices in a row are one matrix, so it is a single block of two matrices with the activation between
them.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Architecture = Literal["verb-ffn", "verb-ffn-x2", "ffn", "ffn-x2", "mlp", "mlp-x2", "decoder", "decoder-x2"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)

DecoderFactory = Callable[[int], nn.Module]
"""Decoder layer number (from 1) -> a fresh decoder layer of the backbone's own class."""


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A projection without bias and with undefined values, on torch's current default device."""
    made: nn.Linear = nn.utils.skip_init(
        nn.Linear, inputs, outputs, bias=False, device=torch.get_default_device()
    )
    return made


class GatedFFN(nn.Module):
    """``down(silu(gate(x)) * up(x))``: a verb-FFN with ``inner = hidden``, a backbone's FFN with its own width.

    Three matrices; with ``inner = hidden`` the 3 h^2 parameters that give the paper's 269M for seven
    layers of width 3584.
    """

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = linear(hidden, inner), linear(hidden, inner), linear(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., H]`` to ``[..., H]``."""
        result: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return result

    def last(self) -> list[nn.Linear]:
        """The projections that end the block's residual branch."""
        return [self.down]


class Matrix(nn.Module):
    """One ``h x h`` matrix: Table 4f's MLP."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.down = linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., H]`` to ``[..., H]``."""
        result: Tensor = self.down(x)
        return result

    def last(self) -> list[nn.Linear]:
        """The projections that end the block's residual branch."""
        return [self.down]


class TwoMatrices(nn.Module):
    """``down(silu(up(x)))`` of constant width: Table 4f's MLP x2."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.up, self.down = linear(hidden, hidden), linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., H]`` to ``[..., H]``."""
        result: Tensor = self.down(F.silu(self.up(x)))
        return result

    def last(self) -> list[nn.Linear]:
        """The projections that end the block's residual branch."""
        return [self.down]


class DecoderBlock(nn.Module):
    """One decoder layer of the backbone's own class, with its own attention, norms and residual connections.

    It reads the whole sequence and what else the tapped layer itself was called with (attention mask, position
    embeddings, ...). Of keys and values that layers leave for later ones it reads the backbone's, and leaves none.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, call: dict[str, Any]) -> Tensor:
        """``[B, S, H]`` to ``[B, S, H]``."""
        output = self.layer(x, **{name: _like(value, x) for name, value in call.items()})
        result: Tensor = output if isinstance(output, Tensor) else output[0]
        return result

    def last(self) -> list[nn.Linear]:
        """The projections that end the layer's residual branches."""
        ends = ("o_proj", "out_proj", "down_proj", "fc2", "per_layer_projection")
        return [
            m for n, m in self.named_modules() if isinstance(m, nn.Linear) and n.rsplit(".", 1)[-1] in ends
        ]


def _like(value: Any, x: Tensor) -> Any:
    """A recorded call's float tensors in the block's dtype: the verbalizer may be fp32 on a bf16 backbone."""
    if isinstance(value, Tensor):
        return value.to(x.dtype) if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_like(part, x) for part in value)
    if isinstance(value, UserDict):  # what this block writes into it must not reach the backbone's layers
        return UserDict({name: _like(part, x) for name, part in value.items()})
    return value


def decoder_layers_like(layers: Sequence[nn.Module]) -> DecoderFactory:
    """A factory of fresh decoder layers, each of the class and configuration of the layer it stands behind.

    Args:
        layers: the backbone's decoder layers, first to last. They share one configuration, and those of full
            attention hold it.
    """
    attentions: list[Any] = [layer.self_attn for layer in layers if hasattr(layer, "self_attn")]
    config = attentions[0].config

    def make(number: int) -> nn.Module:
        like: Any = layers[number - 1]
        fresh: nn.Module = type(like)(config, number - 1)
        return fresh

    return make


def build_blocks(
    architecture: Architecture,
    layer: int,
    *,
    hidden: int,
    intermediate: int,
    decoder_factory: DecoderFactory | None,
) -> list[nn.Module]:
    """The blocks behind one target layer, with undefined values except in decoder layers.

    Args:
        architecture: one of :data:`ARCHITECTURES`.
        layer: the target layer's number, from 1.
        hidden: the backbone's width H.
        intermediate: the width of the backbone's own FFN; used by ``ffn``.
        decoder_factory: used by ``decoder``, which cannot be built without.
    """
    kind, count = architecture.removesuffix("-x2"), 2 if architecture.endswith("-x2") else 1
    if kind == "verb-ffn":
        return [GatedFFN(hidden, hidden) for _ in range(count)]
    if kind == "ffn":
        return [GatedFFN(hidden, intermediate) for _ in range(count)]
    if kind == "mlp":
        return [Matrix(hidden) if count == 1 else TwoMatrices(hidden)]
    if decoder_factory is None:
        raise ValueError(f"a {architecture!r} verbalizer needs a decoder_factory")
    return [DecoderBlock(decoder_factory(layer)) for _ in range(count)]


#: Range of the decay rates of a state of linear attention, at the start.
_DECAY = (0.01, 16.0)


@torch.no_grad()
def initialize(
    block: nn.Module, init: Literal["zero", "random"], initializer_range: float, generator: torch.Generator
) -> None:
    """Give a block its first values, in the order of its modules; drawn where ``generator`` is, so that a block on a
    GPU gets those that it would get on the host.

    Matrices and convolutions are normal with deviation ``initializer_range`` (the backbone's own) and biases zero;
    norms inside a decoder layer keep what their constructor gave them, and the decay of linear attention is drawn as
    transformers draws it. With ``zero`` the projections that end a
    residual branch are zero, so that a residual block changes nothing at first.
    """
    for module in block.modules():
        if isinstance(decay := getattr(module, "A_log", None), Tensor):
            rates = torch.empty(decay.shape, dtype=decay.dtype, device=generator.device)
            decay.copy_(rates.uniform_(*_DECAY, generator=generator).log_())
        if isinstance(module, nn.Linear | nn.Conv1d):
            here = module.weight.device == generator.device
            drawn = module.weight if here else torch.empty_like(module.weight, device=generator.device)
            module.weight.copy_(drawn.normal_(0.0, initializer_range, generator=generator))
            if module.bias is not None:
                module.bias.zero_()
    if init == "zero":
        for projection in block.last():  # type: ignore[operator]
            projection.weight.zero_()
