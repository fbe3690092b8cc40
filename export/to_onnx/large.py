"""Models beyond protobuf's 2 GiB, such as SAM ViT-H in float32, on their way to smaller weights.

Such a model fits in memory, but not into the one message of bytes that onnxruntime, onnxsim and shape
inference take. Detached, its large weights are inputs of the graph, and are fed with the others.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pocketsam.runtime.backends.ort import open_session

Arrays = dict[str, NDArray[Any]]

MAX_BYTES = 2**31 - 2**24
"""Of the weights in a file; the graph takes the rest of the 2 GiB that a protobuf may have."""
LARGE = 2**20
"""Weights of fewer bytes stay in a detached graph, and so does what is no factor of a product: there is
something to compute in advance."""


def count_bytes(model: onnx.ModelProto) -> int:
    """Returns the size of a model's weights."""
    return sum(map(_size, model.graph.initializer))


def fits(model: onnx.ModelProto) -> bool:
    """Returns whether a model can be serialised."""
    return count_bytes(model) <= MAX_BYTES


def _size(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def detach(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto]]:
    """Returns a model that can be serialised, and the weights that it takes as inputs instead.

    Returns:
        The model itself and no weights, if they fit. Nothing is copied but the graph.
    """
    if fits(model):
        return model, {}
    factors = {node.input[1] for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")}
    weights = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.name in factors and _size(tensor) >= LARGE
    }
    small = onnx.ModelProto(ir_version=model.ir_version)
    small.opset_import.extend(model.opset_import)
    graph = small.graph
    graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(model.graph, field))
    graph.initializer.extend(t for t in model.graph.initializer if t.name not in weights)
    graph.input.extend(
        helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
        for name, tensor in weights.items()
    )
    return small, weights


def attach(model: onnx.ModelProto, weights: Mapping[str, onnx.TensorProto]) -> onnx.ModelProto:
    """Puts detached weights back into a model, in place; returns it."""
    inputs = list(model.graph.input)
    del model.graph.input[:]
    model.graph.input.extend(value for value in inputs if value.name not in weights)
    model.graph.initializer.extend(weights[value.name] for value in inputs if value.name in weights)
    return model


def open_model(model: onnx.ModelProto, name: str) -> Callable[[Arrays], Arrays]:
    """Returns a model of any size as a function: arrays by name in, outputs by name out.

    Args:
        model: the model; what it does not take is ignored in its inputs.
        name: used in error messages.
    """
    return open_detached(*detach(model), name)


def open_detached(
    model: onnx.ModelProto, weights: Mapping[str, onnx.TensorProto], name: str
) -> Callable[[Arrays], Arrays]:
    """Returns what ``detach`` gave as a function, like ``open_model``."""
    session = open_session(model.SerializeToString(), name)
    fixed = {key: numpy_helper.to_array(tensor) for key, tensor in weights.items()}
    names = [output.name for output in session.get_outputs()]
    inputs = [entry.name for entry in session.get_inputs()]

    def call(feeds: Arrays) -> Arrays:
        used = {key: fixed[key] if key in fixed else feeds[key] for key in inputs}
        return dict(zip(names, session.run(None, used), strict=True))

    return call


def infer_types(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Returns types and shapes of the tensors inside a model of any size."""
    return list(onnx.shape_inference.infer_shapes(detach(model)[0]).graph.value_info)
