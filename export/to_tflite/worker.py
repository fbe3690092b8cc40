"""A float TFLite file to a smaller one, in a process of its own.

``python -m pocketsam.export.to_tflite.worker PRECISION HALF FLOAT_FILE OUTPUT SAMPLES``
"""

import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from litert_quantizer import calibrator, qtyping, quantizer, recipe, recipe_manager
from litert_quantizer.utils import qsv_utils
from litert_quantizer.utils import tfl_flatbuffer_utils as flatbuffer

from pocketsam.export.quantization import smallest
from pocketsam.export.to_onnx.bias_tables import factor
from pocketsam.export.to_tflite.program import STATIC_LAYERS
from pocketsam.runtime.backends.litert import SIGNATURE

SMALLEST = 1024
"""Float tensors with fewer elements stay float32: norms and biases, which save nothing."""
SMALLEST_QUANTIZED = {"encoder": smallest.ENCODER, "decoder": smallest.DECODER}
"""Weights with fewer elements stay float32."""
DYNAMIC_QUANTIZED = 25_000
"""Likewise for the encoder in int8-dynamic, which is for speed: projections of 160 x 160 have 8."""
LAYERS = (
    qtyping.TFLOperationName.FULLY_CONNECTED,
    qtyping.TFLOperationName.CONV_2D,
    qtyping.TFLOperationName.DEPTHWISE_CONV_2D,
    qtyping.TFLOperationName.CONV_2D_TRANSPOSE,
)
"""Operations whose weights are quantized. Not products of matrices: one of them holds the frequencies
of the position encoding, a few numbers whose rounding moves every point, whatever the least size."""
FULLY_CONNECTED = qtyping.BuiltinOperator.FULLY_CONNECTED
GELU = qtyping.BuiltinOperator.GELU
GATHER = qtyping.BuiltinOperator.GATHER
FLOAT32, FLOAT16, INT32 = 0, 1, 2
"""Of TFLite's TensorType."""


def main(precision: str, kind: str, source: str, output: str, samples: str) -> None:
    """Writes ``output``."""
    model: Any = flatbuffer.read_model(source)
    share_bias_tables(model)
    if precision == "fp16":
        to_float16(model)
    if precision in ("fp32", "fp16"):
        Path(output).write_bytes(packed(model))
        return
    source = f"{source}.shared"
    Path(source).write_bytes(packed(model))
    found: list[dict[str, Any]] = []
    if precision == "int8":
        found, weights = read_samples(samples)
        rules = static_recipe(source, weights)
    else:
        rules = recipe_for(precision, kind)
    quantization = quantizer.Quantizer(source, rules)
    ranges: Any = None
    if quantization.need_calibration:
        # The quantizer's own default averages: 95 hundredths of what came before, so that of three
        # photographs the first decides nine tenths of every range.
        calibration = calibrator.Calibrator(source, 2, qsv_update_func=qsv_utils.min_max_update)
        manager = recipe_manager.RecipeManager()
        manager.load_quantization_recipe(rules)
        calibration.calibrate({SIGNATURE: found}, manager)
        ranges = calibration.get_model_qsvs()
    quantization.quantize(ranges, serialize_to_path=output, enable_progress_report=False)


def recipe_for(precision: str, kind: str) -> Any:
    """Returns litert-quantizer's rules for ``int8-weights`` or ``int8-dynamic``."""
    whole = {"int8-weights": recipe.weight_only_wi8_afp32, "int8-dynamic": recipe.dynamic_wi8_afp32}
    dynamic = precision == "int8-dynamic" and kind == "encoder"
    (rule,) = whole[precision]()
    least = DYNAMIC_QUANTIZED if dynamic else SMALLEST_QUANTIZED[kind]
    rule["op_config"]["min_weight_elements"] = least
    return [rule | {"operation": operation} for operation in LAYERS]


def static_recipe(source: str, weights: list[Any]) -> Any:
    """The rules for ``int8``: the planned linear layers, and the GELU between two of them, in 8 bits
    throughout, convolutions and the other linear layers with 8-bit weights, the rest in float.

    ``docs/android.md`` has what else was tried. 8-bit matrix products of two activations have no fast
    kernel; LayerNorm's DIV would divide by zero.

    Args:
        source: the float file.
        weights: of the planned layers, ``[outputs, inputs]``.

    Raises:
        ValueError: the file lacks one of them.
    """
    manager = recipe_manager.RecipeManager()
    bits: Any = {"activation_num_bits": 8, "weight_num_bits": 8}
    operations = qtyping.TFLOperationName
    layers, gelus = find_layers(source, {weight.tobytes() for weight in weights})
    if len(layers) != len(weights):
        raise ValueError(f"{len(weights)} linear layers are to have 8 bits, the file has {len(layers)}")
    rules = recipe_for("int8-weights", "encoder")
    for names, operation in ((layers, operations.FULLY_CONNECTED), (gelus, operations.GELU)):
        if names:
            scope = (
                f"^({'|'.join(map(re.escape, names))});?$"  # the quantizer ends names with a semicolon
            )
            manager.add_static_config(regex=scope, operation_name=operation, **bits)
    return [*rules, *manager.get_quantization_recipe()]


