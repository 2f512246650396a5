from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.tiny import tiny_folder
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.load import load_backbone

Inputs = Callable[[Backbone], dict[str, Any]]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_folder, built once for each set of arguments and shared by the session: never write into it."""
    made: dict[Any, Path] = {}

    def folder(family: str, **options: Any) -> Path:
        key = (family, *sorted(options.items()))
        if key not in made:
            made[key] = tiny_folder(family, tmp_path_factory.mktemp("models") / family, **options)
        return made[key]

    return folder


@pytest.fixture
def load(folders: Callable[..., Path]) -> Callable[..., Backbone]:
    def loaded(family: str, **options: Any) -> Backbone:
        return load_backbone(str(folders(family, **options)))

    return loaded


@pytest.fixture
def batch_of() -> Inputs:
    """A right-padded batch: a question about a picture, and a shorter one about another (or none) of its size."""

    def inputs(backbone: Backbone) -> dict[str, Any]:
        texts = []
        for question in ("What is missing here? Look well.", "Red?"):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            message = {"role": "user", "content": content}
            texts.append(backbone.processor.apply_chat_template([message], add_generation_prompt=True))
        pictures = [Image.linear_gradient("L").resize(size).convert("RGB") for size in ((40, 24), (16, 32))]
        nested = backbone.family.name in ("smolvlm", "idefics3", "gemma3", "gemma4")
        images: Any = [[p] for p in pictures] if nested else pictures
        made = backbone.processor(
            text=texts, images=images, return_tensors="pt", padding=True, padding_side="right"
        )
        return {k: v for k, v in made.items() if isinstance(v, torch.Tensor)}

    return inputs
