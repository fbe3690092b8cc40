"""Puts ONNX graphs together, and renames, adds and orders their inputs and outputs."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def join(before: onnx.ModelProto, behind: onnx.ModelProto, fed: Mapping[str, str]) -> onnx.ModelProto:
    """Returns two graphs as one.

    Args:
        before: the first; its outputs stay outputs unless they are fed.
        behind: the second; inputs that are not fed stay inputs.
        fed: inputs of ``behind`` to tensors of ``before``.

    Raises:
        ValueError: another name exists in both.
    """
    joined, second = onnx.ModelProto(), onnx.ModelProto()
    joined.CopyFrom(before)
    second.CopyFrom(behind)
    rename(second, fed)
    if twice := (names_of(joined) & names_of(second)) - set(fed.values()):
        raise ValueError(f"both graphs have {', '.join(sorted(twice))}")
    graph, more = joined.graph, second.graph
    graph.node.extend(more.node)
    graph.initializer.extend(more.initializer)
    graph.input.extend(value for value in more.input if value.name not in fed.values())
    outputs = [value for value in graph.output if value.name not in fed.values()] + list(more.output)
    outputs = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in outputs]
    del graph.output[:], graph.value_info[:]
    graph.output.extend(outputs)
    joined.ir_version = max(before.ir_version, behind.ir_version)
    joined.opset_import[0].version = max(m.opset_import[0].version for m in (before, behind))
    joined.producer_name = "pocketsam"
    return joined


def rename(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Renames tensors of a graph, in place."""
    graph = model.graph
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)


def add_constant(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    """Adds an output that is always the same, in place."""
    held = f"{name}_constant"
    model.graph.initializer.append(numpy_helper.from_array(values, held))
    model.graph.node.append(helper.make_node("Identity", [held], [name], name=name))
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape))


def add_unused_input(model: onnx.ModelProto, name: str, shape: Sequence[int]) -> None:
    """Adds an input that nothing depends on, in place: some tools feed more than a decoder needs."""
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))


def ordered(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """Returns a checked graph with its inputs and outputs in order; others are none any more."""
    graph = model.graph
    for values, names in ((graph.input, inputs), (graph.output, outputs)):
        found = {value.name: value.SerializeToString() for value in values}
        del values[:]
        values.extend(onnx.ValueInfoProto.FromString(found[name]) for name in names)
    del graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return model


def names_of(model: onnx.ModelProto) -> set[str]:
    """Returns the names of all tensors of a graph."""
    graph = model.graph
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    return (names | {value.name for value in (*graph.input, *graph.initializer)}) - {""}