def find_layers(source: str, weights: set[bytes]) -> tuple[list[str], list[str]]:
    """Names of the outputs of linear layers with such weights, and of each GELU between two of them."""
    model: Any = flatbuffer.read_model(source)
    layers, between = [], []
    for graph in model.subgraphs:
        written: set[int] = set()
        activated: dict[int, str] = {}
        for op in graph.operators:
            code, result = model.operatorCodes[op.opcodeIndex].builtinCode, int(op.outputs[0])
            name = graph.tensors[result].name.decode()
            if code == GELU and int(op.inputs[0]) in written:
                activated[result] = name
            if code != FULLY_CONNECTED:
                continue
            values = _constant(model, graph.tensors[op.inputs[1]])
            if values is not None and values.tobytes() in weights:
                layers.append(name)
                written.add(result)
                between += [activated[number] for number in [int(op.inputs[0])] if number in activated]
    return layers, between


def read_samples(path: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """Returns what ``convert`` saved: a dict of arrays per sample, and the planned layers' weights."""
    samples: dict[str, dict[str, Any]] = defaultdict(dict)
    with np.load(path) as arrays:
        for key in arrays.files:
            number, name = key.split("/")
            samples[number][name] = arrays[key]
    weights = list(samples.pop(STATIC_LAYERS).values())
    return list(samples.values()), weights


def share_bias_tables(model: Any) -> None:
    """Stores TinyViT's attention biases as they were learnt, in place: exact, and 5 MB less.

    See ``bias_tables``; a GATHER makes each whole before anything else is computed.
    """
    opcode = _add_code(model, GATHER, 1)
    for graph in model.subgraphs:
        gathers, indices = [], {}
        for number, tensor in enumerate(list(graph.tensors)):
            values = _constant(model, tensor)
            factors = None if values is None else factor(values)
            if factors is None:
                continue
            table, index = factors
            if len(index) not in indices:
                name = f"offsets_{len(index)}".encode()
                indices[len(index)] = _add_constant(model, graph, tensor, name, INT32, index)
            stored = _add_constant(model, graph, tensor, tensor.name + b"_table", FLOAT32, table)
            tensor.buffer = 0  # by convention the empty one: now computed
            gather = _operation(graph, opcode, [stored, indices[len(index)]], [number])
            gather.builtinOptionsType = schema.BuiltinOptions.GatherOptions
            gather.builtinOptions = schema.GatherOptionsT()
            gather.builtinOptions.axis = 1
            gathers.append(gather)
        graph.operators = gathers + list(graph.operators)
    _drop_unused_buffers(model)


def to_float16(model: Any) -> None:
    """Stores weights as float16 and computes in float32, which every LiteRT kernel can; in place.

    Each constant gets a DEQUANTIZE in front; XNNPACK folds those when it loads the file.
    """
    opcode = _add_code(model, qtyping.BuiltinOperator.DEQUANTIZE, 3)  # the first that takes float16
    for graph in model.subgraphs:
        casts = []
        outside = {*map(int, graph.inputs), *map(int, graph.outputs)}
        for number, tensor in enumerate(list(graph.tensors)):
            values = _constant(model, tensor)
            if values is None or number in outside:
                continue
            name, narrow = tensor.name + b"_float16", values.astype(np.float16)
            stored = _add_constant(model, graph, tensor, name, FLOAT16, narrow)
            tensor.buffer = 0  # now computed
            casts.append(_operation(graph, opcode, [stored], [number]))
        graph.operators = casts + list(graph.operators)
    _drop_unused_buffers(model)


def packed(model: Any) -> bytes:
    """A model as the bytes of a file."""
    builder = flatbuffers.Builder(2**20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _constant(model: Any, tensor: Any) -> Any:
    """A large float32 constant's values, else None."""
    data = model.buffers[tensor.buffer].data
    if tensor.type != 0 or data is None or len(data) < 4 * SMALLEST:
        return None
    values = np.frombuffer(np.asarray(data, np.uint8).tobytes(), np.float32)
    return values.reshape(tuple(tensor.shape))


def _add_constant(model: Any, graph: Any, like: Any, name: bytes, kind: int, values: Any) -> int:
    """The number of a new tensor with these values; what is not said here is as in ``like``."""
    tensor = type(like)()
    tensor.__dict__.update(like.__dict__)
    tensor.name, tensor.type, tensor.shape = name, kind, np.array(values.shape, np.int32)
    tensor.shapeSignature, tensor.buffer = None, len(model.buffers)
    buffer = type(model.buffers[0])()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _operation(graph: Any, opcode: int, inputs: list[int], outputs: list[int]) -> Any:
    operation = type(graph.operators[0])()
    operation.opcodeIndex, operation.inputs, operation.outputs = opcode, inputs, outputs
    return operation


def _add_code(model: Any, builtin: int, version: int) -> int:
    code = type(model.operatorCodes[0])()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    code.version = version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _drop_unused_buffers(model: Any) -> None:
    """Empties what no tensor refers to any more; indices stay as they are."""
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata or []}
    for number, buffer in enumerate(model.buffers):
        if number not in used:
            buffer.data = None


if __name__ == "__main__":
    main(*sys.argv[1:])
