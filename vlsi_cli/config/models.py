"""Which two models take part, where their verbalizers sit, and what these are made of."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from vlsi_cli.config.base import Config

Architecture = Literal["verb-ffn", "verb-ffn-x2", "ffn", "ffn-x2", "mlp", "mlp-x2", "decoder", "decoder-x2"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
Sharding = Literal["auto", "none", "student", "both", "zero2", "zero3"]


class VerbalizerConfig(Config):
    """What stands between a target layer and the model's own language head (arXiv 2412.01822, Table 4f)."""

    architecture: Architecture = "verb-ffn"
    """`verb-ffn`: gated FFN of constant width (the paper's); `ffn`: the backbone's expansion; `mlp`: one
    matrix; `decoder`: a decoder layer of the backbone's kind; `-x2`: two of them in a row."""
    init: Literal["zero", "random"] = "zero"
    """`zero`: the last matrix starts at zero, so that an untrained verbalizer with a residual is the logit
    lens (method choice [D]); `random`: plain random start, nearer to the losses the paper prints."""
    residual: bool = True
    """Add the layer's output to what the verb-FFN makes of it (method choice [D])."""
    norm: bool = True
    """Pass the backbone's frozen final norm before its head (method choice [D])."""


class LayersConfig(Config):
    """Target layers: the decoder layers, counted from 1, that get a verbalizer. The last layer never is
    one."""

    start: int = Field(default=2, ge=1)
    """First target layer."""
    stride: int = Field(default=4, ge=1)
    """Distance between target layers: `start, start + stride, ...` up to the last layer but one."""
    layers: tuple[int, ...] | None = None
    """An explicit ascending list instead of `start` and `stride`."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        chosen = self.layers
        if chosen is not None and (not chosen or chosen[0] < 1 or any(b <= a for a, b in pairwise(chosen))):
            raise ValueError("`layers` must be a non-empty ascending list of numbers from 1")
        return self

    def resolve(self, num_layers: int) -> tuple[int, ...]:
        """The target layers of a decoder of ``num_layers`` layers.

        Empty when none fits; numbers of an explicit list are returned as they stand, even beyond the model,
        for the caller to refuse with both sides named.
        """
        if self.layers is not None:
            return self.layers
        return tuple(range(self.start, num_layers, self.stride))


class ModelConfig(Config):
    """One backbone: a hub id, a local folder, a size alias of the teacher's family (`2b`), or
    `demo/large|small`."""

    id: str = Field(min_length=1)
    """Hub id, local folder, or one of the shipped pair `demo/large` and `demo/small`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random`: take the architecture of `id` with fresh weights, drawn from the run's seed."""
    dtype: Precision = "auto"
    """Precision of the stored weights; `auto` follows the run's `precision`."""
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention kernel; `auto` leaves the choice to transformers."""
    trust_remote_code: bool = False
    """Code that comes with a checkpoint is never run: `true` is refused."""
    placement: Literal["device", "cpu", "disk"] = "device"
    """Where the decoder layers lie (teacher only): on the device; in host memory or in the checkpoint on the disk, from
    where each is copied to the device when it runs, which takes its time."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Bits a weight of the decoder layers (teacher only): as loaded, LLM.int8() or NF4. Needs the extra `quant`, and
    changes what the large model says, a little."""
    vision_memory: float = Field(default=0.0, ge=0)
    """GiB of host memory for what the model's frozen vision tower says about pictures, which is then computed once and
    not in every step of every stage; 0: not kept."""
    targets: LayersConfig = LayersConfig()
    """Layers that get a verbalizer."""
    verbalizers: Path | None = None
    """An already trained set of verbalizers to reuse (teacher only), whose training is then skipped: its folder,
    the run that trained it, or the hub id of a model that was pushed with its verbalizers."""
    cache: Path | None = None
    """Folder that `vlsi cache build` wrote (teacher only): the large model is then read from there, and neither
    loaded nor trained verbalizers for."""
