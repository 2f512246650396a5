"""Weights in eight or four bits, by onnxruntime's own quantizers.

``int8``: each column of a matrix has its own scale, activations are quantized as they come (dynamic). ``int4``: blocks
of 32 values share a scale, symmetric, activations stay as they are. Embeddings are quantized too, as rows (int8) or
blocks (int4). Convolutions (the patch embedding) stay in floating point.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

Bits = Literal["int8", "int4"]

#: Values that share one scale in ``int4``.
BLOCK = 32


def quantize(model: Any, bits: Bits, scratch: Path) -> Any:
    """A quantized copy of a graph.

    Args:
        model: an ``onnx_ir.Model`` in fp32; it is left as it is, but for :func:`gemm_to_matmul`.
        scratch: a folder with room for the weights; what is put there is removed.
    """
    import onnx_ir as ir

    gemm_to_matmul(model)
    with tempfile.TemporaryDirectory(dir=scratch) as folder, _quiet():
        # by way of files: the quantizers read those of more than 2 GB, and no message in memory
        source, target = Path(folder) / "whole.onnx", Path(folder) / "quantized.onnx"
        ir.save(model, source, external_data=f"{source.name}_data")
        _QUANTIZERS[bits](source, target)
        quantized = ir.load(target)
        ir.external_data.load_to_model(quantized)  # its file goes with the folder
    return quantized


def _int8(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul", "Gather"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
    )


def _int4(source: Path, target: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    config = DefaultWeightOnlyQuantConfig(
        block_size=BLOCK,
        is_symmetric=True,
        op_types_to_quantize=("MatMul", "Gather"),
        quant_axes=(("MatMul", 0), ("Gather", 1)),
    )
    quantizer = MatMulNBitsQuantizer(str(source), algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), True)


_QUANTIZERS = {"int8": _int8, "int4": _int4}


def gemm_to_matmul(model: Any) -> None:
    """Write every ``Gemm`` with a constant weight as a product and a sum, in place.

    The quantizers pass a Gemm by (int4), or turn its weight around and leave a stale shape behind (int8).
    """
    import onnx_ir as ir

    for node in list(model.graph):
        if node.op_type != "Gemm" or node.inputs[1].const_value is None:
            continue
        attributes = {name: node.attributes[name].value for name in node.attributes}
        if (
            attributes.get("transA", 0)
            or attributes.get("alpha", 1.0) != 1
            or attributes.get("beta", 1.0) != 1
        ):
            continue
        weight = node.inputs[1]
        if attributes.get("transB", 0):
            turned = weight.const_value.numpy().T.copy()
            name = f"{weight.name}.T"
            if name not in model.graph.initializers:
                tensor = ir.tensor(turned, name=name)
                model.graph.initializers[name] = ir.Value(
                    name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
                )
            weight = model.graph.initializers[name]
        product = ir.node("MatMul", [node.inputs[0], weight])
        product.outputs[0].name = f"{node.outputs[0].name}.product"
        model.graph.insert_before(node, product)
        last = product
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            last = ir.node("Add", [product.outputs[0], node.inputs[2]])
            model.graph.insert_before(node, last)
        result, name = node.outputs[0], node.outputs[0].name
        last.outputs[0].shape, last.outputs[0].type = result.shape, result.type
        ir.convenience.replace_all_uses_with(result, last.outputs[0], replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        last.outputs[0].name = name
    used = {value for node in model.graph for value in node.inputs if value is not None}
    for name, value in list(model.graph.initializers.items()):
        if value not in used:
            model.graph.initializers.pop(name)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantizers speak to the root logger, and divide by the scale of blocks that are all zero."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        logging.disable(before)
