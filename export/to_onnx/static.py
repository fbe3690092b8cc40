"""ONNX in 8 bits with ranges that are measured before: a linear layer's input goes through
QuantizeLinear and DequantizeLinear, its weight through DequantizeLinear, and by the standard the
product is in float.

Compilers for NPUs, OpenVINO and onnxruntime replace such a group by a product of integers. The layers
and their ranges come from ``quantization``. Weights use 7 of their 8 bits, as in ``int8``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pocketsam.errors import ConversionError
from pocketsam.export.quantization.plan import Plan
from pocketsam.export.quantization.simulation import Span
from pocketsam.export.to_onnx.int8 import LARGEST, Layer, linear_layers


def quantize_static(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """Returns a copy of an encoder with a plan's layers in 8 bits.

    Args:
        model: the float32 encoder; its weights are rounded to the nearest of their grid.
        plan: layers and their ranges.

    Raises:
        ConversionError: the graph lacks a layer of the plan.
    """
    new = onnx.ModelProto()
    new.CopyFrom(model)
    graph = new.graph
    layers = {layer.output: layer for layer in linear_layers(new)}
    missing = set(plan.spans) - {layer.name for layer in layers.values()}
    if missing:
        raise ConversionError(f"the graph has no linear layer {min(missing)}")
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        layer = layers.get(node.output[0])
        if layer is None or layer.name not in plan.spans:
            nodes.append(node)
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        nodes += _static_layer(graph, node, layer, plan.spans[layer.name].input, weight)
        graph.initializer.remove(constants[node.input[1]])
    del graph.node[:]
    graph.node.extend(nodes)
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"
    return new


def _static_layer(
    graph: onnx.GraphProto, node: onnx.NodeProto, layer: Layer, span: Span, weight: NDArray[np.float32]
) -> Sequence[onnx.NodeProto]:
    """Returns the nodes that replace a linear layer; adds its constants to the graph."""
    base = layer.output
    scale, zero = span.grid()
    steps = np.maximum(np.abs(weight).max(axis=0) / LARGEST, np.float32(1e-12)).astype(np.float32)
    constants: dict[str, NDArray[Any]] = {
        f"{base}_input_scale": np.array(scale, np.float32),
        f"{base}_input_zero": np.array(zero, np.uint8),
        f"{base}_weight_int8": np.rint(weight / steps).astype(np.int8),
        f"{base}_weight_scale": steps,
        f"{base}_weight_zero": np.zeros(len(steps), np.int8),
    }
    graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
    input_grid, weight_grid = list(constants)[:2], list(constants)[3:]
    return (
        helper.make_node("QuantizeLinear", [node.input[0], *input_grid], [f"{base}_codes"]),
        helper.make_node("DequantizeLinear", [f"{base}_codes", *input_grid], [f"{base}_input"]),
        helper.make_node(
            "DequantizeLinear", [f"{base}_weight_int8", *weight_grid], [f"{base}_weight"], axis=1
        ),
        helper.make_node("MatMul", [f"{base}_input", f"{base}_weight"], [f"{base}_product"]),
        helper.make_node("Add", [f"{base}_product", node.input[2]], [base]),
    )
