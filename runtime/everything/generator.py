"""Every object of an image, without a prompt: a grid of clicks, filtered.

``everything`` gives what ``SamAutomaticMaskGenerator`` of segment-anything gives on the same weights,
with numpy alone and without ever holding all masks: of a candidate it keeps the low-resolution logits
around the mask, and makes the mask at full size only when no better candidate can have replaced it.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketsam.constants import MASK_THRESHOLD
from pocketsam.errors import PromptError
from pocketsam.runtime.everything.candidates import (
    MASKS_PER_CLICK,
    Accepted,
    Candidate,
    MaskFilter,
    is_suppressed,
    surely_suppressed,
)
from pocketsam.runtime.everything.components import remove_small_regions
from pocketsam.runtime.everything.grid import Parameters, coarse_to_fine, crop_boxes
from pocketsam.runtime.masks import Box, compress, from_run_lengths, mask_bounds, run_lengths

if TYPE_CHECKING:
    from pocketsam.runtime.segmenter import Segmenter

POOL_BYTES = 256 * 2**20
"""Of candidates' logits, beyond which they are examined at once."""
EXPLAINED = 32
"""The adaptive order makes no click where the masks of so many others lie already."""
NEARLY = 0.1
"""Predicted IoU that may be missing beside a click, for the adaptive order to try it all the same."""
ALIKE = 0.8
"""IoU of boxes up to which the adaptive order looks for a better click beside each of two masks."""

Record = dict[str, Any]
Progress = Callable[[int, int], None]
"""Clicks done, clicks in all."""


