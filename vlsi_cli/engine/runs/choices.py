"""How a run computes where the configuration leaves it open: decided once, told once, kept in the run folder."""

from __future__ import annotations

from typing import Any

import torch

from vlsi_cli.config.run import DistillConfig, Sharding
from vlsi_cli.engine import processes
from vlsi_cli.engine.devices import precision_name, resolve_attention, resolve_precision

_DIVIDED = {
    "none": "each holds everything",
    "student": "what trains is divided among them",
    "both": "both models are divided among them",
    "zero2": "DeepSpeed divides gradients and moments among them (ZeRO-2)",
    "zero3": "DeepSpeed divides what trains among them (ZeRO-3)",
}


def resolved_choices(
    config: DistillConfig, device: torch.device, dtype: torch.dtype, sharding: Sharding
) -> dict[str, Any]:
    """Plain values by name; sides that the run does not load are left out."""
    sides = {"student": config.student}
    if config.teacher is not None and config.teacher.cache is None:
        sides["teacher"] = config.teacher
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    stored = {
        side: precision_name(resolve_precision(model.dtype, device) if model.dtype != "auto" else dtype)
        for side, model in sides.items()
        if side == "teacher"
    }
    return {
        "device": str(device),
        "device_name": name,
        "precision": precision_name(dtype),
        "tf32": torch.get_float32_matmul_precision() == "high",
        "attention": {side: resolve_attention(m.attn_implementation, device) for side, m in sides.items()},
        "compile": config.compile,
        "processes": processes.size(),
        "backend": None if processes.size() == 1 else "nccl" if device.type == "cuda" else "gloo",
        "sharding": sharding,
        "teacher": {"placement": sides["teacher"].placement, "precision": stored["teacher"]}
        | {"quantization": sides["teacher"].quantization}
        if "teacher" in sides
        else None,
    }


def chosen(choices: dict[str, Any]) -> str:
    """The choices in one sentence."""
    parts = [f"computing on {choices['device_name']} in {choices['precision']}"]
    parts += ["fp32 products rounded to TF32"] if choices["tf32"] else []
    kinds = sorted(set(choices["attention"].values()))
    parts.append(f"attention {' and '.join(kinds)}")
    parts += ["losses and decoder layers compiled"] if choices["compile"] else []
    teacher = choices["teacher"]
    if teacher is not None and teacher["placement"] != "device":
        parts.append(f"the large model's layers on {teacher['placement']}")
    if teacher is not None and teacher["quantization"] != "none":
        parts.append(f"the large model in {teacher['quantization']}")
    if choices["processes"] > 1:
        divided = _DIVIDED[choices["sharding"]]
        parts.append(f"{choices['processes']} processes over {choices['backend']}, {divided}")
    return ", ".join(parts)
