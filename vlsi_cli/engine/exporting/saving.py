"""Graphs to files: small ones whole, large ones with their weights beside them, and a tied matrix once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: The most bytes of weights inside one file: protobuf ends at 2 GiB, and the graph itself needs some room.
LARGEST_FILE = 2**31 - 2**27

#: Weights of fewer bytes stay in the graph, where shape inference can read them.
_SMALL = 1024


def save_graph(
    model: Any, path: Path, *, largest: int = LARGEST_FILE, apart: str | None = None
) -> Any | None:
    """Write a graph; with weights of more than ``largest`` bytes in ``<path>_data``.

    Weights that already live in another file of the folder stay there and are referred to.

    Args:
        model: an ``onnx_ir.Model``; it refers to the written file afterwards.
        path: the file, ``.onnx``.
        largest: bytes of weights that may stay inside.
        apart: a weight that goes to the data file whatever the size, so that another graph can refer to it.

    Returns:
        The weight ``apart`` as it lies in the data file, or None.
    """
    import onnx_ir as ir

    held = [v for v in model.graph.initializers.values() if not isinstance(v.const_value, ir.ExternalTensor)]
    outside = [v for v in held if v.name == apart]
    if sum(value.const_value.nbytes for value in held) > largest:
        outside = [value for value in held if value.const_value.nbytes >= _SMALL or value.name == apart]
    if outside:
        tensors = [value.const_value for value in outside]
        data = f"{path.name}_data"
        written = ir.external_data.convert_tensors_to_external(tensors, path.parent, data)
        for value, tensor in zip(outside, written, strict=True):
            value.const_value = tensor
    ir.save(model, path)
    return model.graph.initializers[apart].const_value if apart is not None else None


def embedding_name(model: Any) -> str:
    """Name of the matrix that an embedding graph gathers from."""
    for node in model.graph:
        if (
            node.op_type == "Gather"
            and node.inputs[0].const_value is not None
            and len(node.inputs[0].shape) == 2
        ):
            return str(node.inputs[0].name)
    raise ValueError("the graph gathers from no matrix")


def share_head(decoder: Any, matrix: Any) -> None:
    """Let the decoder's head read the embedding matrix [V, H] from its file, turned around in the graph.

    Args:
        decoder: an ``onnx_ir.Model`` whose output ``logits`` is a product with a weight [H, V].
        matrix: the embedding matrix as an external tensor of the same folder.

    Raises:
        ValueError: the head is not such a product, or not this matrix turned around.
    """
    import numpy as np
    import onnx_ir as ir

    product, weight = head_product(decoder)
    if not np.array_equal(weight.const_value.numpy().T, matrix.numpy()):
        raise ValueError("the head is not the embedding matrix")
    shared = ir.Value(
        name=matrix.name, shape=matrix.shape, type=ir.TensorType(matrix.dtype), const_value=matrix
    )
    decoder.graph.initializers[matrix.name] = shared
    turned = ir.node("Transpose", [shared], attributes={"perm": [1, 0]})
    turned.outputs[0].name = "head_weight"
    decoder.graph.insert_before(product, turned)
    product.replace_input_with(1, turned.outputs[0])
    decoder.graph.initializers.pop(weight.name)


def head_product(decoder: Any) -> tuple[Any, Any]:
    """The product that gives the logits, and its weight [H, V].

    Raises:
        ValueError: the logits are not a product with a weight.
    """
    node = decoder.graph.outputs[0].producer()
    while node is not None and node.op_type == "Cast":
        node = node.inputs[0].producer()
    if node is None or node.op_type != "MatMul" or node.inputs[1].const_value is None:
        raise ValueError("the logits are not a product with a weight")
    return node, node.inputs[1]