class Search:
    """The clicks on one crop, and what they found.

    Args:
        judge: the crop's filters.
        parameters: of the whole search.
        grid: ``[N, 2]`` (x, y) in 0..1, all clicks that there are.
    """

    def __init__(self, judge: MaskFilter, parameters: Parameters, grid: NDArray[np.float64]) -> None:
        self.judge, self.parameters, self.grid = judge, parameters, grid
        self._adaptive = parameters.order == "adaptive"
        self._waiting: list[Candidate | Accepted] = []
        self._covered = np.zeros(judge.upscaler.used, np.int64)  # by how many clicks' masks
        self._scores = np.full(len(grid), np.nan)  # the best of each click that was made

    def batches(self) -> Iterator[NDArray[np.intp]]:
        """Numbers of clicks to make, a call of the decoder's at a time.

        In the order "adaptive" what ``add`` learns decides: coarse to fine, no click where much was
        found or, among the finest, where nothing comes near to being found; and as masks get better
        towards some place in an object, on from each mask's click to its neighbours.
        """
        if not self._adaptive and self.parameters.time_budget is None:
            yield from self._in_batches(np.arange(len(self.grid)))
            return
        levels = coarse_to_fine(self.grid)
        for number, level in enumerate(levels, start=1):
            fine = self._adaptive and number > 1
            if fine and number == len(levels):
                level = level[self._is_promising(level)]
            yield from self._in_batches(level)
            if fine and number >= len(levels) - 1:
                while len(beside := self._beside_masks()):
                    yield from self._in_batches(beside, even_if_covered=True)

    def _in_batches(
        self, clicks: NDArray[np.intp], even_if_covered: bool = False
    ) -> Iterator[NDArray[np.intp]]:
        size = self.parameters.points_per_batch
        while True:
            if self._adaptive:
                clicks = clicks[np.isnan(self._scores[clicks])]
                if not even_if_covered:
                    clicks = clicks[~self._is_covered(clicks)]
            if not len(clicks):
                return
            yield clicks[:size]
            clicks = clicks[size:]

    def _is_covered(self, clicks: NDArray[np.intp]) -> NDArray[np.bool_]:
        rows, columns = self._covered.shape
        x, y = self.grid[clicks].T
        column = np.minimum((x * columns).astype(np.intp), columns - 1)
        row = np.minimum((y * rows).astype(np.intp), rows - 1)
        covered: NDArray[np.bool_] = self._covered[row, column] >= EXPLAINED
        return covered

    def _is_promising(self, clicks: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether a click beside it nearly found something, or none beside it was made."""
        scores = np.where(np.isnan(self._scores), -np.inf, self._scores)
        best = np.array([scores[self._beside(click)].max() for click in clicks])
        enough = self.parameters.pred_iou_thresh - NEARLY
        promising: NDArray[np.bool_] = (best > enough) | (best == -np.inf)
        return promising

    def _beside_masks(self) -> NDArray[np.intp]:
        """The clicks beside those whose masks would be kept, as far as they were not made."""
        kept = self._keep(max(self.parameters.box_nms_thresh, ALIKE))
        clicks = {int(n) for one in kept for n in self._beside(one.number // MASKS_PER_CLICK)}
        return np.array(sorted(n for n in clicks if np.isnan(self._scores[n])), np.intp)

    def _beside(self, click: int) -> NDArray[np.intp]:
        """Of a square grid, a click and the eight around it; at the edge some twice."""
        side = math.isqrt(len(self.grid))
        row, column = divmod(click, side)
        steps = np.arange(-1, 2)
        rows, columns = (np.clip(place + steps, 0, side - 1) for place in (row, column))
        around: NDArray[np.intp] = (rows[:, None] * side + columns).ravel()
        return around

    def add(
        self,
        clicks: NDArray[np.intp],
        points: NDArray[np.float64],
        scores: NDArray[np.float32],
        kept: NDArray[np.intp],
        low_res: NDArray[np.float32],
    ) -> None:
        """Takes in what ``Segmenter.predict_promising`` said to some clicks at ``points``."""
        self._scores[clicks] = scores.max(axis=1)
        found = self.judge.candidates(clicks[kept], points[kept], scores[kept], low_res)
        self._waiting += found
        if self._adaptive:
            for _, ones in itertools.groupby(found, lambda one: one.number // MASKS_PER_CLICK):
                covered = np.zeros(self._covered.shape, np.bool_)
                for one in ones:
                    height, width = one.logits.shape
                    place = slice(one.top, one.top + height), slice(one.left, one.left + width)
                    covered[place] |= one.logits > MASK_THRESHOLD
                self._covered += covered
        logits = [one.logits.nbytes for one in self._waiting if isinstance(one, Candidate)]
        if sum(logits) > POOL_BYTES:
            examined = (self._examine(one) for one in self._waiting)
            self._waiting = [one for one in examined if one is not None]

    def _examine(self, one: Candidate | Accepted) -> Accepted | None:
        return one if isinstance(one, Accepted) else self.judge.examine(one)

    def settle(self) -> list[Accepted]:
        """What stays after suppression, best first."""
        return self._keep(self.parameters.box_nms_thresh)

    def _keep(self, threshold: float) -> list[Accepted]:
        """What stays where boxes may overlap by ``threshold``, best first.

        Candidates are examined in the order of their scores, and not at all where a better one has
        certainly replaced them: only what was kept suppresses, so the result is the same.
        """
        kept: list[Accepted] = []
        boxes: list[Box] = []
        waiting: list[Candidate | Accepted] = []
        for one in sorted(self._waiting, key=lambda one: (-one.score, one.number)):
            if isinstance(one, Candidate) and surely_suppressed(one, boxes, threshold):
                waiting.append(one)  # another threshold may want it
                continue
            examined = self._examine(one)
            if examined is None:
                continue
            waiting.append(examined)
            if not is_suppressed(examined.box, boxes, threshold):
                kept.append(examined)
                boxes.append(examined.box)
        self._waiting = waiting
        return kept


def everything(
    segmenter: "Segmenter",
    image: NDArray[np.uint8],
    parameters: Parameters,
    progress: Progress = lambda done, total: None,
) -> list[Record]:
    """All objects of an image; ``Segmenter.everything`` is the way to it, and says more.

    Args:
        segmenter: its image is the last crop's afterwards.
        image: ``[H, W, 3]`` uint8.
        parameters: of the search.
        progress: called after each call of the decoder.

    Raises:
        PromptError: the image is too small for the crops.
    """
    start = time.monotonic()
    size = (image.shape[0], image.shape[1])
    grids = parameters.grids()
    crops = crop_boxes(size, parameters.crop_n_layers, parameters.crop_overlap_ratio)
    if any(x1 <= x0 or y1 <= y0 for (x0, y0, x1, y1), _ in crops):
        raise PromptError(
            f"an image of {size[1]}x{size[0]} pixels is too small for {parameters.crop_n_layers} "
            "layers of crops"
        )
    total = sum(len(grids[layer]) for _, layer in crops)
    done = 0
    found: list[tuple[Accepted, Box]] = []
    least = parameters.pred_iou_thresh or -np.inf  # 0 switches the filter off
    limit = np.inf if parameters.time_budget is None else start + parameters.time_budget
    for crop, layer in crops:
        if time.monotonic() >= limit:
            break
        x0, y0, x1, y1 = crop
        segmenter.set_image(np.ascontiguousarray(image[y0:y1, x0:x1]))
        judge = MaskFilter(segmenter.upscaler, crop, size, parameters)
        search = Search(judge, parameters, grids[layer])
        points = grids[layer] * (x1 - x0, y1 - y0)
        made = 0
        for clicks in search.batches():
            if time.monotonic() >= limit:
                break
            asked = points[clicks]
            answer = segmenter.predict_promising(asked[:, None], np.ones((len(asked), 1)), least)
            search.add(clicks, asked, *answer)
            made += len(clicks)
            progress(done + made, total)
        done += len(points)
        progress(done, total)
        found += [(one, crop) for one in search.settle()]
    kept = _between_crops(found, parameters, len(crops))
    if parameters.min_mask_region_area:
        kept = _without_small_regions(kept, size, parameters)
    return [_record(one, crop, size, parameters.output_mode) for one, crop in kept]


def _between_crops(
    found: Sequence[tuple[Accepted, Box]], parameters: Parameters, crops: int
) -> list[tuple[Accepted, Box]]:
    """What stays after suppression between crops, where the smaller crop wins; boxes in the image."""
    placed = []
    for one, crop in found:
        x0, y0, x1, y1 = one.box
        box = (x0 + crop[0], y0 + crop[1], x1 + crop[0], y1 + crop[1])
        point = one.point + crop[:2]
        placed.append((replace(one, box=box, point=point), crop))
    if crops == 1:
        return placed
    placed.sort(key=lambda pair: _area(pair[1]))
    return _suppress(placed, parameters.crop_nms_thresh)


def _suppress(found: Sequence[tuple[Accepted, Box]], threshold: float) -> list[tuple[Accepted, Box]]:
    """Without the masks whose box one before them covers."""
    kept: list[tuple[Accepted, Box]] = []
    for one, crop in found:
        if not is_suppressed(one.box, [other.box for other, _ in kept], threshold):
            kept.append((one, crop))
    return kept


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _without_small_regions(
    found: Sequence[tuple[Accepted, Box]], size: tuple[int, int], parameters: Parameters
) -> list[tuple[Accepted, Box]]:
    """Masks without small holes and islands; of two that become alike, the one that was so before."""
    cleaned = []
    for one, crop in found:
        mask = from_run_lengths(one.lengths, size)
        changed = False
        for mode in ("holes", "islands"):
            mask, now = remove_small_regions(mask, parameters.min_mask_region_area, mode)
            changed |= now
        box = mask_bounds(mask) or (0, 0, 0, 0)
        new = replace(one, lengths=run_lengths(mask), box=box) if changed else one
        cleaned.append((changed, new, crop))
    threshold = max(parameters.box_nms_thresh, parameters.crop_nms_thresh)
    cleaned.sort(key=lambda entry: entry[0])
    return _suppress([(one, crop) for _, one, crop in cleaned], threshold)


def _record(one: Accepted, crop: Box, size: tuple[int, int], mode: str) -> Record:
    segmentation: Any
    if mode == "binary_mask":
        segmentation = from_run_lengths(one.lengths, size)
    elif mode == "coco_rle":
        segmentation = compress(one.lengths.tolist(), size)
    else:
        segmentation = {"size": list(size), "counts": one.lengths.tolist()}
    return {
        "segmentation": segmentation,
        "area": int(one.lengths[1::2].sum()),
        "bbox": _xywh(one.box),
        "predicted_iou": float(one.score),
        "point_coords": [one.point.tolist()],
        "stability_score": float(one.stability),
        "crop_box": _xywh(crop),
    }


def _xywh(box: Box) -> list[int]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
