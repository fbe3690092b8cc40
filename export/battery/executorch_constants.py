"""Lists the constants of a ``.pte``; runs in ExecuTorch's environment.

``python -m … FILE LIST``: ``LIST`` becomes an ``.npz`` with the constants in the order of the program:
those of each delegate, then those outside of the delegates. ``engine_weights`` reads it.
"""

import json
import math
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from executorch.backends.xnnpack.serialization import xnnpack_graph_serialize as xnnpack
from executorch.exir._serialize._flatbuffer import _flatc_decompile
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.exir.schema import Tensor
from numpy.typing import NDArray

XNNPACK_TYPES = {
    "fp32": np.float32,
    "fp16": np.float16,
    "qint8": np.int8,
    "qcint8": np.int8,
    "qint32": np.int32,
    "qcint32": np.int32,
}
"""Of ``XNNDatatype``, without ``xnn_datatype_``."""
OUTSIDE_TYPES = {"FLOAT": np.float32, "HALF": np.float16, "CHAR": np.int8, "INT": np.int32}
"""Of ``ScalarType``; others, as int64, are no weights."""


def read_graph(delegate: bytes) -> dict[str, Any]:
    """Returns the graph of a delegate to XNNPACK, as its schema has it."""
    header = xnnpack.XNNHeader.from_bytes(delegate[: xnnpack.XNNHeader.EXPECTED_LENGTH])
    start = header.flatbuffer_offset
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "schema.fbs").write_bytes(xnnpack._get_schema_bytes())
        (folder / "graph.bin").write_bytes(delegate[start : start + header.flatbuffer_size])
        _flatc_decompile(name, str(folder / "schema.fbs"), str(folder / "graph.bin"), ["--raw-binary"])
        text = re.sub(r": (-?)inf\b", r": \1Infinity", (folder / "graph.json").read_text())
    graph: dict[str, Any] = json.loads(text)  # flatc writes inf
    return graph


def list_constants(file: Any) -> Iterator[NDArray[Any]]:
    """Yields the constants of a parsed ``.pte``."""
    program, named = file.program, file.named_data
    (plan,) = program.execution_plan
    for delegate in plan.delegates:
        graph = read_graph(bytes(program.backend_delegate_data[delegate.processed.index].data))
        for value in graph["xvalues"]:
            tensor = value["xvalue_union"].get("tensor_value", value["xvalue_union"])
            if tensor["constant_buffer_idx"]:
                key = graph["constant_data"][tensor["constant_buffer_idx"]]["named_key"]
                data = bytes(named.buffers[named.pte_data[key].buffer_index])
                name = tensor["datatype"].removeprefix("xnn_datatype_")
                yield np.frombuffer(data, XNNPACK_TYPES[name]).reshape(tensor["dims"])
    for value in plan.values:
        tensor = value.val
        if isinstance(tensor, Tensor) and tensor.data_buffer_idx:
            kind = OUTSIDE_TYPES.get(tensor.scalar_type.name)
            data = bytes(program.constant_buffer[tensor.data_buffer_idx].storage)
            shape = [tensor.sizes[axis] for axis in tensor.dim_order]
            if kind is not None and data:  # with padding
                yield np.frombuffer(data, kind, math.prod(shape)).reshape(shape)


def main(file: str, output: str) -> None:
    """Writes the list."""
    constants = list_constants(deserialize_pte_binary(Path(file).read_bytes()))
    np.savez(output, **{str(number): array for number, array in enumerate(constants)})  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
