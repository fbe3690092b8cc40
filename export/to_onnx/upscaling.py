"""The decoder's full-size masks, added to its ONNX graph."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pocketsam.runtime import contract as c


class _Nodes:
    """Appends constants and nodes to a graph; each method returns the name of what it made."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph

    def const(self, name: str, values: Any, dtype: Any) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.graph.node.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def int64(self, name: str) -> str:
        return self.node("Cast", [name], f"{name}_int64", to=TensorProto.INT64)

    def resize(self, masks: str, batch: str, side_lengths: str, output: str) -> str:
        shape = self.node("Concat", [batch, side_lengths], f"{output}_shape", axis=0)
        # not pytorch_half_pixel: that differs from PyTorch where a side is one pixel
        mode = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        return self.node("Resize", [masks, "", "", shape], output, **mode)


def append_upscaling(model: onnx.ModelProto, image_size: int) -> None:
    """Adds ``orig_im_size`` and ``masks``: the reference's ``mask_postprocessing``, in ONNX.

    Low resolution to the canvas, the padding cropped, then to the original size. The crop is at least
    one pixel (see ``constants.resized_shape``). onnxruntime computes every output whether or not it is
    asked for, so a size of (0, 0) shrinks canvas and masks to one pixel, which costs nothing.
    """
    graph = model.graph
    nodes = _Nodes(graph)
    const, node, int64 = nodes.const, nodes.node, nodes.int64

    one, half = const("one", 1, np.float32), const("half", 0.5, np.float32)
    side, square = const("side", image_size, np.float32), const("square", [1, 1], np.float32)
    size = node("Max", [c.ORIG_IM_SIZE, one], "size")
    longest = node("ReduceMax", [size], "longest_side", keepdims=0)
    scaled = node("Mul", [size, node("Div", [side, longest], "resize_scale")], "scaled_size")
    rounded = node("Floor", [node("Add", [scaled, half], "scaled_size_plus_half")], "rounded_size")
    crop = int64(node("Max", [rounded, one], "crop_size"))
    wanted = node("Mul", [c.ORIG_IM_SIZE, side], "at_least_side_if_wanted")
    largest = node(
        "ReduceMax", [node("Clip", [wanted, one, side], "clipped")], "canvas_side", keepdims=0
    )
    canvas = int64(node("Mul", [largest, square], "canvas_size"))

    batch = node("Shape", [c.LOW_RES_MASKS], "prompts_and_masks", start=0, end=2)
    upscaled = nodes.resize(c.LOW_RES_MASKS, batch, canvas, "canvas_masks")
    starts, axes = const("crop_starts", [0, 0], np.int64), const("crop_axes", [2, 3], np.int64)
    cropped = node("Slice", [upscaled, starts, crop, axes], "cropped_masks")
    nodes.resize(cropped, batch, int64(size), c.MASKS)

    graph.input.append(helper.make_tensor_value_info(c.ORIG_IM_SIZE, TensorProto.FLOAT, [2]))
    masks = helper.make_tensor_value_info(c.MASKS, TensorProto.FLOAT, ["B", 4, "H", "W"])
    graph.output.insert(0, masks)
