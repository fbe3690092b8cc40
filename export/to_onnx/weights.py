"""Smaller ONNX files: weights in 8 or 4 bits or float16, computed in float as before."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pocketsam.errors import ConversionError
from pocketsam.export.quantization.decisions import FEW_BITS, FLOAT16_MAX, HEADROOM
from pocketsam.export.to_onnx.bias_tables import factor
from pocketsam.export.to_onnx.large import detach, fits, infer_types, open_detached
from pocketsam.runtime import contract as c

SMALLEST = 4096
"""Constants with fewer elements stay float32: norms, biases, depthwise kernels."""
_ON_GRID = 1e-3
"""Of a step: how far a value may be from its code by float32's rounding."""

Arrays = dict[str, NDArray[Any]]


def store_weights(model: onnx.ModelProto, bits: int, smallest: int = SMALLEST) -> onnx.ModelProto:
    """A copy with the weights of convolutions and matrix products in 8 or 4 bits.

    Each becomes a DequantizeLinear, which onnxruntime computes once, when it loads the file. 8 bits
    have a scale for each output. In 4 bits are those whose values lie on such a grid already, with a
    scale for each ``FEW_BITS.block`` inputs of each output of a matrix product (opset 21).
    """
    new = onnx.ModelProto()
    new.CopyFrom(model)
    graph = new.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    users = _users(graph)
    made = []
    for name, tensor in constants.items():
        kind = users.get(name, ("", 0))
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < smallest:
            continue
        if kind not in (("Conv", 1), ("Gemm", 1), ("MatMul", 1)):
            continue
        values = numpy_helper.to_array(tensor)
        node, stored = _stored(name, values, kind[0], bits)
        graph.initializer.remove(tensor)
        graph.initializer.extend(stored)
        made.append(node)
    nodes = [*made, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    if bits == 4:
        new.opset_import[0].version = 21  # the first with 4-bit integers and blocks
        new.ir_version = max(new.ir_version, 10)
    return new


def _users(graph: onnx.GraphProto) -> dict[str, tuple[str, int]]:
    """Constant to (operation, place among its inputs); of constants with one user only."""
    found: dict[str, list[tuple[str, int]]] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            found.setdefault(name, []).append((node.op_type, place))
    return {name: users[0] for name, users in found.items() if len(users) == 1}


def _stored(
    name: str, values: NDArray[np.float32], kind: str, bits: int
) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    axis = 0 if kind == "Conv" else 1
    blocks = _four_bits(values) if bits == 4 and kind != "Conv" else None
    if blocks is not None:
        codes, scale = blocks
        packed = helper.make_tensor(f"{name}_int4", TensorProto.INT4, values.shape, codes.ravel())
        attributes: dict[str, Any] = {"axis": 0, "block_size": FEW_BITS.block}
    else:
        others = tuple(i for i in range(values.ndim) if i != axis)
        scale = np.maximum(np.abs(values).max(axis=others) / 127, np.float32(1e-12)).astype(np.float32)
        wide = scale.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        packed = numpy_helper.from_array(np.rint(values / wide).astype(np.int8), f"{name}_int8")
        attributes = {"axis": axis}
    scales = numpy_helper.from_array(scale, f"{name}_scale")
    node = helper.make_node(
        "DequantizeLinear", [packed.name, scales.name], [name], name=f"{name}_float", **attributes
    )
    return node, [packed, scales]


def _four_bits(
    values: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32]] | None:
    """Returns codes [inputs, outputs] and scales [blocks, outputs] that give exactly these values in 4
    bits; None if there are none."""
    if values.ndim != 2 or values.shape[0] % FEW_BITS.block:
        return None
    blocks = values.reshape(-1, FEW_BITS.block, values.shape[1])
    scale = np.maximum(np.abs(blocks).max(axis=1) / 7, np.float32(1e-12)).astype(np.float32)
    steps = blocks / scale[:, None]
    codes = np.rint(steps)
    if np.abs(steps - codes).max() > _ON_GRID:
        return None
    return codes.astype(np.int8).reshape(values.shape), scale


