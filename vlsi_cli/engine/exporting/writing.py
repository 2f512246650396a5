"""From a model to a folder: trace three graphs, then quantize, share and write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.exporting import graphs
from vlsi_cli.engine.exporting.layouts import Layout, write_settings
from vlsi_cli.engine.exporting.quantizing import quantize
from vlsi_cli.engine.exporting.saving import LARGEST_FILE, embedding_name, save_graph, share_head
from vlsi_cli.events import Events, Note, ignore


@contextmanager
def half_precision(backbone: Backbone) -> Iterator[None]:
    """The model in fp16 inside the block. Traced graphs refer to its weights: write them in here too."""
    weights = {name: parameter.data for name, parameter in backbone.model.named_parameters()}
    try:
        for parameter in backbone.model.parameters():
            # not model.half(): that would round the rotary frequencies, which are buffers and stay fp32
            parameter.data = parameter.data.half()
        yield
    finally:
        for name, parameter in backbone.model.named_parameters():
            parameter.data = weights[name]


def trace_all(backbone: Backbone, layout: Layout, *, events: Events = ignore) -> dict[str, Any]:
    """The graphs of a layout by the stem of their file, as ``onnx_ir`` models."""
    traced = {}
    for graph in (
        graphs.vision_graph(backbone, layout.vision, layout.grid),
        graphs.embedding_graph(backbone, layout.embedding, merged=layout.merged),
        graphs.decoder_graph(backbone, layout.decoder, keep=layout.keep),
    ):
        events(Note(f"tracing {graph.name.rpartition('/')[2]}"))
        traced[graph.name] = graphs.trace(graph)
    return traced


def write_export(
    traced: Mapping[str, Any],
    backbone: Backbone,
    folder: Path,
    layout: Layout,
    precision: str,
    *,
    separate_head: bool = False,
    largest_file: int | None = None,
) -> bool:
    """Write graphs and settings into an existing folder.

    A tied head is written once: the embedding matrix goes to its graph's data file, and the decoder reads it there.
    Quantized, the two differ (rows for looking up, columns for the product), so each graph holds its own.

    Args:
        traced: from :func:`trace_all`, in fp32 where ``precision`` is quantized. The graphs refer to the written
            files afterwards.
        separate_head: write a tied head into the decoder too, for runtimes that can read only a graph's own file.
        largest_file: bytes of weights inside one graph file; None for what protobuf allows.

    Returns:
        Whether the head is shared.
    """
    limit = LARGEST_FILE if largest_file is None else largest_file
    vision, embedding, decoder = (traced[stem] for stem in (layout.vision, layout.embedding, layout.decoder))
    quantized = precision in ("int8", "int4")
    if quantized:
        bits: Any = precision
        vision, embedding, decoder = (quantize(model, bits, folder) for model in (vision, embedding, decoder))
    shared = backbone.head_tied and not quantized and not separate_head
    paths = [folder / name for name in layout.files(precision)]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    save_graph(vision, paths[0], largest=limit)
    name = embedding_name(embedding) if shared else None
    matrix = save_graph(embedding, paths[1], largest=limit, apart=name)
    if shared:
        share_head(decoder, matrix)
    save_graph(decoder, paths[2], largest=limit)
    stems = (layout.vision, layout.embedding, layout.decoder)
    data = {
        stem.rpartition("/")[2]: 1
        for stem, path in zip(stems, paths, strict=True)
        if path.with_name(f"{path.name}_data").is_file()
    }
    write_settings(backbone, folder, layout, precision, data)
    return shared
