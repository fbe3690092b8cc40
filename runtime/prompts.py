"""Checks prompts in the original image's pixels, and turns them into the decoder's inputs."""

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pocketsam.constants import LABEL_BOX_FIRST, LABEL_BOX_SECOND, LABEL_NOT_A_POINT, resized_shape
from pocketsam.errors import PromptError, first_line
from pocketsam.images import StrPath
from pocketsam.reading import read_regular
from pocketsam.runtime.contract import HAS_MASK_INPUT, MASK_INPUT, POINT_COORDS, POINT_LABELS

LABELS = (-1, 0, 1, 2, 3)
MOST_BYTES = 2**24
"""Of a prompt file."""
Point = tuple[float, float, int]
"""x, y, label."""
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1."""


def _array(name: str, values: ArrayLike, shape: tuple[int | None, ...]) -> NDArray[np.float64]:
    """Returns finite float64 of a shape (None: any length), or raises PromptError."""
    try:
        array = np.asarray(values)
    except Exception as error:  # of whatever class, such as a tensor's that has a gradient
        raise PromptError(f"{name} is not an array of numbers: {first_line(error)}") from None
    try:
        is_text = array.dtype.kind in "OUS"
        array = array.astype(np.float64, casting="unsafe" if is_text else "same_kind")
    except (TypeError, ValueError, OverflowError):
        raise PromptError(f"{name} is not an array of numbers") from None
    if not array.ndim:
        raise PromptError(f"{name} is a single number, not an array")
    fits = array.ndim == len(shape) and all(
        size in (None, actual) for size, actual in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape[1:])
        raise PromptError(
            f"{name} must have the shape [{wanted}] for each prompt, not {list(array.shape[1:])}"
            if shape[0] in (None, len(array))
            else f"{name} must hold {shape[0]} prompts, like the others, not {len(array)}"
        )
    if not np.isfinite(array).all():
        raise PromptError(f"{name} contains NaN or infinity")
    return array


def _check_inside(
    name: str, points: NDArray[np.float64], used: NDArray[np.bool_], size: tuple[int, int]
) -> None:
    """Raises PromptError if a used (x, y) lies outside 0..W, 0..H."""
    height, width = size
    outside = used & ((points < 0) | (points > (width, height))).any(axis=-1)
    if outside.any():
        x, y = points[outside][0]
        raise PromptError(f"{name} ({x:g}, {y:g}) lies outside the image of {width}x{height} pixels")


def _clipped(boxes: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Returns boxes ``[B, 2, 2]`` cut off at the edges of the image, as detectors' boxes need.

    Raises:
        PromptError: corners in the wrong order, or a box that the image has no part of.

    Warns:
        UserWarning: a box is less than a pixel wide or high, as fractions of the image would be.
    """
    if (boxes[:, 0] > boxes[:, 1]).any():
        raise PromptError("box must be (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1")
    height, width = size
    outside = (boxes[:, 0] > (width, height)) | (boxes[:, 1] < 0)
    if outside.any():
        shown = ", ".join(f"{value:g}" for value in boxes[outside.any(axis=1)][0].ravel())
        raise PromptError(f"box ({shown}) lies outside the image of {width}x{height} pixels")
    clipped: NDArray[np.float64] = boxes.clip(0, (width, height))
    if (clipped[:, 1] - clipped[:, 0] < 1).any():
        warnings.warn("a box is less than a pixel wide or high; boxes are in pixels", stacklevel=2)
    return clipped