def share_bias_tables(model: onnx.ModelProto) -> None:
    """Stores TinyViT's attention biases as they were learnt, in place: exact, and 5 MB less.

    A table ``[heads, T, T]`` holds few different rows: it is gathered again, when the file is loaded,
    from one value per head and offset by an index that all blocks of a window size share.
    """
    graph = model.graph
    shared: set[str] = set()
    nodes = []
    for tensor in list(graph.initializer):
        factors = factor(numpy_helper.to_array(tensor)) if len(tensor.dims) == 3 else None
        if tensor.data_type != TensorProto.FLOAT or factors is None:
            continue
        table, index = factors
        name = f"offsets_{len(index)}"
        if name not in shared:
            shared.add(name)
            graph.initializer.append(numpy_helper.from_array(index, name))
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(table, f"{tensor.name}_table"))
        nodes.append(helper.make_node("Gather", [f"{tensor.name}_table", name], [tensor.name], axis=1))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def to_float16(
    model: onnx.ModelProto, samples: Sequence[Arrays]
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A float16 copy with float32 inputs and outputs, for GPUs and ARM; and what was measured of it.

    Operations that read or write values beyond ``FLOAT16_MAX / HEADROOM`` on the samples stay in
    float32, and so do coordinates (float16 has no half pixels beyond 1024) and the upscaling of masks.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    peaks = measure_peaks(model, samples)
    large = {name for name, peak in peaks.items() if peak > FLOAT16_MAX / HEADROOM}
    ends = ("Sin", "Cos", "Shape")
    exact = _reached(model, c.ORIG_IM_SIZE) | _reached(model, c.POINT_COORDS, ends)
    wide = [
        node.name
        for node in model.graph.node
        if node.name not in exact and large & {*node.input, *node.output}
    ]
    half = convert_float_to_float16(
        model if fits(model) else _typed(model),
        keep_io_types=True,
        node_block_list=sorted({*wide, *exact}),
        disable_shape_infer=not fits(model),
    )
    _join_casts(half)
    OnnxModel(half).topological_sort()  # the converter appends its casts
    peak = max(peaks, key=lambda name: peaks[name])
    return half, {
        "largest": float(f"{peaks[peak]:.4g}"),
        "largest_tensor": peak,
        "limit": FLOAT16_MAX,
        "tensors_measured": len(peaks),
        "kept_in_float32": wide,
    }


def _typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy with the types of all tensors, as the converter itself makes of what it can."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.value_info.extend(infer_types(model))
    return copy


def _join_casts(model: onnx.ModelProto) -> None:
    """Takes out the casts to float16 and back that the converter leaves between float32 operations."""
    graph = model.graph
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}

    def to(node: onnx.NodeProto) -> int:
        return int(next(a.i for a in node.attribute if a.name == "to"))

    same = {}
    for name, node in casts.items():
        before = casts.get(node.input[0])
        if before and to(node) == TensorProto.FLOAT and to(before) == TensorProto.FLOAT16:
            same[name] = before.input[0]
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = same.get(name, name)
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    alive = [node for node in graph.node if node.op_type != "Cast" or node.output[0] in used]
    del graph.node[:]
    graph.node.extend(alive)


def measure_peaks(model: onnx.ModelProto, samples: Sequence[Arrays]) -> dict[str, float]:
    """The largest absolute value of every float tensor in a model over the samples."""
    if not samples:
        raise ConversionError("float16 needs photographs to measure its ranges on")
    small, detached = detach(model)
    watched = onnx.ModelProto()
    watched.CopyFrom(small)
    there = {value.name for value in model.graph.output}
    kinds = {value.name: value.type.tensor_type.elem_type for value in infer_types(model)}
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for node in model.graph.node
        for name in node.output
        if name not in there and kinds.get(name) == TensorProto.FLOAT
    )
    call = open_detached(watched, detached, "float16 check")
    peaks: dict[str, float] = defaultdict(float)
    for sample in samples:
        for name, array in call(sample).items():
            peaks[name] = max(peaks[name], float(np.abs(array).max(initial=0)))
    return peaks


def _reached(model: onnx.ModelProto, source: str, last: Sequence[str] = ()) -> set[str]:
    """Names of the nodes that depend on an input, up to and with operations of the kinds ``last``."""
    tensors, nodes = {source}, set()
    for node in model.graph.node:
        if tensors & set(node.input):
            nodes.add(node.name)
            if node.op_type not in last:
                tensors.update(node.output)
    return nodes
