"""ONNX in 8 bits that is faster and right: linear layers with 8-bit weights per channel, inputs
quantized per call, and the layers that cost too much of the masks left in float32.

A layer becomes DynamicQuantizeLinear, MatMulInteger, Cast, Mul, Add: standard operators, which
onnxruntime fuses into one. Weights use 7 of their 8 bits unless all are asked for: on CPUs without VNNI
the product of 8-bit inputs and 8-bit weights saturates at 16 bits without a word, which random data
does not show.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pocketsam.errors import ConversionError, ParityError
from pocketsam.export.cases import Case, Encode, measure_encoder
from pocketsam.export.options import Options
from pocketsam.export.to_onnx.large import infer_types, open_model
from pocketsam.export.traced import TracedNetwork
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.saturation import saturates

LARGEST = 63
"""Of a weight of 7 bits: 2 · 255 · 63 fits 16 bits, 2 · 255 · 127 does not."""
PREFIXES = ("part.model.image_encoder.", "part.model.")

Arrays = dict[str, NDArray[Any]]
Progress = Callable[[str], None]
MeanIou = Callable[[Encode], float]
"""An encoder to the mean IoU of its masks with PyTorch's."""


@dataclass(frozen=True)
class Layer:
    """A linear layer of a graph.

    Attributes:
        name: its place in the network, by its bias.
        output: the name of its output tensor, which identifies it.
        rows, inputs, outputs: it multiplies [rows, inputs] by [inputs, outputs].
    """

    name: str
    output: str
    rows: int
    inputs: int
    outputs: int


def linear_layers(model: onnx.ModelProto) -> list[Layer]:
    """The linear layers (Gemm with constant weights) in order of computation."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*infer_types(model), *model.graph.output)
    }
    layers = []
    for node in model.graph.node:
        if node.op_type == "Gemm" and node.input[1] in constants:
            name = node.input[2]
            for prefix in PREFIXES:
                name = name.removeprefix(prefix)
            inputs, outputs = constants[node.input[1]].dims
            rows = shapes[node.output[0]][0]
            layers.append(
                Layer(name.removesuffix("bias").rstrip("._"), node.output[0], rows, inputs, outputs)
            )
    return layers


def quantize(
    model: onnx.ModelProto, chosen: Sequence[Layer], largest: int = LARGEST
) -> onnx.ModelProto:
    """A copy of a model with the chosen layers in 8 bits, and weights up to ``largest``."""
    new = onnx.ModelProto()
    new.CopyFrom(model)
    graph = new.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    wanted = {layer.output for layer in chosen}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.output[0] in wanted and node.op_type == "Gemm":
            weight = numpy_helper.to_array(constants[node.input[1]])
            nodes += _quantized_layer(graph, node, weight, largest)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return new


def _quantized_layer(
    graph: onnx.GraphProto, node: onnx.NodeProto, weight: NDArray[np.float32], largest: int
) -> list[onnx.NodeProto]:
    """Returns the nodes that replace a linear layer; adds its 8-bit weights to the graph."""
    scale = np.maximum(np.abs(weight).max(axis=0) / largest, np.float32(1e-12)).astype(np.float32)
    codes = np.rint(weight / scale).astype(np.int8)
    base = node.output[0]
    graph.initializer.append(numpy_helper.from_array(codes, f"{base}_int8"))
    graph.initializer.append(numpy_helper.from_array(scale, f"{base}_scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(len(scale), np.int8), f"{base}_zero"))
    quantized = [f"{base}_{what}" for what in ("input", "input_scale", "input_zero")]
    return [
        helper.make_node("DynamicQuantizeLinear", [node.input[0]], quantized),
        helper.make_node(
            "MatMulInteger",
            [quantized[0], f"{base}_int8", quantized[2], f"{base}_zero"],
            [f"{base}_int32"],
        ),
        helper.make_node("Cast", [f"{base}_int32"], [f"{base}_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [quantized[1], f"{base}_scale"], [f"{base}_scales"]),
        helper.make_node("Mul", [f"{base}_float", f"{base}_scales"], [f"{base}_product"]),
        helper.make_node("Add", [f"{base}_product", node.input[2]], [base]),
    ]


def layer_gain(layer: Layer, rounds: int = 5) -> float:
    """Seconds that 8 bits save of one layer here: both forms alone, in interleaved rounds."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((layer.inputs, layer.outputs), np.float32)
    tensors = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.zeros(layer.outputs, np.float32), "bias"),
    ]
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, [layer.rows, layer.inputs])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [layer.rows, layer.outputs])
    node = helper.make_node("Gemm", ["x", "weight", "bias"], ["y"])
    graph = helper.make_graph([node], "layer", [source], [result], tensors)
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    forms = [open_model(x, "layer") for x in (whole, quantize(whole, linear_layers(whole)))]
    feeds = {"x": rng.standard_normal((layer.rows, layer.inputs), np.float32)}
    times: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        for form, kept in zip(forms, times, strict=True):
            start = time.perf_counter()
            form(feeds)
            if number:
                kept.append(time.perf_counter() - start)
    return min(times[0]) - min(times[1])


def encoder_of(model: onnx.ModelProto) -> Encode:
    """Opens an encoder in onnxruntime as ``cases.measure_encoder`` takes it."""
    call = open_model(model, "8-bit model")
    return lambda pixels: call({c.PIXEL_VALUES: pixels})[c.IMAGE_EMBEDDINGS]


