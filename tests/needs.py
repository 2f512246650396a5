"""What some tests need beyond the package itself; without it they are skipped, and say what is missing."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest


def onnx() -> None:
    """Skip the calling module where the extra ``onnx`` is not installed."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        reason = f"needs the extra `onnx`: {missing[0]} is not installed"
        pytest.skip(reason, allow_module_level=True)


def node() -> tuple[str, Path]:
    """Node and the folder with transformers.js: skip where ``VLSI_NODE_MODULES`` names none, fail where it is wrong."""
    named, program = os.environ.get("VLSI_NODE_MODULES"), shutil.which("node")
    if not named:
        pytest.skip("needs VLSI_NODE_MODULES, a node_modules folder made from docs/examples/package.json")
    modules = Path(named).resolve()
    assert program is not None, "VLSI_NODE_MODULES is set, and there is no node"
    assert (modules / "@huggingface/transformers").is_dir(), f"no @huggingface/transformers in {modules}"
    return program, modules


def genai() -> None:
    """Skip the calling test where onnxruntime-genai is not installed."""
    if find_spec("onnxruntime_genai") is None:
        pytest.skip("onnxruntime-genai is not installed")


def bitsandbytes() -> None:
    """Skip the calling test where the extra ``quant`` is not installed."""
    if find_spec("bitsandbytes") is None:
        pytest.skip("needs the extra `quant`: bitsandbytes is not installed")
