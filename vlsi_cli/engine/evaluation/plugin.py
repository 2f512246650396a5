"""What lmms-eval finds of us by itself: the model `vlsi` for its own command line."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The entry of the harness's table of models."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="vlsi", chat_class_path="vlsi_cli.engine.evaluation.adapter.VlsiModel")
