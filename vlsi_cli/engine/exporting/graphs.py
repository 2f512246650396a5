"""Which graphs a model becomes: their inputs, outputs and dynamic dimensions, and how they are traced.

Shapes: B rows, S new positions, P positions in the cache, H hidden width, G key/value heads, D width of a head.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.exporting.layouts import MROPE, NESTED, TILED, stacked_features
from vlsi_cli.engine.exporting.text import Decoder, Embeddings, MergedEmbeddings, deepstack_beside
from vlsi_cli.engine.exporting.vision import (
    LlavaVision,
    NestedVision,
    QwenVision,
    TileVision,
    segment_attention,
)
from vlsi_cli.errors import ModelError

#: Operator set of the graphs: onnxruntime, its web build and onnxruntime-genai all run it.
OPSET = 18

#: Families that have graphs, by ``model_type``.
EXPORTABLE = (*MROPE, "llava_onevision", *NESTED, *TILED)

_BATCH, _LENGTH, _PAST, _TOTAL = (
    "batch_size",
    "sequence_length",
    "past_sequence_length",
    "total_sequence_length",
)


@dataclass(frozen=True)
class Graph:
    """One graph to be traced.

    Attributes:
        name: stem of its file.
        module: what is traced.
        example: its arguments; sizes of 0 and 1 would be taken for constants.
        inputs, outputs: names, nested arguments in order.
        dynamic: names of dynamic dimensions, in the structure of ``example``.
        within: a context that the tracing needs.
    """

    name: str
    module: nn.Module
    example: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: tuple[Any, ...]
    within: Callable[[], AbstractContextManager[None]] = nullcontext


def require_exportable(backbone_config: Any, title: str, shown: str) -> None:
    """Refuse what has no graphs.

    Raises:
        ModelError: another family, layers with experts, or layers with a sliding window.
    """
    family = backbone_config.model_type
    if family not in EXPORTABLE:
        raise ModelError(
            f"'{shown}' is of the family {title}, and {title} cannot be exported to ONNX yet",
            hint=f"families with graphs: {', '.join(EXPORTABLE)}",
        )
    text = backbone_config.get_text_config()
    if getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None):
        raise ModelError(f"'{shown}' has layers with experts, which cannot be exported to ONNX yet")
    layers = getattr(text, "layer_types", None) or ()
    if set(layers) - {"full_attention"}:
        raise ModelError(
            f"'{shown}' has layers of the kind {sorted(set(layers) - {'full_attention'})[0]}, "
            "and only full attention can be exported to ONNX"
        )


def has_mrope(config: Any) -> bool:
    """Whether positions have three parts (time, height, width)."""
    return bool(config.model_type in MROPE)


def cache_names(layers: int, prefix: str) -> tuple[str, ...]:
    """Names of the cache's tensors, e.g. ``past_key_values.0.key``."""
    return tuple(f"{prefix}.{layer}.{part}" for layer in range(layers) for part in ("key", "value"))


def vision_graph(backbone: Backbone, name: str, grid_name: str) -> Graph:
    """The vision tower with its projector."""
    vision: Any = backbone.config.vision_config
    if backbone.config.model_type in NESTED:
        side = int(backbone.processor.image_processor.max_image_size["longest_edge"])
        tiles, mask = torch.ones(2, 3, 3, side, side), torch.ones(2, 3, side, side, dtype=torch.bool)
        names, dims = ("pixel_values", "pixel_attention_mask"), {0: _BATCH, 1: "num_tiles"}
        module: nn.Module = NestedVision(backbone.base)
        within = partial(_attending, vision)
        return Graph(name, module, (tiles, mask), names, ("image_features",), (dims, dims), within)
    if not has_mrope(backbone.config):
        sides = vision.image_size if isinstance(vision.image_size, list | tuple) else [vision.image_size] * 2
        kind = TileVision if backbone.config.model_type in TILED else LlavaVision
        module, example = kind(backbone.base, backbone.config), (torch.zeros(2, 3, *sides),)
        within = partial(_attending, vision)
        return Graph(
            name, module, example, ("pixel_values",), ("image_features",), ({0: "num_tiles"},), within
        )
    tower = backbone.base.get_submodule("visual")
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    side = vision.spatial_merge_size
    grid = torch.tensor([[1, 2 * side, 3 * side], [1, 3 * side, 2 * side]])
    return Graph(
        name,
        QwenVision(tower),
        (torch.zeros(int(grid.prod(dim=1).sum()), values), grid),
        ("pixel_values", grid_name),
        ("image_features",),
        ({0: "num_patches"}, {0: "num_images"}),
        lambda: segment_attention(tower),
    )


