"""FastSAM to compare with: a YOLOv8-seg network as ONNX file, whose output is decoded in numpy.

A run finds up to a few hundred masks (Zhao et al. 2023, arXiv:2306.12156); a prompt only chooses among
them. Each anchor has a box, a score for each class and 32 coefficients. A mask is the sum of 32
prototypes weighted by the coefficients (YOLACT, Bolya et al. 2019, arXiv:1904.02689), cropped to the
box.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from pocketsam.errors import BundleError, PromptError
from pocketsam.images import Pixels, StrPath
from pocketsam.runtime.backends.ort import open_session, run_session
from pocketsam.runtime.backends.providers import Providers
from pocketsam.runtime.bundle import read_model
from pocketsam.runtime.everything.candidates import box_areas, box_intersections
from pocketsam.runtime.image import ImageLike, as_pixels
from pocketsam.runtime.rle import mask_bounds, to_rle
from pocketsam.runtime.upscale import resize_matrix

COEFFICIENTS = 32
PADDING = 114
"""Grey around an image that has not the network's shape."""
CONFIDENCE, OVERLAP, MAX_MASKS = 0.4, 0.9, 300
"""FastSAM's minimum score, maximum IoU of boxes, and maximum number of masks."""


@dataclass(frozen=True)
class Letterbox:
    """Position of an image in the network's canvas: scaled to fit, in the middle, grey around.

    Attributes:
        canvas, size: (height, width) of the canvas, and of the image in it.
        top, left: first row and column of the image.
        scale: canvas pixels per image pixel.
    """

    canvas: tuple[int, int]
    size: tuple[int, int]
    top: int
    left: int
    scale: float


def fit(shape: tuple[int, int], canvas: tuple[int, int]) -> Letterbox:
    """Returns the position of an image of (height, width) in a canvas of (height, width)."""
    scale = min(canvas[0] / shape[0], canvas[1] / shape[1])
    height, width = (max(1, min(round(n * scale), c)) for n, c in zip(shape, canvas, strict=True))
    top, left = (canvas[0] - height) // 2, (canvas[1] - width) // 2
    return Letterbox(canvas, (height, width), top, left, scale)