def assemble(
    point_coords: ArrayLike | None,
    point_labels: ArrayLike | None,
    boxes: ArrayLike | None,
    original_size: tuple[int, int],
    image_size: int,
    batch: int | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns ``point_coords`` ``[B, M, 2]`` and ``point_labels`` ``[B, M]``, float32, of B prompts.

    The points come first, then the box's corners, or, where there are points but no box, a
    not-a-point: the order and the count of segment-anything's ``PromptEncoder``.

    Args:
        point_coords: ``[B, N, 2]`` (x, y) in pixels of the original image.
        point_labels: ``[B, N]``, each of ``LABELS``; a not-a-point (-1) may lie anywhere.
        boxes: ``[B, 4]`` (x0, y0, x1, y1); what lies outside the image is cut off.
        original_size: (height, width).
        image_size: side of the canvas.
        batch: B if there are neither points nor boxes: a mask input alone, or no prompt at all.

    Raises:
        PromptError: a wrong shape, label or range, NaN, or points without labels.
    """
    if (point_coords is None) != (point_labels is None):
        raise PromptError("point_coords and point_labels must be given together")
    coords, labels = [], []
    if point_coords is not None and point_labels is not None:
        points = _array("point_coords", point_coords, (batch, None, 2))
        batch, count = points.shape[:2]
        given = _array("point_labels", point_labels, (batch, count))
        wrong = ~np.isin(given, LABELS)
        if wrong.any():
            raise PromptError(f"point_labels contains {given[wrong][0]:g}; known are {LABELS}")
        _check_inside("point", points, given != LABEL_NOT_A_POINT, original_size)
        # where a not-a-point lies makes no difference, unless it is too far away for float32
        coords, labels = [np.where(given[..., None] == LABEL_NOT_A_POINT, 0.0, points)], [given]
        if boxes is None:
            coords.append(np.zeros((batch, 1, 2)))
            labels.append(np.full((batch, 1), float(LABEL_NOT_A_POINT)))
    if boxes is not None:
        with contextlib.suppress(ValueError):  # of a ragged list, which _array refuses by name
            if np.shape(boxes)[1:] == (1, 4):  # `box[None, :]`, as the reference takes it
                boxes = np.asarray(boxes)[:, 0]
        corners = _array("box", boxes, (batch, 4)).reshape(-1, 2, 2)
        batch = len(corners)
        coords.append(_clipped(corners, original_size))
        labels.append(np.tile([float(LABEL_BOX_FIRST), float(LABEL_BOX_SECOND)], (batch, 1)))
    if not coords:
        batch = 1 if batch is None else batch
        return np.zeros((batch, 0, 2), np.float32), np.zeros((batch, 0), np.float32)

    height, width = original_size
    new_height, new_width = resized_shape(height, width, image_size)
    # float64, as segment-anything scales: whole pixels stay exact.
    scaled = np.concatenate(coords, axis=1) * np.array([new_width / width, new_height / height])
    return scaled.astype(np.float32), np.concatenate(labels, axis=1).astype(np.float32)


def is_ambiguous(points: int, has_box: bool) -> bool:
    """Returns whether a prompt is answered by the best-scored of three masks, not by the single mask.

    A single point or a box alone is ambiguous: with the not-a-point that follows points without a box,
    its prompt has fewer than three points (segment-anything's ``SamOnnxModel.select_masks``).

    Args:
        points: number of points, without box corners.
        has_box: whether the prompt has a box.
    """
    return points + (2 if has_box else 1) < 3


def check_mask_input(mask_input: ArrayLike, batch: int | None, side: int) -> NDArray[np.float32]:
    """Returns a mask input ``[B, 1, S/4, S/4]`` as float32.

    Args:
        mask_input: logits of an earlier call.
        batch: B; None: any number.
        side: S/4.

    Raises:
        PromptError: another shape, or numbers that float32 does not hold.
    """
    array = _array("mask_input", mask_input, (batch, 1, side, side))
    if (np.abs(array) > np.finfo(np.float32).max).any():
        raise PromptError("mask_input contains numbers beyond float32")
    return array.astype(np.float32)


def batches(
    coords: NDArray[np.float32],
    labels: NDArray[np.float32],
    masks: NDArray[np.float32] | None,
    side: int,
    size: int,
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yields the decoder's inputs, without the embedding, for at most ``size`` prompts at a time.

    Args:
        coords, labels: of B prompts, as ``assemble`` returns them.
        masks: mask inputs ``[B, 1, S/4, S/4]``; None: no mask, as a single input for all prompts.
        side: S/4.
        size: prompts per batch.

    Raises:
        PromptError: B is 0.
    """
    if not len(coords):
        raise PromptError("a batch must hold at least one prompt")
    for start in range(0, len(coords), size):
        batch = slice(start, start + size)
        mask_input = np.zeros((1, 1, side, side), np.float32) if masks is None else masks[batch]
        yield {
            POINT_COORDS: coords[batch],
            POINT_LABELS: labels[batch],
            MASK_INPUT: np.ascontiguousarray(mask_input),
            HAS_MASK_INPUT: np.full(len(mask_input), masks is not None, np.float32),
        }


def read_prompt_file(path: StrPath) -> tuple[list[Point], list[Box]]:
    """Returns the points and boxes in a prompt file of samexporter or rembg.

    ``[{"type": "point", "data": [x, y], "label": 1}, {"type": "rectangle", "data": [x0, y0, x1, y1]}]``

    Raises:
        PromptError: the file is missing, is not JSON, or holds something else.
    """
    name = os.fspath(path)
    try:
        entries = json.loads(read_regular(Path(name), MOST_BYTES).decode())
    except OSError as error:
        raise PromptError(f"{name}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{name}: not JSON: {error}") from None
    if not isinstance(entries, list):
        raise PromptError(f"{name}: must hold a list of prompts")
    points: list[Point] = []
    boxes: list[Box] = []
    for number, entry in enumerate(entries):
        try:
            kind, data = entry["type"], entry["data"]
            if kind not in ("point", "rectangle"):
                raise PromptError(f"{name}: prompt {number}: unknown type {kind!r}")
            if not isinstance(data, list):
                raise TypeError("data is not a list")
            if kind == "point":
                x, y = map(float, data)
                points.append((x, y, LABELS[LABELS.index(entry["label"])]))
            else:
                x0, y0, x1, y1 = map(float, data)
                boxes.append((x0, y0, x1, y1))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, PromptError):
                raise
            raise PromptError(f"{name}: prompt {number}: {_expected(entry)}") from None
    return points, boxes


def _expected(entry: Any) -> str:
    shown = json.dumps(entry)[:80]
    return f'wants "type", "data" (2 numbers and "label", or 4 numbers), got {shown}'