def sweep(
    model: onnx.ModelProto, layers: Sequence[Layer], measure: MeanIou, largest: int, say: Progress
) -> list[dict[str, Any]]:
    """What 8 bits cost and save of each layer alone: ``layer``, ``miou_lost``, ``seconds_saved``."""
    gains: dict[tuple[int, int, int], float] = {}
    rows = []
    for number, layer in enumerate(layers):
        shape = (layer.rows, layer.inputs, layer.outputs)
        if shape not in gains:
            gains[shape] = layer_gain(layer)
        lost = 1 - measure(encoder_of(quantize(model, [layer], largest)))
        rows.append({"layer": layer.name, "miou_lost": lost, "seconds_saved": gains[shape]})
        say(f"int8 {number + 1}/{len(layers)}: {layer.name} costs {lost:.4f} of mIoU")
    return rows


def search(
    model: onnx.ModelProto,
    measure: MeanIou,
    min_miou: float,
    say: Progress = lambda _: None,
    largest: int = LARGEST,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The most 8-bit layers whose masks have a mean IoU of ``min_miou`` with float32's.

    All layers first; if that is not enough, the layers are measured alone, those that save no time are
    dropped, and the rest are left in float32 in the order of mIoU lost per second saved, as many as it
    takes (bisection: more float32 layers lose less).

    Returns:
        The model, and the report that the manifest keeps.

    Raises:
        ParityError: no mixture reaches it; the error gives the best point found.
    """
    layers = linear_layers(model)
    if not layers:
        raise ConversionError("the graph has no linear layer that could be stored in 8 bits")
    chosen, kept, rows = list(layers), [], []
    best = quantize(model, chosen, largest)
    miou = measure(encoder_of(best))
    say(f"int8: all {len(layers)} linear layers: mIoU {miou:.4f}")
    if not miou >= min_miou:  # NaN reaches nothing
        rows = sweep(model, layers, measure, largest, say)
        useful = [(r, x) for r, x in zip(rows, layers, strict=True) if r["seconds_saved"] > 0]
        useful.sort(key=lambda pair: pair[0]["miou_lost"] / pair[0]["seconds_saved"])
        order = [layer for _, layer in useful]
        tried: dict[int, tuple[float, onnx.ModelProto]] = {}
        low, high = 0, len(order)  # how many of them in 8 bits
        while low < high:
            count = (low + high + 1) // 2
            candidate = quantize(model, order[:count], largest)
            tried[count] = (measure(encoder_of(candidate)), candidate)
            say(f"int8: the {count} cheapest: mIoU {tried[count][0]:.4f}")
            low, high = (count, high) if tried[count][0] >= min_miou else (low, count - 1)
        if not low:
            top = max([miou, *(value for value, _ in tried.values())])
            raise ParityError(
                f"int8: no mixture reaches a mask mIoU of {min_miou:g}; the best found has {top:.4f}"
            )
        miou, best = tried[low]
        chosen = order[:low]
    names = {layer.name for layer in chosen}
    kept = [layer.name for layer in layers if layer.name not in names]
    report = {"miou": miou, "min_miou": min_miou, "layers": len(chosen), "kept_in_float32": kept}
    return best, report | ({"sweep": rows} if rows else {})


def speedup(old: onnx.ModelProto, new: onnx.ModelProto, feeds: Arrays, rounds: int = 7) -> float:
    """Median of old time over new, in interleaved rounds."""
    forms = [open_model(old, "float32 model"), open_model(new, "8-bit model")]
    ratios = []
    for number in range(rounds + 1):
        seconds = []
        for form in forms:
            start = time.perf_counter()
            form(feeds)
            seconds.append(time.perf_counter() - start)
        if number:
            ratios.append(seconds[0] / seconds[1])
    return float(np.median(ratios))


def quantize_encoder(
    model: onnx.ModelProto,
    network: TracedNetwork,
    calibration: Sequence[Case],
    options: Options,
    say: Progress,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """``search`` on photographs, and the check that the result is faster here.

    ``min_miou``, ``min_speedup`` and ``weight_bits`` of the options count.

    Raises:
        ParityError: ``min_miou`` is out of reach.
        ConversionError: the result is not ``min_speedup`` times as fast as float32, or this CPU cannot
            measure weights of 8 bits.
    """
    if not calibration:
        raise ConversionError("int8 needs photographs to measure its masks on")
    if options.weight_bits > 7 and saturates():
        raise ConversionError(
            f"--weight-bits {options.weight_bits}: this CPU saturates sums of such products (it has no "
            "VNNI), so the file cannot be measured here; leave it out, or export on another CPU"
        )

    def measure(encode: Encode) -> float:
        return measure_encoder(network.model, calibration, encode).mean

    largest = 2 ** (options.weight_bits - 1) - 1
    best, report = search(model, measure, options.min_miou, say, largest)
    report["speedup"] = speedup(model, best, calibration[0].feeds)
    say(f"int8: mIoU {report['miou']:.4f}, {report['speedup']:.2f} times as fast as float32 here")
    if not report["speedup"] >= options.min_speedup:
        raise ConversionError(
            f"int8 is {report['speedup']:.2f} times as fast as float32 on this machine, and at least "
            f"{options.min_speedup:g} was asked for (--min-speedup); nothing was written"
        )
    return best, report
