"""Puts a tool's graphs around the traced networks."""

import numpy as np
import onnx
from torch import Tensor

from pocketsam import constants
from pocketsam.export.drop_in import graphs
from pocketsam.export.drop_in.join import (
    add_constant,
    add_unused_input,
    join,
    ordered,
    rename,
)
from pocketsam.export.drop_in.tool import TwoFiles
from pocketsam.export.to_onnx.passes import FastDecoder
from pocketsam.export.to_onnx.upscaling import append_upscaling
from pocketsam.models.prompt_encoder import is_label
from pocketsam.models.sam import EMBED_DIM, Sam
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends import subgraph

CORNERS = ("xtl", "ytl", "xbr", "ybr")


class PaddingDecoder(FastDecoder):
    """The decoder for ONNX that leaves points of label ``LABEL_PADDING`` out of every attention."""

    def padding_mask(self, point_labels: Tensor) -> Tensor:
        """Returns ``[B, N]`` with 1 where a point has that label."""
        return is_label(point_labels, float(constants.LABEL_PADDING))


def build_encoder(tool: TwoFiles, encoder: onnx.ModelProto, model: Sam) -> onnx.ModelProto:
    """Returns the encoder as a tool runs it.

    Args:
        tool: the tool.
        encoder: ``pixel_values`` to ``image_embeddings``, in any precision.
        model: the network, for its canvas and its positional embeddings.
    """
    form, side = tool.encoder, model.image_size
    built = onnx.ModelProto()
    built.CopyFrom(encoder)
    if form.layout:
        before = graphs.picture_graph(form.input, form.layout, form.dtype, side, tool.frame or side)
        rename(before, {c.PIXEL_VALUES: "picture.pixel_values"})
        built = join(before, encoder, {c.PIXEL_VALUES: "picture.pixel_values"})
    rename(built, {c.IMAGE_EMBEDDINGS: form.output, c.PIXEL_VALUES: form.input})
    outputs = [form.output]
    if form.positions:
        add_constant(built, form.positions, _positions(model))
        outputs.append(form.positions)
    return ordered(built, [form.input], outputs)


def build_decoder(tool: TwoFiles, decoder: onnx.ModelProto, model: Sam) -> onnx.ModelProto:
    """Returns the decoder as a tool runs it.

    Args:
        tool: the tool.
        decoder: of a ``PaddingDecoder``, in any precision.
        model: the network, for its canvas.
    """
    form, side = tool.decoder, model.image_size
    network = onnx.load_from_string(
        subgraph.extract(decoder.SerializeToString(), (c.IOU_PREDICTIONS, c.LOW_RES_MASKS))
    )
    prompts = graphs.prompt_graph(
        dict((form.coords, form.labels)),
        side,
        tool.frame or side,
        mask_side=form.mask_side,
        adds_point=form.adds_point,
    )
    given = [value.name for value in prompts.graph.input]
    made = [value.name for value in prompts.graph.output]
    built = join(prompts, network, dict(zip(graphs.DECODER_INPUTS, made, strict=True)))
    inputs = [c.IMAGE_EMBEDDINGS, *given]
    if form.answers == "three":
        _append_three(built, side // 4)
        add_unused_input(built, tool.encoder.positions or "", _positions(model).shape)
        inputs.insert(1, tool.encoder.positions or "")
        return ordered(built, inputs, ["iou_scores", "pred_masks"])
    built = _append_choice(built, made, side)
    if form.answers == "low":
        return ordered(built, inputs, [c.IOU_PREDICTIONS, c.LOW_RES_MASKS])
    append_upscaling(built, side)
    outputs = [c.MASKS, c.IOU_PREDICTIONS, c.LOW_RES_MASKS]
    if form.answers == "cropped":
        rename(built, {c.MASKS: "logits"})
        built = join(built, graphs.crop_graph(), {"logits": "logits"})
        rename(built, {"pixels": c.MASKS})
        outputs += CORNERS
    else:
        _one_mask(built)
    return ordered(built, [*inputs, c.ORIG_IM_SIZE], outputs)


def _append_choice(model: onnx.ModelProto, made: list[str], side: int) -> onnx.ModelProto:
    """Returns the decoder with one score and one mask of low resolution, by the official names.

    Args:
        model: gives four of each.
        made: tensors of the prompts: points, labels, mask and whether there is one.
        side: S.
    """
    several = {c.IOU_PREDICTIONS: "all_scores", c.LOW_RES_MASKS: "all_masks"}
    rename(model, several)
    fed = {"scores": "all_scores", "masks": "all_masks", "kinds": made[1], "given": made[3]}
    built = join(model, graphs.choice_graph(side), fed)
    rename(built, {"chosen_score": c.IOU_PREDICTIONS, "chosen_mask": c.LOW_RES_MASKS})
    return built


def _append_three(model: onnx.ModelProto, low: int) -> None:
    """Adds ``iou_scores`` ``[1, B, 3]`` and ``pred_masks`` ``[1, B, 3, S/4, S/4]``, in place."""
    graph, helper = model.graph, onnx.helper
    for name, value in (("three_start", 1), ("three_end", 4), ("three_axis", 1), ("images", 0)):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
    for source, output, sides in (
        (c.IOU_PREDICTIONS, "iou_scores", []),
        (c.LOW_RES_MASKS, "pred_masks", [low, low]),
    ):
        part = f"{output}_of_prompts"
        ends = [source, "three_start", "three_end", "three_axis"]
        graph.node.append(helper.make_node("Slice", ends, [part], name=part))
        graph.node.append(helper.make_node("Unsqueeze", [part, "images"], [output], name=output))
        shape: list[int | str | None] = [1, "B", 3, *sides]
        graph.output.append(helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, shape))


def _one_mask(model: onnx.ModelProto) -> None:
    """Says in the shapes that there is one mask a prompt, in place."""
    for value in model.graph.output:
        dims = value.type.tensor_type.shape.dim
        if len(dims) > 1:
            dims[1].dim_value = 1


def _positions(model: Sam) -> "np.ndarray":
    """Returns ``[1, 256, S/16, S/16]`` float32, the encoding of the embedding's positions."""
    encoding: np.ndarray = model.prompt_encoder.dense_pe().detach().numpy()
    assert encoding.shape[1] == EMBED_DIM
    return encoding
