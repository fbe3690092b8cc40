"""A float TFLite file to a smaller one, in a process of its own.

``python -m pocketsam.export.tflite_worker PRECISION FLOAT_FILE OUTPUT SAMPLES``
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from litert_quantizer import qtyping, quantizer, recipe, recipe_manager
from litert_quantizer.utils import tfl_flatbuffer_utils as flatbuffer

from pocketsam.runtime.litert import SIGNATURE

SMALLEST = 1024
"""Float tensors with fewer elements stay float32: norms and biases, which save nothing."""
SMALLEST_QUANTIZED = 33000
"""Weights with fewer elements stay float32: the stem, depthwise kernels, the decoder's projections of
256 x 128. Quantized they cost the decoder a mask IoU of 0.969 instead of 0.98, for 2 MB."""
STATIC = (
    qtyping.TFLOperationName.CONV_2D,
    qtyping.TFLOperationName.DEPTHWISE_CONV_2D,
    qtyping.TFLOperationName.FULLY_CONNECTED,
    qtyping.TFLOperationName.BATCH_MATMUL,
)
"""What carries the multiplications; the rest stays in float, since a DIV by 8 bits divides by zero."""


def main(precision: str, source: str, output: str, samples: str) -> None:
    """Writes ``output``."""
    if precision == "fp16":
        Path(output).write_bytes(halve(source))
        return
    one = quantizer.Quantizer(source, recipe_for(precision))
    ranges: Any = None
    if one.need_calibration:
        ranges = one.calibrate({SIGNATURE: read_samples(samples)}, num_threads=2)
    one.quantize(ranges, serialize_to_path=output, enable_progress_report=False)


def recipe_for(precision: str) -> Any:
    """litert-quantizer's recipe for a precision of ours."""
    if precision in ("int8-weights", "int8-dynamic"):
        whole = {"int8-weights": recipe.weight_only_wi8_afp32, "int8-dynamic": recipe.dynamic_wi8_afp32}
        rules = whole[precision]()
        for rule in rules:
            rule["op_config"]["min_weight_elements"] = SMALLEST_QUANTIZED
        return rules
    manager = recipe_manager.RecipeManager()
    for name in STATIC:
        manager.add_static_config(
            regex=".*", operation_name=name, activation_num_bits=8, weight_num_bits=8
        )
    return manager.get_quantization_recipe()


def read_samples(path: str) -> list[dict[str, Any]]:
    """The dicts of arrays that ``to_tflite`` saved, one per sample."""
    samples: dict[str, dict[str, Any]] = defaultdict(dict)
    with np.load(path) as arrays:
        for key in arrays.files:
            number, name = key.split("/")
            samples[number][name] = arrays[key]
    return list(samples.values())


def halve(source: str) -> bytes:
    """Stores weights as float16 and computes in float32, which every LiteRT kernel can.

    Each constant gets a DEQUANTIZE in front; XNNPACK folds those when it loads the file.
    """
    model: Any = flatbuffer.read_model(source)
    opcode = len(model.operatorCodes)
    model.operatorCodes.append(_dequantize_code(model))
    for graph in model.subgraphs:
        casts = []
        outside = {*map(int, graph.inputs), *map(int, graph.outputs)}
        replaced: dict[int, int] = {}
        for number, tensor in enumerate(list(graph.tensors)):
            values = _constant(model, tensor)
            if values is None or number in outside:
                continue
            half = type(tensor)()
            half.__dict__.update(tensor.__dict__)
            half.name, half.type = tensor.name + b"_float16", 1  # TensorType.FLOAT16
            half.buffer = len(model.buffers)
            buffer = type(model.buffers[0])()
            buffer.data = np.frombuffer(values.astype(np.float16).tobytes(), np.uint8)
            model.buffers.append(buffer)
            tensor.buffer = 0  # by convention the empty one: now computed
            replaced[number] = len(graph.tensors)
            graph.tensors.append(half)
            cast = type(graph.operators[0])()
            cast.opcodeIndex = opcode
            cast.inputs, cast.outputs = [replaced[number]], [number]
            casts.append(cast)
        graph.operators = casts + list(graph.operators)
    _drop_unused_buffers(model)
    builder = flatbuffers.Builder(2**20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _constant(model: Any, tensor: Any) -> Any:
    """A large float32 constant's values, else None."""
    data = model.buffers[tensor.buffer].data
    if tensor.type != 0 or data is None or len(data) < 4 * SMALLEST:
        return None
    return np.frombuffer(np.asarray(data, np.uint8).tobytes(), np.float32)


def _dequantize_code(model: Any) -> Any:
    code = type(model.operatorCodes[0])()
    code.builtinCode = code.deprecatedBuiltinCode = qtyping.BuiltinOperator.DEQUANTIZE
    code.version = 3  # the first that takes float16
    return code


def _drop_unused_buffers(model: Any) -> None:
    """Empties what no tensor refers to any more; indices stay as they are."""
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata or []}
    for number, buffer in enumerate(model.buffers):
        if number not in used:
            buffer.data = None


if __name__ == "__main__":
    main(*sys.argv[1:])
