"""Random-weight Qwen2-VL models of a given shape, and a batch for them: what a training step costs does not ask what
the weights are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vlsi_cli.config.facts import ModelFacts
from vlsi_cli.config.models import LayersConfig
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.families import FAMILIES
from vlsi_cli.engine.backbones.quiet import quiet_transformers
from vlsi_cli.engine.batch import Batch


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; ``vision`` is (layers, width, heads, patch) of its tower."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    rows: int
    tied: bool
    vision: tuple[int, int, int, int]
    vocabulary: int = 151_657
    stride: int = 4

    @property
    def targets(self) -> tuple[int, ...]:
        """Target layers by the default rule, or by the stride of a model that was cut."""
        return LayersConfig(start=2, stride=self.stride).resolve(self.layers)


_TOWER = (32, 1280, 16, 14)
SHAPES = {
    "2b": Shape(28, 1536, 8960, 12, 2, 151_936, True, _TOWER),
    "7b": Shape(28, 3584, 18_944, 28, 4, 152_064, False, _TOWER),
    "72b": Shape(80, 8192, 29_568, 64, 8, 152_064, False, _TOWER),
    # Of the same proportions, for a CPU: one to about four in width, vocabulary and towers alike.
    "small": Shape(14, 256, 1024, 4, 2, 18_992, True, (4, 128, 2, 14), 18_900),
    "large": Shape(14, 512, 2048, 8, 2, 19_008, False, (4, 128, 2, 14), 18_900),
    "tiny": Shape(3, 32, 64, 2, 1, 320, True, (1, 32, 2, 4), 300, 1),
}


def shape_of(word: str) -> Shape:
    """A shape by name; ``72b:24`` is cut to 24 layers, with a target layer at each from the second on, 20 at most."""
    name, _, layers = word.partition(":")
    shape = SHAPES[name]
    return shape if not layers else replace(shape, layers=int(layers), stride=max(1, int(layers) // 20))


def config_of(word: str, **ids: int) -> Any:
    """The transformers config of a shape.

    Args:
        ids: of tokens that differ from the last ones of the vocabulary, such as ``image_token_id``.
    """
    from transformers import AutoConfig

    shape = shape_of(word)
    depth, width, heads, patch = shape.vision
    half = shape.hidden // shape.heads // 2
    third = 3 * half // 8
    text = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.rows,
        "tie_word_embeddings": shape.tied,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [half - 2 * third, third, third],
        },
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    vision = {
        "depth": depth,
        "embed_dim": width,
        "hidden_size": shape.hidden,
        "num_heads": heads,
        "mlp_ratio": 4,
        "patch_size": patch,
    }
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    last = {name: shape.vocabulary - 1 - place for place, name in enumerate(names)}
    return AutoConfig.for_model(
        "qwen2_vl",
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=shape.tied,
        **(last | ids),
    )


def build(word: str, dtype: torch.dtype, device: str) -> Backbone:
    """A frozen model with weights drawn where it is to be."""
    from transformers import AutoModelForImageTextToText

    with quiet_transformers(), torch.device(device):
        model = AutoModelForImageTextToText.from_config(
            config_of(word), dtype=dtype, attn_implementation="sdpa"
        )
    family = FAMILIES["qwen2_vl"]
    backbone = Backbone(model=model, family=family, processor=None, id=word, revision=None, folder=Path())
    backbone.tokenizer_length = shape_of(word).vocabulary  # there is no tokenizer to ask
    backbone.freeze()
    return backbone


def facts(word: str, backbone: Backbone) -> ModelFacts:
    """What the plan knows of such a model."""
    shape, counts = shape_of(word), backbone.parameter_counts()
    return ModelFacts(
        name=word,
        model_type="qwen2_vl",
        layers=shape.layers,
        hidden=shape.hidden,
        ffn=shape.ffn,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.hidden // shape.heads,
        vocab=shape.rows,
        tied=shape.tied,
        attention_bias=True,
        qk_norm=False,
        vision=counts["vision"] + counts["projector"],
    )


def batch_for(word: str, records: int, length: int, device: str, dtype: torch.dtype) -> Batch:
    """Records of one length: a picture that takes half of it, text, and a response of a tenth.

    Args:
        length: a multiple of 64, so that the picture is a whole number of rows.
    """
    shape = shape_of(word)
    image_tokens, answer = length // 2, max(1, length // 10)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, shape.vocabulary - 8, (records, length), generator=generator)
    ids[:, 0], ids[:, image_tokens + 1] = shape.vocabulary - 3, shape.vocabulary - 4
    ids[:, 1 : image_tokens + 1] = shape.vocabulary - 1
    grid = torch.tensor([[1, 8, image_tokens // 2]] * records)  # 4 patches an image token
    patch = shape.vision[3]
    pixels = torch.randn(int(grid.prod(1).sum()), 3 * 2 * patch * patch, generator=generator)
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == shape.vocabulary - 1).long(),
        "pixel_values": pixels.to(dtype),
        "image_grid_thw": grid,
    }
    rows = torch.arange(records).repeat_interleave(answer)
    cols = torch.arange(length - answer - 1, length - 1).repeat(records)
    names = tuple(str(record) for record in range(records))
    digests = tuple(record.to_bytes(8, "little") * 4 for record in range(1, records + 1))
    return Batch(inputs, rows, cols, ids[rows, cols + 1], names, digests).to(device)
