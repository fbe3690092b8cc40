"""A decoder's graph cut in parts, so that clicks share what they can, and those whose scores promise
nothing cost no masks.

Some of it depends on the image alone. The scores of a click are known half-way: what follows only makes
its masks. An ONNX file is a protobuf, which onnxruntime brings a reader for; the few messages that
matter here are described below, and whatever else a file holds passes through as it is.
"""

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

import onnxruntime as ort
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

TYPES = {"tensor(float)": 1, "tensor(int64)": 7, "tensor(bool)": 9, "tensor(float16)": 10}
"""onnxruntime's names of ONNX's numbers."""

# message: {field: (number, type)}; a list is a repeated field. From onnx.proto.
SCHEMA: dict[str, dict[str, tuple[int, Any]]] = {
    "Model": {"graph": (7, "Graph")},
    "Graph": {
        "node": (1, ["Node"]),
        "initializer": (5, ["Named"]),
        "input": (11, ["Value"]),
        "output": (12, ["Value"]),
        "value_info": (13, ["Value"]),
    },
    "Node": {"input": (1, [str]), "output": (2, [str])},
    "Named": {"name": (8, str)},
    "Value": {"name": (1, str), "type": (2, "Type")},
    "Type": {"tensor": (1, "Tensor")},
    "Tensor": {"elem_type": (1, int), "shape": (2, "Shape")},
    "Shape": {"dim": (1, ["Dim"])},
    "Dim": {"value": (1, int), "name": (2, str)},
}


@cache
def _model_class() -> Any:
    field = descriptor_pb2.FieldDescriptorProto
    kinds = {str: field.TYPE_STRING, int: field.TYPE_INT64}
    file = descriptor_pb2.FileDescriptorProto(name="pocketsam/onnx.proto", package="pocketsam")
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for key, (number, kind) in fields.items():
            repeated = isinstance(kind, list)
            kind = kind[0] if repeated else kind
            entry = message.field.add(name=key, number=number)
            entry.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if isinstance(kind, str):
                entry.type, entry.type_name = field.TYPE_MESSAGE, f".pocketsam.{kind}"
            else:
                entry.type = kinds[kind]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("pocketsam.Model"))


def extract(model: bytes, outputs: Sequence[str], given: Sequence[ort.NodeArg] = ()) -> bytes:
    """The part of a graph that computes ``outputs``, which may be tensors inside it.

    Args:
        model: the whole graph.
        outputs: names.
        given: tensors inside it to start from, as a session that computes them describes them.
    """
    kept = _model_class().FromString(model)
    _keep(kept.graph, outputs, [one.name for one in given])
    for one in given:
        value = kept.graph.input.add(name=one.name)
        value.type.tensor.elem_type = TYPES[one.type]
        for size in one.shape:
            value.type.tensor.shape.dim.add(**{"value" if isinstance(size, int) else "name": size})
    data: bytes = kept.SerializeToString()
    return data


def frontier(model: bytes, inputs: Collection[str]) -> list[str]:
    """The tensors that follow from ``inputs`` alone, and that something else is computed from."""
    graph = _model_class().FromString(model).graph
    known = {*inputs, *(one.name for one in graph.initializer), ""}
    computed: set[str] = set()
    wanted: set[str] = set()
    for node in graph.node:
        if known.issuperset(node.input):
            known.update(node.output)
            computed.update(node.output)
        else:
            wanted.update(computed.intersection(node.input))
    return sorted(wanted)


def _keep(graph: Any, outputs: Sequence[str], given: Sequence[str]) -> None:
    """Leaves of a graph what computes ``outputs``, going back no further than ``given``."""
    needed, inside = set(outputs), set()
    for index in reversed(range(len(graph.node))):  # nodes stand in order of computation
        node = graph.node[index]
        if needed.difference(given).isdisjoint(node.output):
            del graph.node[index]
        else:
            needed.update(node.input)
            inside.update(node.output)
    _filter(graph.initializer, needed)
    _filter(graph.input, needed.difference(inside, given))
    _filter(graph.output, outputs)
    _filter(graph.value_info, inside.difference(outputs))
    for name in set(outputs).difference(one.name for one in graph.output):
        graph.output.add(name=name)


def _filter(entries: Any, names: Collection[str]) -> None:
    for index in reversed(range(len(entries))):
        if entries[index].name not in names:
            del entries[index]
