"""Masks that may stay: judged at low resolution as far as that is certain, at full size only then.

A pixel of a full-size mask is a weighted mean of a few cells of the low-resolution logits (bilinear
interpolation, twice). So counts of pixels over a threshold, and boxes, can be bounded from the cells:
what the bounds rule out needs no full-size mask, and nothing is decided otherwise than there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketsam.constants import MASK_THRESHOLD
from pocketsam.runtime.everything.grid import Parameters
from pocketsam.runtime.masks import Box, Upscaler, mask_bounds, run_lengths

EDGE = 20.0
"""Pixels from the edge of a crop within which a box touches it (``is_box_near_crop_edge``)."""
MASKS_PER_CLICK = 3


@dataclass(frozen=True)
class Candidate:
    """A mask by its logits at low resolution.

    Attributes:
        number: its place among all masks of all clicks, which decides between equal scores.
        score: predicted IoU.
        point: the click, (x, y) in pixels of the crop.
        top, left: cell where ``logits`` begins; it holds all that can be part of the mask.
        logits: ``[h, w]`` float32.
        inner, outer: boxes that lie within, and around, the box of the mask; inner may be None. As the
            reference's, boxes end on the outermost pixels.
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
        number, score, point: as the candidate's.
        stability: at full size.
        box: of the mask, in pixels of the crop.
        lengths: the mask in the whole image, see ``run_lengths``.
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
        upscaler: of the crop.
        crop: the crop in the image, x0 y0 x1 y1.
        size: (height, width) of the image.
        parameters: whose thresholds they are.
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
        """Those of B clicks that can pass.

        Args:
            clicks: ``[B]``, their numbers.
            points: ``[B, 2]``, (x, y) in pixels of the crop.
            scores: ``[B, 3]``.
            low_res: ``[B, 3, S/4, S/4]``.
        """
        found = []
        for click, kind in np.ndindex(scores.shape):
            score = np.float32(scores[click, kind])
            if self.iou > 0 and not score > np.float64(self.iou):
                continue
            number = int(clicks[click]) * MASKS_PER_CLICK + kind
            one = self._candidate(number, score, points[click], low_res[click, kind])
            if one is not None:
                found.append(one)
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
            most = self.upscaler.count(_grown(narrow))
            least = self.upscaler.count(_shrunk(wide))
            if least and most < self.stability * least:
                return None
        top, bottom, left, right = _extent(wide)
        inside = low > MASK_THRESHOLD
        outer = self.upscaler.box(_grown(inside)) or (0, 0, 0, 0)
        inner = self.upscaler.box(_shrunk(inside))
        cut = logits[top:bottom, left:right].copy()
        return Candidate(number, score, point, top, left, cut, inner, outer)

    def examine(self, one: Candidate) -> Accepted | None:
        """The candidate at full size, or None if a filter takes it away."""
        y, x, logits = self.upscaler.region(one.logits, one.top, one.left)
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
        place = box[0] + self.crop[0], box[1] + self.crop[1]
        lengths = run_lengths(mask, place, self.size)
        return Accepted(one.number, one.score, one.point, stability, box, lengths)

    def _touches_edge(self, box: Box) -> bool:
        """Whether a box ends at an edge of the crop that is none of the image."""
        whole = (0, 0, self.size[1], self.size[0])
        for number, (value, edge, border) in enumerate(zip(box, self.crop, whole, strict=True)):
            place = value + self.crop[number % 2]
            if abs(place - edge) <= EDGE and not abs(place - border) <= EDGE:
                return True
        return False


def surely_suppressed(one: Candidate, kept: Sequence[Box], threshold: float) -> bool:
    """Whether a kept box overlaps the candidate's by more than the threshold whatever its box is."""
    if one.inner is None or not kept:
        return False
    boxes = np.array(kept, np.float64)
    common = box_intersections(np.array(one.inner, np.float64), boxes)
    union = box_areas(np.array(one.outer, np.float64)) + box_areas(boxes) - common
    return bool((common > (threshold + 1e-6) * union).any())


def is_suppressed(box: Box, kept: Sequence[Box], threshold: float) -> bool:
    """Whether a kept box overlaps a box by more than the threshold: non-maximum suppression.

    In float32, as torchvision's ``nms`` computes it.
    """
    if not kept:
        return False
    one, boxes = np.array(box, np.float32), np.array(kept, np.float32)
    common = box_intersections(one, boxes)
    with np.errstate(invalid="ignore"):  # 0 / 0 of two empty boxes is over no threshold
        overlap = common / (box_areas(one) + box_areas(boxes) - common)
    return bool((overlap > np.float64(threshold)).any())


def box_areas(boxes: NDArray[Any]) -> NDArray[Any]:
    """Of boxes ``[..., 4]``, x0 y0 x1 y1."""
    areas: NDArray[Any] = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return areas


def box_intersections(box: NDArray[Any], boxes: NDArray[Any]) -> NDArray[Any]:
    """Areas that a box ``[4]`` has in common with each of ``[N, 4]``."""
    width = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0])
    height = np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1])
    common: NDArray[Any] = np.maximum(width, 0) * np.maximum(height, 0)
    return common


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """With the eight neighbours of each cell."""
    out = mask.copy()
    out[1:] |= mask[:-1]
    out[:-1] |= mask[1:]
    rows = out.copy()
    out[:, 1:] |= rows[:, :-1]
    out[:, :-1] |= rows[:, 1:]
    return out


def _shrunk(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without the cells that have a neighbour outside; beyond the array nothing is outside."""
    return ~_grown(~mask)


def _extent(mask: NDArray[np.bool_], margin: int = 2) -> tuple[int, int, int, int]:
    """top, bottom, left, right of the cells in use, with a margin that interpolation reaches."""
    bounds = mask_bounds(mask)
    if bounds is None:
        return 0, 0, 0, 0
    x0, y0, x1, y1 = bounds
    height, width = mask.shape
    rows = max(y0 - margin, 0), min(y1 + margin + 1, height)
    return *rows, max(x0 - margin, 0), min(x1 + margin + 1, width)
