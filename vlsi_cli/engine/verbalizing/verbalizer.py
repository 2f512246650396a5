"""Verbalizers: what turns the state of an intermediate layer into words (arXiv 2412.01822, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlsi_cli.engine.verbalizing.architectures import (
    ARCHITECTURES,
    Architecture,
    DecoderFactory,
    build_blocks,
    initialize,
)
from vlsi_cli.errors import ConfigError


class Verbalizers(nn.Module):
    """One verbalizer for each target layer of one backbone, all of one architecture and none of them shared.

    A verbalizer maps the raw output of a decoder layer to what enters the backbone's own language head;
    head and final norm stay the backbone's, frozen, and are neither parameters nor part of the state dict
    here. The paper states the gated FFN and the head [P] and leaves norm, residual and initialisation
    open [D]. The default - residual, last projection zero, final norm - makes an untrained verbalizer
    exactly the logit lens: the head on the normed state. ``init="random", residual=False`` is nearer to
    the losses that the paper prints for its first steps.

    Parameters are fp32 whatever the backbone's dtype. States are lifted to fp32, and cast back before the
    norm, so the norm and the head see what they see in the backbone. Under fp16 autocast the blocks stay
    in fp32, since a product of two projections of a raw residual stream leaves fp16's range.

    Args:
        layers: target layers, counted from 1.
        hidden_size: H of the backbone.
        intermediate_size: width of the backbone's own FFN (used by ``ffn``).
        architecture: a row of Table 4f; see :mod:`vlsi_cli.engine.verbalizing.architectures`.
        init: ``zero`` or ``random``.
        residual: add the input to each block's output. Decoder blocks have residual connections of their own.
        norm: the backbone's final norm, or None to enter the head without one.
        initializer_range: deviation of random values; the backbone's own.
        decoder_factory: needed for ``decoder`` and ``decoder-x2``; see
            :func:`vlsi_cli.engine.verbalizing.architectures.decoder_layers_like`.
        seed: of the first values; torch's own random state is left alone.
        device: where to build; ``meta`` for counting parameters without memory (no values then).

    Raises:
        ConfigError: an unknown architecture, or a decoder without residual.
    """

    def __init__(
        self,
        layers: Sequence[int],
        hidden_size: int,
        intermediate_size: int,
        architecture: Architecture = "verb-ffn",
        *,
        init: Literal["zero", "random"] = "zero",
        residual: bool = True,
        norm: nn.Module | None = None,
        initializer_range: float = 0.02,
        decoder_factory: DecoderFactory | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ConfigError(
                f"no verbalizer architecture {architecture!r}; one of {', '.join(ARCHITECTURES)}"
            )
        self.targets = tuple(layers)
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        self.architecture: Architecture = architecture
        self.init: Literal["zero", "random"] = init
        self.residual = residual
        self.initializer_range = initializer_range
        self._norm = (norm,)  # in a tuple: the norm belongs to the backbone, not to this module
        if self.needs_sequence and not residual:
            raise ConfigError(
                f"a {architecture!r} verbalizer cannot go without residual: a decoder layer has its own"
            )
        self.layers = nn.ModuleDict()
        generator = torch.Generator().manual_seed(seed)
        # Decoder layers draw from torch's own random state while they are built; what follows must not
        # notice.
        with torch.random.fork_rng(devices=[]), torch.device(device):
            for layer in self.targets:
                blocks = build_blocks(
                    architecture,
                    layer,
                    hidden=hidden_size,
                    intermediate=intermediate_size,
                    decoder_factory=decoder_factory,
                )
                self.layers[str(layer)] = nn.ModuleList(blocks).float().requires_grad_(True)
        if torch.device(device).type != "meta":
            for blocks_of_layer in self.layers.values():
                assert isinstance(blocks_of_layer, nn.ModuleList)
                for block in blocks_of_layer:
                    initialize(block, init, initializer_range, generator)

    @property
    def needs_sequence(self) -> bool:
        """Whether :meth:`forward` wants whole sequences ``[B, S, H]`` and the tapped layer's call."""
        return self.architecture.startswith("decoder")

    @property
    def normed(self) -> bool:
        """Whether the backbone's final norm stands before the head."""
        return self._norm[0] is not None

    def blocks(self) -> list[nn.Module]:
        """The blocks of all layers, each called as a whole."""
        return [block for blocks in self.layers.values() for block in blocks.children()]

    def forward(self, layer: int, hidden: Tensor, call: dict[str, Any] | None = None) -> Tensor:
        """States that enter the head, for the raw output of target layer ``layer``.

        Args:
            layer: a target layer's number.
            hidden: ``[..., H]`` raw output of that decoder layer, in any float dtype; ``[B, S, H]`` when
                :attr:`needs_sequence`.
            call: keyword arguments of the tapped layer, when :attr:`needs_sequence`.

        Returns:
            ``[..., H]``, in ``hidden``'s dtype.
        """
        if str(layer) not in self.layers:
            raise ValueError(f"no verbalizer for layer {layer}; there are some for {list(self.targets)}")
        blocks = self.layers[str(layer)]
        assert isinstance(blocks, nn.ModuleList)
        x = hidden.float()
        with _without_fp16_autocast(hidden.device):
            for block in blocks:
                if self.needs_sequence:
                    if call is None or hidden.ndim != 3:
                        raise ValueError("a decoder verbalizer needs [B, S, H] and the tapped layer's call")
                    x = block(x, call)
                else:
                    x = x + block(x) if self.residual else block(x)
        x = x.to(hidden.dtype)
        norm = self._norm[0]
        return x if norm is None else norm(x)


def _without_fp16_autocast(device: torch.device) -> AbstractContextManager[Any]:
    if torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16:
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
