"""Subgraphs of an ONNX file, for ``SplitDecoder``.

An ONNX file is a protobuf, and onnxruntime brings a reader of protobufs. The few messages that matter
here are described below; whatever else a file holds passes through unchanged.
"""

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

import onnxruntime as ort
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

TYPES = {"tensor(float)": 1, "tensor(int64)": 7, "tensor(bool)": 9, "tensor(float16)": 10}
"""ONNX's numbers of element types, by onnxruntime's names."""

# message: {field: (number, type)}, from onnx.proto; the type of a repeated field is in a list
SCHEMA: dict[str, dict[str, tuple[int, Any]]] = {
    "Model": {"graph": (7, "Graph"), "opset_import": (8, ["Opset"])},
    "Opset": {"domain": (1, str), "version": (2, int)},
    "Graph": {
        "node": (1, ["Node"]),
        "initializer": (5, ["Constant"]),
        "input": (11, ["Value"]),
        "output": (12, ["Value"]),
        "value_info": (13, ["Value"]),
    },
    "Node": {
        "input": (1, [str]),
        "output": (2, [str]),
        "op_type": (4, str),
        "attribute": (5, ["Attribute"]),
    },
    "Attribute": {
        "name": (1, str),
        "f": (2, float),
        "i": (3, int),
        "ints": (8, [int]),
        "type": (20, int),
    },
    "Constant": {
        "dims": (1, [int]),
        "data_type": (2, int),
        "float_data": (4, [float]),
        "int64_data": (7, [int]),
        "name": (8, str),
    },
    "Value": {"name": (1, str), "type": (2, "Type")},
    "Type": {"tensor": (1, "Tensor")},
    "Tensor": {"elem_type": (1, int), "shape": (2, "Shape")},
    "Shape": {"dim": (1, ["Dim"])},
    "Dim": {"value": (1, int), "name": (2, str)},
}


@cache
def model_class() -> Any:
    """Returns the class of messages that are whole files."""
    field = descriptor_pb2.FieldDescriptorProto
    scalars = {str: field.TYPE_STRING, int: field.TYPE_INT64, float: field.TYPE_FLOAT}
    file = descriptor_pb2.FileDescriptorProto(name="pocketsam/onnx.proto", package="pocketsam")
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for key, (number, declared) in fields.items():
            repeated = isinstance(declared, list)
            scalar_or_message = declared[0] if repeated else declared
            entry = message.field.add(name=key, number=number)
            entry.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if isinstance(scalar_or_message, str):
                entry.type = field.TYPE_MESSAGE
                entry.type_name = f".pocketsam.{scalar_or_message}"
            else:
                entry.type = scalars[scalar_or_message]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("pocketsam.Model"))


def extract(model: bytes, outputs: Sequence[str], start: Sequence[ort.NodeArg] = ()) -> bytes:
    """Returns the subgraph that computes some tensors, as an ONNX file.

    Args:
        model: the bytes of an ONNX file.
        outputs: names of the tensors.
        start: tensors inside the graph that become the subgraph's inputs, if it needs them; a session
            describes them.
    """
    kept = model_class().FromString(model)
    needed = _keep(kept.graph, outputs, [tensor.name for tensor in start])
    for tensor in start:
        if tensor.name not in needed:
            continue
        value = kept.graph.input.add(name=tensor.name)
        value.type.tensor.elem_type = TYPES[tensor.type]
        for size in tensor.shape:
            value.type.tensor.shape.dim.add(**{"value" if isinstance(size, int) else "name": size})
    data: bytes = kept.SerializeToString()
    return data


def frontier(model: bytes, inputs: Collection[str]) -> list[str]:
    """Returns names of the last tensors that can be computed from some inputs alone, less constants.

    Args:
        model: the bytes of an ONNX file.
        inputs: names of inputs.
    """
    graph = model_class().FromString(model).graph
    constants = {*(tensor.name for tensor in graph.initializer), ""}
    known = {*inputs, *constants}
    computed: set[str] = set()
    wanted: set[str] = set()
    for node in graph.node:
        if constants.issuperset(node.input):
            constants.update(node.output)
            known.update(node.output)
        elif known.issuperset(node.input):
            known.update(node.output)
            computed.update(node.output)
        else:
            wanted.update(computed.intersection(node.input))
    return sorted(wanted)


def _keep(graph: Any, outputs: Sequence[str], start: Sequence[str]) -> set[str]:
    """Removes from a graph all that is not needed to compute ``outputs`` from ``start``.

    Returns the names of the tensors that are needed.
    """
    needed, inside = set(outputs), set()
    for index in reversed(range(len(graph.node))):  # nodes stand in order of computation
        node = graph.node[index]
        if needed.difference(start).isdisjoint(node.output):
            del graph.node[index]
        else:
            needed.update(node.input)
            inside.update(node.output)
    _filter(graph.initializer, needed)
    _filter(graph.input, needed.difference(inside, start))
    _filter(graph.output, outputs)
    _filter(graph.value_info, inside.difference(outputs))
    for name in set(outputs).difference(tensor.name for tensor in graph.output):
        graph.output.add(name=name)
    return needed


def _filter(entries: Any, names: Collection[str]) -> None:
    for index in reversed(range(len(entries))):
        if entries[index].name not in names:
            del entries[index]
