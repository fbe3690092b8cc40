"""A float TFLite file to a smaller one, in a process of its own.

``python -m pocketsam.export.tflite_worker PRECISION HALF FLOAT_FILE OUTPUT SAMPLES``
"""

import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from litert_quantizer import calibrator, qtyping, quantizer, recipe, recipe_manager
from litert_quantizer.utils import qsv_utils
from litert_quantizer.utils import tfl_flatbuffer_utils as flatbuffer

from pocketsam.runtime.litert import SIGNATURE

SMALLEST = 1024
"""Float tensors with fewer elements stay float32: norms and biases, which save nothing."""
SMALLEST_QUANTIZED = {"encoder": 33_000, "decoder": 70_000}
"""Weights with fewer elements stay float32: the encoder's stem and depthwise kernels, the decoder's
projections of 256 x 256 and smaller. With seeded weights those cost a worst mask IoU of 0.968 instead
of 0.976, for 4 MB."""
FULLY_CONNECTED = qtyping.BuiltinOperator.FULLY_CONNECTED
GELU = qtyping.BuiltinOperator.GELU


def main(precision: str, half: str, source: str, output: str, samples: str) -> None:
    """Writes ``output``."""
    if precision == "fp16":
        Path(output).write_bytes(halve(source))
        return
    rules = static_recipe(source) if precision == "int8" else recipe_for(precision, half)
    one = quantizer.Quantizer(source, rules)
    ranges: Any = None
    if one.need_calibration:
        # The quantizer's own default averages: 95 hundredths of what came before, so that of three
        # photographs the first decides nine tenths of every range.
        calibration = calibrator.Calibrator(source, 2, qsv_update_func=qsv_utils.min_max_update)
        manager = recipe_manager.RecipeManager()
        manager.load_quantization_recipe(rules)
        calibration.calibrate({SIGNATURE: read_samples(samples)}, manager)
        ranges = calibration.get_model_qsvs()
    one.quantize(ranges, serialize_to_path=output, enable_progress_report=False)


def recipe_for(precision: str, half: str) -> Any:
    """litert-quantizer's rules for ``int8-weights`` or ``int8-dynamic``."""
    whole = {"int8-weights": recipe.weight_only_wi8_afp32, "int8-dynamic": recipe.dynamic_wi8_afp32}
    rules = whole[precision]()
    for rule in rules:
        rule["op_config"]["min_weight_elements"] = SMALLEST_QUANTIZED[half]
    return rules


def static_recipe(source: str) -> Any:
    """The rules for ``int8``: linear layers and the GELU between two of them in 8 bits throughout,
    convolutions with 8-bit weights, the rest in float.

    ``docs/tflite.md`` has what else was tried. The convolutions of the first stage have activations
    with a few channels far wider than the others, which one range for all does not bear; 8-bit matrix
    products of two activations have no fast kernel; LayerNorm's DIV would divide by zero.
    """
    manager = recipe_manager.RecipeManager()
    bits: Any = {"activation_num_bits": 8, "weight_num_bits": 8}
    operations = qtyping.TFLOperationName
    manager.add_static_config(regex=".*", operation_name=operations.FULLY_CONNECTED, **bits)
    between = "|".join(re.escape(name) for name in gelus_of_linear_layers(source))
    if between:
        scope = f"^({between});?$"  # the quantizer ends each name with a semicolon
        manager.add_static_config(regex=scope, operation_name=operations.GELU, **bits)
    rules = [
        rule | {"operation": operation}
        for rule in recipe_for("int8-weights", "encoder")
        for operation in (operations.CONV_2D, operations.DEPTHWISE_CONV_2D)
    ]
    return [*manager.get_quantization_recipe(), *rules]


def gelus_of_linear_layers(source: str) -> list[str]:
    """Names of the outputs of each GELU that reads a linear layer's output."""
    model: Any = flatbuffer.read_model(source)
    found = []
    for graph in model.subgraphs:
        kind: dict[int, int] = {}  # tensor to the operation that writes it
        for op in graph.operators:
            code = model.operatorCodes[op.opcodeIndex].builtinCode
            reads = kind.get(int(op.inputs[0])) if len(op.inputs) else None
            if code == GELU and reads == FULLY_CONNECTED:
                found.append(graph.tensors[op.outputs[0]].name.decode())
            kind |= {int(tensor): code for tensor in op.outputs}
    return found


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
