"""``SamPredictor`` and ``SamAutomaticMaskGenerator``: the classes of segment-anything over a bundle.

Arguments and results are those of https://github.com/facebookresearch/segment-anything, with numpy
arrays where there are tensors; what is left out would need PyTorch.
"""

from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from pocketsam.constants import resized_shape
from pocketsam.errors import PromptError, UsageError
from pocketsam.images import Pixels, StrPath
from pocketsam.runtime.everything.generator import MaskGenerator
from pocketsam.runtime.everything.grid import ParameterOptions
from pocketsam.runtime.segmenter import FloatArray, Masks, Segmenter

Size = tuple[int, int]


class ResizeLongestSide:
    """Scales images and coordinates to a canvas, like segment-anything's class of that name.

    Args:
        target_length: side of the canvas in pixels.
    """

    def __init__(self, target_length: int) -> None:
        self.target_length = target_length

    def apply_image(self, image: Pixels) -> Pixels:
        """Returns an image ``[H, W, 3]`` uint8 whose longest side is the canvas's."""
        height, width = resized_shape(image.shape[0], image.shape[1], self.target_length)
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(resized)

    def apply_coords(self, coords: ArrayLike, original_size: Size) -> NDArray[np.float64]:
        """Returns (x, y) ``[..., 2]`` of an image (height, width) in pixels of the canvas."""
        return np.asarray(coords, np.float64) * self.scale(original_size)

    def apply_boxes(self, boxes: ArrayLike, original_size: Size) -> NDArray[np.float64]:
        """Returns boxes ``[B, 4]`` in pixels of the canvas."""
        corners = np.asarray(boxes, np.float64).reshape(-1, 2, 2)
        return self.apply_coords(corners, original_size).reshape(-1, 4)

    apply_coords_torch, apply_boxes_torch = apply_coords, apply_boxes

    def scale(self, original_size: Size) -> NDArray[np.float64]:
        """Returns ``[2]``, pixels of the canvas for each pixel of an image, along x and y."""
        height, width = resized_shape(*original_size, self.target_length)
        return np.array([width / original_size[1], height / original_size[0]])


def _numbers(values: ArrayLike, name: str, shape: tuple[int | None, ...]) -> NDArray[np.float64]:
    """Returns numbers as an array of a shape, in which None is any size.

    Raises:
        PromptError: they are no numbers, or of another shape.
    """
    wanted = ", ".join("?" if size is None else str(size) for size in shape)
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise PromptError(f"{name} must be an array of numbers [{wanted}]") from None
    fits = len(shape) == array.ndim
    if not fits or any(b not in (None, a) for a, b in zip(array.shape, shape, strict=True)):
        raise PromptError(f"{name} must be [{wanted}], not {list(array.shape)}")
    return array


class SamPredictor(Segmenter):
    """segment-anything's ``SamPredictor`` over a bundle; all that a ``Segmenter`` has, and more names.

    Args:
        as for ``Segmenter``.

    Example:
        >>> predictor = SamPredictor("bundle")
        >>> predictor.set_image(image)
        >>> masks, scores, logits = predictor.predict(np.array([[220, 120]]), np.array([1]))
    """

    @property
    def device(self) -> str:
        """Where arrays live: always ``cpu``; ``providers`` chooses what computes."""
        return "cpu"

    def to(self, device: object) -> "SamPredictor":
        """Returns this predictor.

        Raises:
            UsageError: another device than the CPU.
        """
        if str(device) != "cpu":
            raise UsageError(
                f"a bundle does not move to {device}: open it there, "
                f'SamPredictor("bundle", providers=["{str(device).partition(":")[0]}", "cpu"])'
            )
        return self

    @property
    def features(self) -> FloatArray:
        """The embedding of the image that is set, ``[1, 256, S/16, S/16]`` float32."""
        return self.get_image_embedding()

    @property
    def input_size(self) -> Size:
        """(height, width) of the image that is set, on the canvas."""
        return resized_shape(*self.original_size, self.image_size)

    @property
    def transform(self) -> ResizeLongestSide:
        """Scales coordinates as ``predict_torch`` takes them."""
        return ResizeLongestSide(self.image_size)

    def predict_torch(
        self,
        point_coords: ArrayLike | None,
        point_labels: ArrayLike | None,
        boxes: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Masks, FloatArray, FloatArray]:
        """Returns what ``predict_batch`` returns, for coordinates in pixels of the canvas.

        Args:
            point_coords: ``[B, N, 2]``, as ``transform.apply_coords`` gives them.
            point_labels: ``[B, N]``.
            boxes: ``[B, 4]``, as ``transform.apply_boxes`` gives them.
            mask_input: ``[B, 1, S/4, S/4]`` logits.
            multimask_output, return_logits: as for ``predict``.

        Raises:
            PromptError: a prompt that cannot be used, or no image is set.
        """
        scale = self.transform.scale(self.original_size)
        points: Any = None
        if point_coords is not None:
            points = _numbers(point_coords, "point_coords", (None, None, 2)) / scale
        corners: Any = None
        if boxes is not None:
            corners = _numbers(boxes, "boxes", (None, 4)) / np.tile(scale, 2)
        return self.predict_batch(
            points, point_labels, corners, mask_input, multimask_output, return_logits
        )


class SamAutomaticMaskGenerator(MaskGenerator):
    """``MaskGenerator`` as segment-anything calls it: the same parameters, defaults and records.

    Args:
        model: a ``SamPredictor`` or ``Segmenter``, or a bundle's directory.
        parameters: as for ``MaskGenerator``.

    Example:
        >>> generator = SamAutomaticMaskGenerator(model=predictor, points_per_side=16)
        >>> records = generator.generate(image)
    """

    def __init__(self, model: Segmenter | StrPath, **parameters: Unpack[ParameterOptions]) -> None:
        super().__init__(model, **parameters)
