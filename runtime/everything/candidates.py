"""Filters masks: at low resolution where the result is certain, at full size otherwise.

A pixel of a full-size mask is a weighted mean of a few cells of the low-resolution logits (bilinear
interpolation, twice). So the cells give bounds of the number of pixels over a threshold, and of boxes.
A mask that fails by these bounds fails at full size as well, and is never computed there.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pocketsam.constants import MASK_THRESHOLD
from pocketsam.runtime.everything.grid import Parameters
from pocketsam.runtime.rle import Box, mask_bounds, run_lengths
from pocketsam.runtime.upscale import Upscaler

EDGE = 20.0
"""Pixels from the edge of a crop within which a box touches it (``is_box_near_crop_edge``)."""
MASKS_PER_CLICK = 3


@dataclass(frozen=True)
class Candidate:
    """The low-resolution logits of a mask that may pass the filters.

    Attributes:
        number: the mask's number among all masks of all clicks; of equal scores, the lower one wins.
        score: predicted IoU.
        point: the click, (x, y) in pixels of the crop.
        top, left: row and column of the first cell of ``logits``.
        logits: ``[h, w]`` float32, all cells that the mask can depend on.
        inner, outer: boxes that lie within, and around, the box of the mask; inner may be None. Boxes
            end on the outermost pixels, as in segment-anything.
    """

    number: int
    score: np.float32
    point: NDArray[np.float64]
    top: int
    left: int
    logits: NDArray[np.float32]
    inner: Box | None
    outer: Box


@dataclass(frozen=True)
class Accepted:
    """A mask that passed all filters of its crop.

    Attributes:
        number, score, point: as in ``Candidate``.
        stability: the stability score of the full-size mask.
        box: the mask's box in pixels of the crop.
        lengths: run lengths of the mask in the whole image, see ``run_lengths``.
    """

    number: int
    score: np.float32
    point: NDArray[np.float64]
    stability: np.float32
    box: Box
    lengths: NDArray[np.int64]


class MaskFilter:
    """The filters of one crop.

    Args:
        upscaler: scales masks to the crop's size.
        crop: the crop in the image, (x0, y0, x1, y1).
        size: (height, width) of the image.
        parameters: has the thresholds.
    """

    def __init__(
        self, upscaler: Upscaler, crop: Box, size: tuple[int, int], parameters: Parameters
    ) -> None:
        self.upscaler, self.crop, self.size = upscaler, crop, size
        self.iou, self.stability = parameters.pred_iou_thresh, parameters.stability_score_thresh
        self.offset = parameters.stability_score_offset

    def candidates(
        self,
        clicks: NDArray[np.intp],
        points: NDArray[np.float64],
        scores: NDArray[np.float32],
        low_res: NDArray[np.float32],
    ) -> list[Candidate]:
        """Returns the masks of B clicks that may pass the filters.

        Args:
            clicks: ``[B]``, the clicks' numbers.
            points: ``[B, 2]``, (x, y) in pixels of the crop.
            scores: ``[B, 3]``.
            low_res: ``[B, 3, S/4, S/4]``.
        """
        found = []
        for click, index in np.ndindex(scores.shape):
            score = np.float32(scores[click, index])
            if self.iou > 0 and not score > np.float64(self.iou):
                continue
            number = int(clicks[click]) * MASKS_PER_CLICK + index
            candidate = self._candidate(number, score, points[click], low_res[click, index])
            if candidate is not None:
                found.append(candidate)
        return found

    def _candidate(
        self,
        number: int,
        score: np.float32,
        point: NDArray[np.float64],
        logits: NDArray[np.float32],
    ) -> Candidate | None:
        used = self.upscaler.used
        low = logits[: used[0], : used[1]]
        wide = low > MASK_THRESHOLD - self.offset
        if self.stability > 0:
            narrow = low > MASK_THRESHOLD + self.offset
            max_narrow = self.upscaler.count(_grown(narrow))
            min_wide = self.upscaler.count(_shrunk(wide))
            if min_wide and max_narrow < self.stability * min_wide:
                return None
        top, bottom, left, right = _extent(wide)
        inside = low > MASK_THRESHOLD
        outer = self.upscaler.box(_grown(inside)) or (0, 0, 0, 0)
        inner = self.upscaler.box(_shrunk(inside))
        region = logits[top:bottom, left:right].copy()
        return Candidate(number, score, point, top, left, region, inner, outer)

    def examine(self, candidate: Candidate) -> Accepted | None:
        """Returns the full-size mask of a candidate, or None if it fails a filter."""
        y, x, logits = self.upscaler.region(candidate.logits, candidate.top, candidate.left)
        narrow = np.count_nonzero(logits > MASK_THRESHOLD + self.offset)
        wide = np.count_nonzero(logits > MASK_THRESHOLD - self.offset)
        stability = np.float32(narrow) / np.float32(wide) if wide else np.float32(np.nan)
        if self.stability > 0 and not stability >= np.float64(self.stability):
            return None
        mask = logits > MASK_THRESHOLD
        bounds = mask_bounds(mask)
        if bounds is None:
            box = (0, 0, 0, 0)
        else:
            x0, y0, x1, y1 = bounds
            box = (x0 + x, y0 + y, x1 + x, y1 + y)
            mask = mask[y0 : y1 + 1, x0 : x1 + 1]
        if self._touches_edge(box):
            return None
        corner = box[0] + self.crop[0], box[1] + self.crop[1]
        lengths = run_lengths(mask, corner, self.size)
        return Accepted(candidate.number, candidate.score, candidate.point, stability, box, lengths)

    def _touches_edge(self, box: Box) -> bool:
        """Returns whether a box ends at an edge of the crop that is not an edge of the image."""
        whole = (0, 0, self.size[1], self.size[0])
        for number, (value, edge, border) in enumerate(zip(box, self.crop, whole, strict=True)):
            position = value + self.crop[number % 2]
            if abs(position - edge) <= EDGE and not abs(position - border) <= EDGE:
                return True
        return False


def is_surely_suppressed(candidate: Candidate, kept: NDArray[Any], threshold: float) -> bool:
    """Returns whether NMS with kept boxes ``[K, 4]`` suppresses a candidate whatever the box of its
    full-size mask is."""
    if candidate.inner is None or not len(kept):
        return False
    boxes = np.asarray(kept, np.float64)
    common = box_intersections(np.array(candidate.inner, np.float64), boxes)
    union = box_areas(np.array(candidate.outer, np.float64)) + box_areas(boxes) - common
    return bool((common > (threshold + 1e-6) * union).any())


def is_suppressed(box: Box, kept: ArrayLike, threshold: float) -> bool:
    """Returns whether a box overlaps one of the kept boxes ``[K, 4]`` by more than the threshold (NMS).

    Computed in float32, like torchvision's ``nms``; but the same box without an area, of a mask that is
    one pixel wide, suppresses.
    """
    this, boxes = np.asarray(box, np.float32), np.asarray(kept, np.float32)
    if not len(boxes):
        return False
    common = box_intersections(this, boxes)
    union = box_areas(this) + box_areas(boxes) - common
    same = (boxes == this).all(axis=1).astype(np.float32)
    overlap = np.where(union > 0, common / np.where(union > 0, union, 1), same)
    return bool((overlap > np.float64(threshold)).any())


def box_areas(boxes: NDArray[Any]) -> NDArray[Any]:
    """Returns the areas of boxes ``[..., 4]``, (x0, y0, x1, y1)."""
    areas: NDArray[Any] = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return areas


def box_intersections(box: NDArray[Any], boxes: NDArray[Any]) -> NDArray[Any]:
    """Returns the area that a box ``[4]`` has in common with each of ``[N, 4]``."""
    width = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0])
    height = np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1])
    common: NDArray[Any] = np.maximum(width, 0) * np.maximum(height, 0)
    return common


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the mask with the eight neighbours of each cell added."""
    out = mask.copy()
    out[1:] |= mask[:-1]
    out[:-1] |= mask[1:]
    rows = out.copy()
    out[:, 1:] |= rows[:, :-1]
    out[:, :-1] |= rows[:, 1:]
    return out


def _shrunk(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the mask without cells that have a neighbour outside it; beyond the array is none."""
    return ~_grown(~mask)


def _extent(mask: NDArray[np.bool_], margin: int = 2) -> tuple[int, int, int, int]:
    """Returns top, bottom, left, right of a mask's cells, with the margin that interpolation reads."""
    bounds = mask_bounds(mask)
    if bounds is None:
        return 0, 0, 0, 0
    x0, y0, x1, y1 = bounds
    height, width = mask.shape
    rows = max(y0 - margin, 0), min(y1 + margin + 1, height)
    return *rows, max(x0 - margin, 0), min(x1 + margin + 1, width)
