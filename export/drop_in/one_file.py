"""Both networks as one, as EfficientSAM has them: a square picture and points to three masks."""

from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper, shape_inference
from torch import Tensor

from pocketsam import constants
from pocketsam.export.drop_in.check import Masks, Photo, Points
from pocketsam.export.drop_in.tool import OneFile
from pocketsam.export.reference import Reference
from pocketsam.export.target import Arrays, Call, Progress
from pocketsam.export.to_onnx import convert as to_onnx
from pocketsam.export.to_onnx.passes import optimise
from pocketsam.export.traced import Decoder
from pocketsam.models.images import normalise
from pocketsam.models.prompt_encoder import is_label
from pocketsam.models.sam import Sam

POINTS = 6
"""Points of a prompt; those that are none have the label -1."""


class SquareNetwork(Decoder):
    """A squashed picture and points in it to three masks of the square, and their scores.

    The square is scaled to the canvas by two matrix products with the weights of Pillow's antialiasing:
    engines differ in what their Resize does.
    """

    inputs = ("batched_images", "batched_point_coords", "batched_point_labels")
    outputs = ("output_masks", "iou_predictions")
    labels_shape: tuple[int, ...] = (1, 1, POINTS, 1)
    weights: Tensor

    def __init__(self, model: Sam, frame: int) -> None:
        super().__init__(model)
        self.frame = frame
        sides = (model.image_size, frame)
        square = torch.eye(frame)[None, None]
        weights = F.interpolate(square, sides, mode="bilinear", antialias=True, align_corners=False)
        self.register_buffer("weights", weights[0, 0])

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns masks ``[1, 1, 3, F, F]`` and scores ``[1, 1, 3]`` of a picture ``[1, 3, F, F]`` in
        0..1, points ``[1, 1, 6, 2]`` in its pixels, and labels of ``labels_shape``."""
        image, coords, labels = inputs
        side = self.model.image_size
        if side != self.frame:
            image = self.weights @ image @ self.weights.T
        embeddings = self.model.encode(normalise(image * 255))
        points, labels = self._prompt(coords, labels)
        masks, scores = self._decode(embeddings, points, labels)
        masks = masks[:, 1:]
        for larger in dict.fromkeys((side, self.frame)):  # twice, as SamPredictor does
            masks = F.interpolate(masks, (larger, larger), mode="bilinear", align_corners=False)
        return masks[:, None], scores[:, None, 1:]

    def _decode(self, embeddings: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns four masks of low resolution and their scores, without a mask input."""
        low = self.model.mask_side
        no_mask, unused = torch.zeros(1, 1, low, low), torch.zeros(1)
        padding = self.padding_mask(labels)
        return self.model.decode(embeddings, points, labels, no_mask, unused, padding)

    def _prompt(self, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns points ``[1, 7, 2]`` and labels ``[1, 7]``: the tool's -1 means padding, and SAM's
        point of label -1 is added where there is no box. In arithmetic, which all engines have."""
        scaled = coords.reshape(1, POINTS, 2) * (self.model.image_size / self.frame)
        kinds = labels.reshape(1, POINTS)
        has_box = (kinds - 1).clamp(0, 1).amax(1, keepdim=True)
        kinds = torch.cat([kinds - F.relu(-kinds), -1 - has_box], 1)
        return torch.cat([scaled, torch.zeros(1, 1, 2)], 1), kinds

    def padding_mask(self, point_labels: Tensor) -> Tensor:
        """Returns 1 where a label is ``LABEL_PADDING``, else 0."""
        return is_label(point_labels, float(constants.LABEL_PADDING))

    def example(self, prompts: int = 1, points: int = POINTS) -> dict[str, Tensor]:
        """Returns inputs to trace with."""
        shapes = (1, 3, self.frame, self.frame), (1, 1, POINTS, 2), self.labels_shape
        return {name: torch.ones(shape) for name, shape in zip(self.inputs, shapes, strict=True)}

    def intermediates(self) -> list[str]:
        """Returns no names: nothing inside is compared."""
        return []


def write(
    reference: Reference, work: Path, tool: OneFile, progress: Progress
) -> tuple[list[str], Masks]:
    """Writes both networks as one file; returns its path in ``work`` and the masks that it gives.

    Raises:
        ConversionError: the converter failed.
    """
    model = reference.loaded.model
    network = SquareNetwork(optimise(model), tool.frame or model.image_size)
    progress(f"converting {tool.file}")
    data = reshaped(to_onnx.trace_static(network)).SerializeToString(deterministic=True)
    (work / tool.file).write_bytes(data)
    return [tool.file], in_one_file(network, to_onnx.load(data, tool.file))


def reshaped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a model of static shapes without Unsqueeze, which OpenCV 4 reads for a single axis of a
    few shapes only: a Reshape says the same."""
    inferred = shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.output)
    }
    new = onnx.ModelProto()
    new.CopyFrom(model)
    for node in new.graph.node:
        if node.op_type == "Unsqueeze":
            shape = numpy_helper.from_array(np.array(shapes[node.output[0]]), f"{node.output[0]}.shape")
            new.graph.initializer.append(shape)
            node.op_type, node.input[1] = "Reshape", shape.name
    used = {name for node in new.graph.node for name in node.input}
    kept = [tensor for tensor in new.graph.initializer if tensor.name in used]
    del new.graph.initializer[:], new.graph.value_info[:]
    new.graph.initializer.extend(kept)
    onnx.checker.check_model(new, full_check=True)
    return new


def in_one_file(network: SquareNetwork, run: Call) -> Masks:
    """Returns the masks that a tool makes of a network's file, which ``run`` runs: the best-scored of
    its three."""
    image, coords, labels = network.inputs

    def encode(picture: Photo) -> Arrays:
        return {image: picture.transpose(2, 0, 1)[None].astype(np.float32) / 255}

    def answer(encoded: Arrays, points: Points, _size: tuple[int, int]) -> np.ndarray:
        slots = np.zeros((POINTS, 3), np.float32)
        slots[:, 2] = -1
        slots[: len(points)] = points
        kinds = slots[:, 2].reshape(network.labels_shape)
        found = run({**encoded, coords: slots[None, None, :, :2], labels: kinds})
        masks, scores = (found[name][0, 0] for name in network.outputs)
        best: np.ndarray = masks[scores.argmax()] >= 0
        return best

    return Masks(encode, answer)
