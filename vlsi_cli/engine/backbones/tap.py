"""Read the output of chosen decoder layers while a forward pass runs, and nothing else.

A verbalizer needs the hidden states of a few layers at the response positions only. Asking transformers for all
hidden states would keep L + 1 tensors [B, S, H]; a tap hooks the wanted layers, gathers the wanted positions inside
the hook, and leaves the model as it was when the context closes.

Shapes: B rows, S positions, H hidden width, R response positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vlsi_cli.engine.backbones.arguments import positions

#: Arguments of a decoder layer that belong to generation, not to the layer's reading of its input.
_NOT_REPLAYED = ("cache", "past_key_values", "past_key_value", "use_cache", "cache_position")


class Tapped(Mapping[int, Tensor]):
    """What a tap caught: layer number -> states of that layer in the last forward pass.

    Layers count from 1, so layer k is transformers' ``hidden_states[k]``, except that the last layer's state here is
    raw (before the final norm) where transformers gives it normed.

    Attributes:
        call: layer number -> arguments the layer was called with beside its input, by name (attention mask, position
            embeddings, ...), filled when the tap was opened with ``calls=True``; enough to run another decoder layer on
            the same input.
    """

    def __init__(self) -> None:
        self._states: dict[int, Tensor] = {}
        self._whole: dict[int, Tensor] = {}
        self.call: dict[int, dict[str, Any]] = {}
        self._listening = False

    def __getitem__(self, layer: int) -> Tensor:
        return self._states[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._states))

    def __len__(self) -> int:
        return len(self._states)


@contextmanager
def tap(
    base: nn.Module,
    decoder_layers: Sequence[nn.Module],
    wanted: Sequence[int],
    *,
    rows: Tensor | None = None,
    cols: Tensor | None = None,
    calls: bool = False,
) -> Iterator[Tapped]:
    """Catch the raw outputs of the layers ``wanted`` in each forward pass of ``base`` inside the block.

    Gradient checkpointing runs a layer a second time during backward, on some versions of transformers together with
    its hooks. So a tap listens only while ``base`` itself runs forward; and under checkpointing the hook keeps the
    layer's output by reference and gathers after the pass, because a gather inside the recomputed region would be a
    saved tensor that the recomputation lacks. That costs no memory: the next layer's checkpoint holds it anyway.

    Args:
        base: the module whose forward pass is listened to (the model without its head).
        decoder_layers: all decoder layers, first to last.
        wanted: layer numbers, counted from 1.
        rows, cols: positions to keep, [R] each; None keeps whole tensors [B, S, H].
        calls: keep the arguments of each tapped layer in ``tapped.call``.

    Yields:
        A :class:`Tapped`, filled after each forward pass; [R, H] a layer, or [B, S, H] without rows and cols.

    Raises:
        ValueError: a layer number outside 1..L, or only one of rows and cols.
    """
    outside = [k for k in wanted if not 1 <= k <= len(decoder_layers)]
    if outside:
        raise ValueError(f"no decoder layer {outside[0]}: layers count from 1 to {len(decoder_layers)}")
    if (rows is None) != (cols is None):
        raise ValueError("rows and cols belong together")
    tapped = Tapped()

    def gather(state: Tensor) -> Tensor:
        if rows is None or cols is None:
            return state
        return state[rows.to(state.device), cols.to(state.device)]

    def begin(*_: Any) -> None:
        tapped._states.clear()
        tapped._whole.clear()
        tapped.call.clear()
        tapped._listening = True

    def end(*_: Any) -> None:
        tapped._listening = False
        for layer, state in tapped._whole.items():
            tapped._states[layer] = gather(state)
        tapped._whole.clear()

    def listen(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not tapped._listening:
                return
            state = output if isinstance(output, Tensor) else output[0]
            if _recomputes(module):
                tapped._whole[layer] = state
            else:
                tapped._states[layer] = gather(state)
            if calls:
                named = dict(zip(positions(type(module).forward)[1:], args[1:], strict=False)) | kwargs
                tapped.call[layer] = {k: v for k, v in named.items() if k not in _NOT_REPLAYED}

        return hook

    with ExitStack() as stack:
        for layer in dict.fromkeys(wanted):
            handle = decoder_layers[layer - 1].register_forward_hook(listen(layer), with_kwargs=True)
            stack.callback(handle.remove)
        stack.callback(base.register_forward_pre_hook(begin).remove)
        stack.callback(base.register_forward_hook(end, always_call=True).remove)
        yield tapped


def _recomputes(layer: nn.Module) -> bool:
    """Whether this call of the layer is checkpointed, that is, run again in backward."""
    return (
        bool(getattr(layer, "gradient_checkpointing", False)) and layer.training and torch.is_grad_enabled()
    )
