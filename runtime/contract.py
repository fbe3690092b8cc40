"""Names and shapes of the tensors in a bundle's networks, for the exporter and the runtime.

The decoder has the tensors of segment-anything's ``SamOnnxModel``, with an axis B for independent
prompts where that has 1. S is the image size (the side of the square canvas), N the number of points of
a prompt, (H, W) the size of the original image. S/16 and S/4 are SAM's; ``Traits.stride`` may be
another than 16.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pocketsam import constants
from pocketsam.errors import BundleError, IntegrityError
from pocketsam.traits import MIN_MAX, SAM_PIXELS, UPSCALING

if TYPE_CHECKING:
    from pocketsam.runtime.manifest import Manifest

PIXEL_VALUES = "pixel_values"  # [1, 3, S, S] RGB, normalised, zero-padded right and bottom
IMAGE = "image"  # [1, 3, S, S] RGB 0..255, instead of pixel_values; what lies outside is ignored
RESIZED_SIZE = "resized_size"  # [2] (height, width) of the picture on the canvas, with IMAGE
IMAGE_EMBEDDINGS = "image_embeddings"  # [1, 256, S/16, S/16]

POINT_COORDS = "point_coords"  # [B, N, 2] (x, y) in pixels of the canvas
POINT_LABELS = "point_labels"  # [B, N] see the labels in pocketsam.constants
MASK_INPUT = "mask_input"  # [M, 1, S/4, S/4] logits; M is B, or 1 for all prompts (ONNX)
HAS_MASK_INPUT = "has_mask_input"  # [M] clipped to 0..1
ORIG_IM_SIZE = "orig_im_size"  # [2] (H, W); (0, 0): masks are not wanted, and come out as 1x1
MASKS = "masks"  # [B, 4, H, W] logits
IOU_PREDICTIONS = "iou_predictions"  # [B, 4]
LOW_RES_MASKS = "low_res_masks"  # [B, 4, S/4, S/4] logits

SPLIT_TENSORS = ("mask_decoder.transformer.layers.1.0", "mask_decoder.transformer.layers.1.1")
"""Tensors inside an ONNX decoder, of tokens and image: with the prompts, scores and masks follow from
them."""

ONNX_TARGETS = ("onnx", "web")
"""Targets whose files are ONNX: plain, or with a page for browsers."""

PROMPT_LABELS = {
    "absent": constants.LABEL_PADDING,
    "pad": constants.LABEL_NOT_A_POINT,
    "background": constants.LABEL_BACKGROUND,
    "foreground": constants.LABEL_FOREGROUND,
    "box_first_corner": constants.LABEL_BOX_FIRST,
    "box_second_corner": constants.LABEL_BOX_SECOND,
}
"""The meaning of the point labels, as the manifest has it."""


def check_contract(manifest: "Manifest", where: Path) -> None:
    """Raises IntegrityError for a manifest that says something else than what this runtime does.

    Who follows such a manifest on another device would feed the networks other values than they want.

    Args:
        manifest: of any target.
        where: the manifest's path, for the error.
    """
    side, preprocessing = manifest.image_size, manifest.preprocessing
    pixels = MIN_MAX if preprocessing.stretch else SAM_PIXELS
    layout = preprocessing.layout
    shape = (1, side, side, 3) if layout == "NHWC" else (1, 3, side, side)
    is_normalised = preprocessing.input == PIXEL_VALUES
    tensors = {tensor.name: tensor for tensor in (*manifest.encoder.inputs, *manifest.decoder.inputs)}
    picture = tensors.get(preprocessing.input)
    points, count = tensors.get(POINT_COORDS), manifest.decoder.max_points
    for key, found, wanted in (
        ("preprocessing.mean", preprocessing.mean, pixels.mean),
        ("preprocessing.std", preprocessing.std, pixels.std),
        ("preprocessing.stretch", preprocessing.stretch, preprocessing.stretch and is_normalised),
        ("preprocessing.color", preprocessing.color, "RGB"),
        ("mask_threshold", manifest.mask_threshold, constants.MASK_THRESHOLD),
        ("prompt_labels", dict(manifest.prompt_labels), PROMPT_LABELS),
        (
            "preprocessing.input",
            preprocessing.input,
            manifest.encoder.inputs[0].name if manifest.encoder.inputs else "an input",
        ),
        ("preprocessing.layout", layout, (picture and picture.layout) or "NCHW"),
        (f"encoder.inputs: shape of {preprocessing.input}", picture and picture.shape, shape),
        ("decoder.points", (count,), points.shape[1:2] if points and count is not None else (count,)),
    ):
        if found != wanted:
            raise IntegrityError(
                f"{where}: {key} is {found}, but the runtime and its files want {wanted}"
            )


def check_outputs(outputs: Mapping[str, Any], cells: int, batch: int, name: str) -> None:
    """Raises BundleError unless a network's outputs have the shapes above, in float32.

    Args:
        outputs: arrays by name, or ``OrtValue``s on a GPU.
        cells: side of the embedding.
        batch: B, the number of prompts.
        name: of the network, for the error.
    """
    low = UPSCALING * cells
    shapes = {
        IMAGE_EMBEDDINGS: (1, 256, cells, cells),
        IOU_PREDICTIONS: (batch, 4),
        LOW_RES_MASKS: (batch, 4, low, low),
    }
    for key, value in outputs.items():
        dtype, shape = _type_of(value)
        is_float32 = dtype in ("float32", "tensor(float)")
        if key in shapes and not (is_float32 and shape == shapes[key]):
            raise BundleError(
                f"{name}: {key} is {dtype} {list(shape)}, but must be float32 {list(shapes[key])}; "
                "export the bundle again"
            )


def _type_of(value: Any) -> tuple[str, tuple[int, ...]]:
    """Returns the dtype and the shape of an array or an ``OrtValue``; of a list, its class."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape
    try:
        return value.data_type(), tuple(value.shape())
    except Exception:  # sequences, maps, optional and sparse tensors, each with its own
        return type(value).__name__, ()


def check_finite(outputs: Mapping[str, Any], name: str) -> None:
    """Raises BundleError if an output in numpy's memory holds NaN or infinity."""
    for key, value in outputs.items():
        if isinstance(value, np.ndarray) and not np.isfinite(value).all():
            raise BundleError(f"{name}: {key} has values that are no finite numbers; verify the bundle")
