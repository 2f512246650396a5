"""Modules divided among the processes of a run, by torch's FSDP2 (``torch.distributed.fsdp.fully_shard``).

Each unit (a decoder layer, a block of a verbalizer) lies in pieces on all processes, is gathered when it runs, and let
go of after it; its gradients are averaged straight into pieces. What losses reach for between forward passes (heads,
norms) and what not every batch uses (frozen vision towers) stays whole: a process whose batch has no picture would
otherwise leave the others waiting in a gathering.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vlsi_cli.engine import processes


def shard(root: nn.Module, units: Iterable[nn.Module]) -> None:
    """Divide the units of a module, and what else of it trains; what is frozen outside them stays whole.

    Every process must hold the same numbers. Parameters become ``DTensor``, new objects under the old names.

    Args:
        root: what is called; its own trained parameters are gathered at its start and kept until the backward pass.
        units: modules inside it, each called as a whole and none inside another.
    """
    for unit in units:
        shard_unit(unit)
    pieces = {p for module in root.modules() if isinstance(module, FSDPModule) for p in module.parameters()}
    kept = {p for p in root.parameters() if not p.requires_grad and p not in pieces}
    fully_shard(root, mesh=_mesh(root), ignored_params=kept)


def shard_unit(unit: nn.Module) -> None:
    """Divide one unit of a root that is given to :func:`shard` afterwards."""
    fully_shard(unit, mesh=_mesh(unit), reshard_after_forward=True)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, gathered if it lies in pieces; then every process must ask for it.

    In pieces are ``DTensor`` and the trained parameters of DeepSpeed's ZeRO-3.
    """
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if hasattr(tensor, "ds_id"):
        from deepspeed.utils import safe_get_full_fp32_param

        found: Tensor = safe_get_full_fp32_param(tensor)
        return found
    return tensor


def whole_values(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Whole tensors by name, in the first process's host memory; none on the others. All processes call it together."""
    found: dict[str, Tensor] = {}
    for name, tensor in named:
        value = whole(tensor)
        if processes.is_first():
            found[name] = value.detach().cpu()
    return found


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor on the device of ``model``, divided as that is; nothing is exchanged."""
    moved = tensor.to(model.device)
    if not isinstance(model, DTensor):
        return moved
    return distribute_tensor(moved, model.device_mesh, model.placements, src_data_rank=None)


def is_piece(tensor: Tensor) -> bool:
    """Whether a tensor lies in pieces."""
    return isinstance(tensor, DTensor) or hasattr(tensor, "ds_id")


def is_sharded(module: nn.Module) -> bool:
    """Whether any parameter of a module lies in pieces."""
    return any(is_piece(parameter) for parameter in module.parameters())


def norm_of(gradients: Iterable[Tensor]) -> Tensor:
    """Norm of all gradients together; pieces are summed over the processes, whole ones are the same on each."""
    pieces, shared = _squares(gradients)
    return (processes.add_up(pieces) + shared).sqrt()


def scale(gradients: Iterable[Tensor], factor: Tensor) -> None:
    """Multiply gradients by a number on their device, in place; of those in pieces, this process's piece."""
    for gradient in gradients:
        _own(gradient).mul_(factor)


def _own(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _squares(gradients: Iterable[Tensor]) -> Iterator[Tensor]:
    found = list(gradients)
    device = found[0].device if found else torch.device("cpu")
    for divided in (True, False):
        each = [_own(g) for g in found if isinstance(g, DTensor) == divided]
        norms = torch._foreach_norm(each) if each else [torch.zeros((), device=device)]
        yield torch.stack([norm.float() for norm in norms]).square().sum()


def _mesh(module: nn.Module) -> DeviceMesh:
    return _all_processes(next(module.parameters()).device.type, distributed.group.WORLD)


@lru_cache(maxsize=2)
def _all_processes(kind: str, group: Any) -> DeviceMesh:
    """One mesh a group: a process that joins a second run must not divide by the group of the first, which is gone."""
    return init_device_mesh(kind, (processes.size(),))
