"""Changes an ONNX graph without the onnx package: finds operations, adds others, sorts them."""

from collections.abc import Sequence
from graphlib import TopologicalSorter
from typing import Any

from pocketsam.runtime.backends.subgraph import TYPES

FLOAT, FLOAT16, INT64 = (TYPES[f"tensor({name})"] for name in ("float", "float16", "int64"))
ATTRIBUTE_INT, ATTRIBUTE_INTS = 2, 7
"""ONNX's numbers of attributes' types."""


class UnknownGraphError(Exception):
    """A graph has another form than the one that is looked for."""


class GraphEditor:
    """The nodes and constants of a graph, and operations to add to them.

    Args:
        graph: of a message of ``subgraph.model_class``; changed in place.
    """

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self._nodes = list(graph.node)
        self._makers: dict[str, Any] = {name: node for node in graph.node for name in node.output}
        self._constants: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}

    # what is there

    def find(self, ending: str) -> str:
        """Returns the name of the one tensor whose name ends so."""
        names = (*self._constants, *self._makers)
        found = [name for name in names if name.endswith(ending)]
        if len(found) != 1:
            raise UnknownGraphError(ending)
        return found[0]

    def shape(self, name: str) -> list[int]:
        """Returns the shape of a constant, which may be stored in few bits."""
        if name not in self._constants:
            name = self.back(name, "DequantizeLinear").input[0]
        if name not in self._constants:
            raise UnknownGraphError(name)
        return list(self._constants[name].dims)

    def back(self, name: str, *kinds: str) -> Any:
        """Returns the node from which a tensor comes by a chain of operations, along first inputs."""
        node = None
        for kind in kinds:
            node = self._makers.get(name)
            if node is None or node.op_type != kind:
                raise UnknownGraphError(name)
            name = node.input[0]
        return node

    def users(self, name: str, kind: str, place: int) -> Sequence[Any]:
        """Returns the graph's own nodes of a kind that take a tensor as their input at a place.

        There is at least one.
        """
        nodes = [node for node in self._nodes if node.op_type == kind]
        found = [node for node in nodes if name in node.input[place : place + 1]]
        if not found:
            raise UnknownGraphError(name)
        return found

    # what is added

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: int | Sequence[int]) -> str:
        """Adds an operation, and returns its output's name.

        Args:
            kind: ONNX's name of it.
            inputs: names of tensors.
            output: the name; where there is such a tensor, its users get this one instead.
            attributes: whole numbers, and lists of them.
        """
        name = output or f"added.{len(self.graph.node)}"
        if old := self._makers.get(name):
            old.output[0] = f"{name}.unused"
        node = self.graph.node.add(op_type=kind, input=inputs, output=[name])
        for key, value in attributes.items():
            if isinstance(value, int):
                node.attribute.add(name=key, i=value, type=ATTRIBUTE_INT)
            else:
                node.attribute.add(name=key, ints=value, type=ATTRIBUTE_INTS)
        self._makers[name] = node
        return name

    def rename(self, name: str, new: str) -> None:
        """Gives an added tensor, which nothing uses yet, a new name."""
        self._makers[name].output[0] = new
        self._makers[new] = self._makers.pop(name)

    def ints(self, *values: int) -> str:
        """Returns the name of an int64 constant ``[len(values)]``."""
        name = f"added.ints.{'.'.join(map(str, values))}"
        return self._constant(name, dims=[len(values)], data_type=INT64, int64_data=values)

    def number(self, value: float) -> str:
        """Returns the name of a float32 constant ``[]``."""
        return self._constant(f"added.number.{value!r}", data_type=FLOAT, float_data=[value])

    def _constant(self, name: str, **fields: Any) -> str:
        if name not in self._constants:
            self._constants[name] = self.graph.initializer.add(name=name, **fields)
        return name

    def turned(self, name: str) -> str:
        """``[A, b, c]`` to ``[A, c, b]``."""
        return self.op("Transpose", name, perm=(0, 2, 1))

    def with_axis(self, name: str) -> str:
        """``[A, ...]`` to ``[A, 1, ...]``."""
        return self.op("Unsqueeze", name, self.ints(1))

    def centred(self, name: str, axis: int) -> str:
        """A tensor less its mean along an axis."""
        return self.op("Sub", name, self.op("ReduceMean", name, self.ints(axis)))

    def total(self, name: str) -> str:
        """``[A, b, ...]`` to its sums, ``[A, 1, ...]``."""
        return self.op("ReduceSum", name, self.ints(1))

    def sort(self) -> None:
        """Puts the nodes in an order of computation."""
        nodes = list(self.graph.node)
        makers = {name: place for place, node in enumerate(nodes) for name in node.output}
        before = {
            place: [makers[name] for name in node.input if name in makers]
            for place, node in enumerate(nodes)
        }
        order = [nodes[place] for place in TopologicalSorter(before).static_order()]
        copies = [type(node).FromString(node.SerializeToString()) for node in order]
        del self.graph.node[:]
        self.graph.node.extend(copies)
