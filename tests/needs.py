"""What some tests need beyond the package itself; without it they are skipped, and say what is missing."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def onnx() -> None:
    """Skip the calling module where the extra ``onnx`` is not installed."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        reason = f"needs the extra `onnx`: {missing[0]} is not installed"
        pytest.skip(reason, allow_module_level=True)


def bitsandbytes() -> None:
    """Skip the calling test where the extra ``quant`` is not installed."""
    if find_spec("bitsandbytes") is None:
        pytest.skip("needs the extra `quant`: bitsandbytes is not installed")