def embedding_graph(backbone: Backbone, name: str, *, merged: bool) -> Graph:
    """Token embeddings; ``merged`` has picture features put in their places inside the graph."""
    ids, stacked = torch.zeros(2, 3, dtype=torch.long), stacked_features(backbone.config)
    dynamic: dict[int, str] = {0: _BATCH, 1: _LENGTH}
    if not merged:
        module: nn.Module = Embeddings(backbone.embeddings, stacked)
        return Graph(name, module, (ids,), ("input_ids",), ("inputs_embeds",), (dynamic,))
    module = MergedEmbeddings(backbone.embeddings, backbone.image_token_id, stacked)
    example = (ids, torch.zeros(2, (1 + stacked) * backbone.hidden_size))
    names = ("input_ids", "image_features")
    return Graph(name, module, example, names, ("inputs_embeds",), (dynamic, {0: "num_features"}))


def decoder_graph(backbone: Backbone, name: str, *, keep: bool) -> Graph:
    """Decoder and head with a cache; ``keep`` adds the input ``num_logits_to_keep``."""
    text: Any = backbone.config.get_text_config()
    heads = int(text.num_key_value_heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    new, past, layers, stacked = 3, 4, backbone.num_layers, stacked_features(backbone.config)
    wide = (1 + stacked) * backbone.hidden_size
    positions = torch.arange(past, past + new).expand(2, new)
    cache = [
        tuple(torch.zeros(2, heads, past, width, dtype=backbone.dtype) for _ in range(2))
        for _ in range(layers)
    ]
    grown = {0: _BATCH, 2: _PAST}
    named: list[tuple[str, Any, Any]] = [
        ("inputs_embeds", torch.zeros(2, new, wide), {0: _BATCH, 1: _LENGTH}),
        ("attention_mask", torch.ones(2, past + new, dtype=torch.long), {0: _BATCH, 1: _TOTAL}),
        ("position_ids", positions.contiguous(), {0: _BATCH, 1: _LENGTH}),
    ]
    if has_mrope(backbone.config):
        named[2] = ("position_ids", positions.expand(3, 2, new).contiguous(), {1: _BATCH, 2: _LENGTH})
    if keep:
        named.append(("num_logits_to_keep", torch.tensor(2), {}))
    return Graph(
        name,
        Decoder(backbone.decoder, backbone.head, keep=keep, stacked=stacked),
        (*(value for _, value, _ in named), *(() if keep else (None,)), cache),
        (*(label for label, _, _ in named), *cache_names(layers, "past_key_values")),
        ("logits", *cache_names(layers, "present")),
        (*(dims for _, _, dims in named), *(() if keep else (None,)), [(grown, grown) for _ in cache]),
        partial(_decoding, backbone.decoder, text),
    )


@contextmanager
def _decoding(decoder: nn.Module, config: Any) -> Iterator[None]:
    with _attending(config), deepstack_beside(decoder):
        yield


@contextmanager
def _attending(config: Any) -> Iterator[None]:
    """The part of a model that goes by ``config`` attends with torch's own product, which exports."""
    before = config._attn_implementation
    config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = before


@torch.no_grad()
def trace(graph: Graph) -> Any:
    """The graph as an ``onnx_ir.Model`` that still refers to the module's own weights.

    What the exporter writes about where a node came from (source lines, with the paths of this machine) is removed.
    """
    with graph.within(), _quiet_exporter():
        program: Any = torch.onnx.export(
            graph.module.eval(),
            graph.example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=graph.dynamic,
            verbose=False,
        )
    model = program.model
    forget_origins(model)
    _name_sizes(model.graph.outputs[0])
    return model


def _name_sizes(output: Any) -> None:
    """The exporter has no name for a size that depends on an input's value."""
    import onnx_ir as ir

    if output.name == "logits":
        output.shape = ir.Shape([_BATCH, "num_logits", output.shape[2]])
    elif str(output.shape[0]).startswith("u"):
        output.shape = ir.Shape(["num_real_tiles", *output.shape[1:]])


def forget_origins(model: Any) -> None:
    """Remove notes on nodes and values: most of a small file, and paths of the machine that made it."""
    model.metadata_props.clear()
    model.doc_string = None
    for function_or_graph in (model.graph, *model.functions.values()):
        function_or_graph.metadata_props.clear()
        for node in function_or_graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns about torchvision, about its own deprecations and about every name shared by two axes."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
