"""ONNX files for engines that stop at an older operator set: newer operators spelt in older ones."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pocketsam.errors import ConversionError
from pocketsam.export.options import OPSETS

OPSET = OPSETS[-1]
"""The operator set of our files, unless another is asked for."""
IR_VERSIONS = {15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9}
"""The file format that came with an operator set."""

Spell = Callable[["_Writer", onnx.NodeProto], None]


class _Writer:
    """Writes nodes and constants in the place of one node."""

    def __init__(self, graph: onnx.GraphProto, prefix: str) -> None:
        self.graph, self.prefix, self.nodes = graph, prefix, []  # type: ignore[var-annotated]

    def const(self, value: float) -> str:
        """Adds a float32 constant; returns its name."""
        name = f"{self.prefix}_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    def node(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Adds a node; returns the name of its output."""
        name = output or f"{self.prefix}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name


def lower_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Returns a model in an older operator set; the same one where that is its own.

    Args:
        model: of ``OPSET``, as the exporter writes them.
        version: one of ``OPSETS``.

    Raises:
        ConversionError: an operator that the older set has not, and for which there is no spelling.
    """
    if version == model.opset_import[0].version:
        return model
    if model.opset_import[0].version > OPSET:
        raise ConversionError(f"weights in 4 bits take opset 21, not {version}")
    new = onnx.ModelProto()
    new.CopyFrom(model)
    spellings = {op: spell for op, (first, spell) in SPELLINGS.items() if version < first}
    nodes: list[onnx.NodeProto] = []
    for node in new.graph.node:
        spell = spellings.get(node.op_type)
        if spell is None:
            nodes.append(node)
            continue
        writer = _Writer(new.graph, f"{node.op_type.lower()}_{len(nodes)}")
        spell(writer, node)
        nodes += writer.nodes
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del new.graph.node[:]
    new.graph.node.extend(kept)
    new.opset_import[0].version = version
    new.ir_version = IR_VERSIONS[version]
    try:
        onnx.checker.check_model(new, full_check=True)
    except Exception as error:  # onnx raises classes of its own
        raise ConversionError(f"opset {version}: {str(error).splitlines()[0]}") from None
    return new


def _gelu(writer: _Writer, node: onnx.NodeProto) -> None:
    """Writes ``x / 2 * (1 + erf(x / sqrt(2)))``."""
    (x,), node_of = node.input, writer.node
    erf = node_of("Erf", node_of("Mul", x, writer.const(0.5**0.5)))
    half = node_of("Mul", x, writer.const(0.5))
    node_of("Mul", half, node_of("Add", erf, writer.const(1.0)), output=node.output[0])


def _layer_norm(writer: _Writer, node: onnx.NodeProto) -> None:
    """Writes the mean and the deviation over the last axis."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("axis", -1) != -1:
        raise ConversionError(f"{node.name}: LayerNormalization over other axes than the last")
    (x, weight, *bias), node_of = node.input, writer.node
    mean = partial(node_of, "ReduceMean", keepdims=1, axes=[-1])
    centred = node_of("Sub", x, mean(x))
    variance = mean(node_of("Mul", centred, centred))
    shifted = node_of("Add", variance, writer.const(attributes.get("epsilon", 1e-5)))
    scaled = node_of("Mul", node_of("Div", centred, node_of("Sqrt", shifted)), weight)
    node_of("Add" if bias else "Identity", scaled, *bias, output=node.output[0])


def _reduce(writer: _Writer, node: onnx.NodeProto) -> None:
    """Writes the axes as an attribute, not as an input."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    attributes.pop("noop_with_empty_axes", None)
    if len(node.input) > 1:
        constants = {tensor.name: tensor for tensor in writer.graph.initializer}
        if node.input[1] not in constants:
            raise ConversionError(f"{node.name}: {node.op_type} with axes that are computed")
        attributes["axes"] = numpy_helper.to_array(constants[node.input[1]]).tolist()
    writer.node(node.op_type, node.input[0], output=node.output[0], **attributes)


def _split(writer: _Writer, node: onnx.NodeProto) -> None:
    """Leaves out the number of equal parts, which is the number of outputs."""
    kept = onnx.NodeProto()
    kept.CopyFrom(node)
    del kept.attribute[:]
    kept.attribute.extend(a for a in node.attribute if a.name != "num_outputs")
    writer.nodes.append(kept)


SPELLINGS: dict[str, tuple[int, Spell]] = {
    "Gelu": (20, _gelu),
    "LayerNormalization": (17, _layer_norm),
    "ReduceMax": (18, _reduce),
    "ReduceMean": (18, _reduce),
    "Split": (18, _split),
}
"""Operator to the first operator set in which it needs no other spelling, and that spelling."""