class FastSam:
    """A FastSAM or other YOLOv8-seg network.

    Args:
        path: an ONNX file with an input ``[1, 3, H, W]``, outputs ``[1, 4 + classes + 32, anchors]``
            and prototypes ``[1, 32, H/4, W/4]``.
        providers, threads: as for ``Segmenter``.

    Raises:
        BundleError: the file cannot be read, or has other inputs.
    """

    def __init__(
        self,
        path: StrPath,
        providers: Providers = "cpu",
        threads: int | None = None,
    ) -> None:
        self.name = os.fspath(path)
        data = read_model(path)
        self._session = open_session(data, self.name, providers, threads, static=True, foreign=True)
        self._input, self.canvas = self._check_input()
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._shape = (0, 0)
        self._masks: NDArray[np.bool_] = np.zeros((0, 0, 0), np.bool_)
        self._scores: NDArray[np.float32] = np.zeros(0, np.float32)

    def _check_input(self) -> tuple[str, tuple[int, int]]:
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        sides = shape[2:] if len(shape) == 4 and shape[1] == 3 else []
        if not sides or not all(type(n) is int for n in sides):
            actual = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in inputs)
            raise BundleError(
                f"{self.name}: needs a single input [1, 3, H, W] of static size, not {actual}"
            )
        return inputs[0].name, (sides[0], sides[1])

    def set_image(
        self,
        image: ImageLike,
        conf: float = CONFIDENCE,
        iou: float = OVERLAP,
    ) -> None:
        """Finds all masks of an image.

        Args:
            image: as for ``Segmenter.set_image``.
            conf: minimum score, 0..1.
            iou: IoU of boxes above which the mask with the lower score is suppressed, 0..1.

        Raises:
            ImageError: the image cannot be used.
            PromptError: a threshold outside 0..1.
            BundleError: the network has other outputs than a YOLOv8-seg.
        """
        for name, value in (("conf", conf), ("iou", iou)):
            if not 0 <= value <= 1:
                raise PromptError(f"{name} must lie in 0..1, not {value}")
        pixels = as_pixels(image)
        shape = (pixels.shape[0], pixels.shape[1])
        box = fit(shape, self.canvas)
        outputs = run_session(
            self._session, self.name, self._outputs, {self._input: letterboxed(pixels, box)}
        )
        rows, prototypes = self._split(outputs)
        boxes, scores, coefficients = select(rows, conf, iou)
        self._masks = draw(boxes, coefficients, prototypes, box, shape)
        self._scores, self._shape = scores, shape

    def _split(self, outputs: Sequence[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns rows ``[anchors, 4 + classes + 32]`` and prototypes ``[32, h, w]``."""
        flat = [x[0] for x in outputs if x.ndim == 3 and x.shape[1] > 4 + COEFFICIENTS]
        prototypes = [x[0] for x in outputs if x.ndim == 4 and x.shape[1] == COEFFICIENTS]
        if len(flat) != 1 or len(prototypes) != 1:
            named = zip(self._outputs, outputs, strict=True)
            actual = ", ".join(f"{name} {list(array.shape)}" for name, array in named)
            raise BundleError(
                f"{self.name}: needs outputs [1, 4 + classes + 32, anchors] and [1, 32, h, w], like "
                f"FastSAM or YOLOv8-seg, not {actual}"
            )
        return flat[0].T, prototypes[0]

    @property
    def masks(self) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """All masks ``[N, H, W]`` of the image that is set, best first, and their scores ``[N]``."""
        return self._masks, self._scores

    def generate(
        self, image: ImageLike, conf: float = CONFIDENCE, iou: float = OVERLAP
    ) -> list[dict[str, Any]]:
        """Returns all masks of an image as ``MaskGenerator.generate`` does, in COCO's RLE.

        Args:
            image, conf, iou: as for ``set_image``.
        """
        self.set_image(image, conf, iou)
        records = []
        for mask, score in zip(self._masks, self._scores, strict=True):
            x0, y0, x1, y1 = mask_bounds(mask) or (0, 0, 0, 0)
            record = {"segmentation": to_rle(mask), "area": int(mask.sum())}
            records.append(record | {"bbox": [x0, y0, x1 - x0, y1 - y0], "predicted_iou": float(score)})
        return records

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
    ) -> NDArray[np.bool_]:
        """Returns the mask ``[H, W]`` of a prompt by FastSAM's rules; it is empty where no mask fits.

        Of points, the masks on foreground points are joined, and the masks on background points are
        removed from them, large masks first. Of a box, the mask with the largest IoU is chosen.

        Args:
            point_coords: ``[N, 2]`` (x, y) in pixels.
            point_labels: ``[N]``: 1 foreground, 0 background; None: all foreground.
            box: ``[4]`` (x0, y0, x1, y1).

        Raises:
            PromptError: points and a box together, neither, or no image is set.
        """
        if not self._shape[0]:
            raise PromptError("no image is set; call set_image first")
        if (box is None) == (point_coords is None):
            raise PromptError("FastSAM takes either points or a box")
        if box is not None:
            return self._by_box(np.asarray(box, np.float64))
        points = np.asarray(point_coords, np.float64)
        labels = np.ones(len(points)) if point_labels is None else np.asarray(point_labels)
        height, width = self._shape
        columns = np.clip(points[:, 0].astype(int), 0, width - 1)
        rows = np.clip(points[:, 1].astype(int), 0, height - 1)
        chosen = np.zeros(self._shape, np.bool_)
        areas = self._masks.sum(axis=(1, 2))
        for index in np.argsort(-areas, kind="stable"):
            hit = self._masks[index, rows, columns]
            if (hit & (labels == 1)).any():
                chosen |= self._masks[index]
            if (hit & (labels == 0)).any():
                chosen &= ~self._masks[index]
        return chosen

    def _by_box(self, box: NDArray[np.float64]) -> NDArray[np.bool_]:
        x0, y0, x1, y1 = (max(0, round(value)) for value in box)
        inside = self._masks[:, y0:y1, x0:x1].sum(axis=(1, 2))
        union = self._masks.sum(axis=(1, 2)) + (x1 - x0) * (y1 - y0) - inside
        if not len(inside):
            return np.zeros(self._shape, np.bool_)
        best: NDArray[np.bool_] = self._masks[int((inside / np.maximum(union, 1)).argmax())]
        return best


def letterboxed(pixels: Pixels, box: Letterbox) -> NDArray[np.float32]:
    """Returns ``[H, W, 3]`` uint8 as the network's input, ``[1, 3, h, w]`` float32 in 0..1."""
    height, width = box.size
    canvas = np.full((*box.canvas, 3), PADDING, np.uint8)
    scaled = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    canvas[box.top : box.top + height, box.left : box.left + width] = np.asarray(scaled)
    return np.ascontiguousarray(canvas.transpose(2, 0, 1)[None], np.float32) / np.float32(255)


def select(
    rows: NDArray[np.float32], conf: float, iou: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Returns boxes ``[N, 4]`` in the canvas, scores and coefficients of the kept anchors, best first.

    Args:
        rows: ``[anchors, 4 + classes + 32]``: centre, size, scores of classes, coefficients.
        conf: minimum score.
        iou: maximum IoU of boxes; boxes of all classes suppress each other.
    """
    scores = rows[:, 4:-COEFFICIENTS].max(axis=1)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > conf]
    centre, size = rows[order, :2], rows[order, 2:4]
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    areas = box_areas(boxes)
    suppressed = np.zeros(len(order), np.bool_)
    kept: list[int] = []
    for index in range(len(order)):
        if suppressed[index]:
            continue
        kept.append(index)
        if len(kept) == MAX_MASKS:
            break
        rest = slice(index + 1, None)
        common = box_intersections(boxes[index], boxes[rest])
        suppressed[rest] |= common > iou * (areas[index] + areas[rest] - common)
    return boxes[kept], scores[order[kept]], rows[order[kept], -COEFFICIENTS:]


def draw(
    boxes: NDArray[np.float32],
    coefficients: NDArray[np.float32],
    prototypes: NDArray[np.float32],
    box: Letterbox,
    shape: tuple[int, int],
) -> NDArray[np.bool_]:
    """Returns masks ``[N, H, W]`` at the image's size.

    The weighted sum of prototypes is cropped to the image within the canvas, interpolated to the
    image's size, cropped to the box, and thresholded at 0, where its sigmoid is 0.5.

    Args:
        boxes: ``[N, 4]`` in the canvas.
        coefficients: ``[N, 32]``.
        prototypes: ``[32, h, w]``.
        box: the image's position in the canvas.
        shape: (H, W) of the image.
    """
    _, high, wide = prototypes.shape
    logits = (coefficients @ prototypes.reshape(len(prototypes), -1)).reshape(-1, high, wide)
    step = box.canvas[0] / high, box.canvas[1] / wide
    top, bottom = round(box.top / step[0]), round((box.top + box.size[0]) / step[0])
    left, right = round(box.left / step[1]), round((box.left + box.size[1]) / step[1])
    logits = logits[:, top : max(bottom, top + 1), left : max(right, left + 1)]
    down, across = (resize_matrix(*pair) for pair in zip(logits.shape[1:], shape, strict=True))
    masks = np.zeros((len(boxes), *shape), np.bool_)
    for number, (values, corners) in enumerate(zip(logits, boxes, strict=True)):
        x0, y0, x1, y1 = (corners - np.array([box.left, box.top] * 2)) / box.scale
        rows, columns = _inside(y0, y1, shape[0]), _inside(x0, x1, shape[1])
        full: NDArray[np.float32] = np.linalg.multi_dot([down[rows], values, across[columns].T])
        masks[number, rows, columns] = full > 0
    return masks


def _inside(start: float, stop: float, length: int) -> slice:
    """Returns the pixels whose index lies in [start, stop), as a slice."""
    return slice(max(0, int(np.ceil(start))), max(0, min(length, int(np.ceil(stop)))))
