"""Every object of an image, without a prompt: a grid of clicks, filtered.

``everything`` gives what ``SamAutomaticMaskGenerator`` of segment-anything gives on the same weights,
with numpy alone and without ever holding all masks: of a candidate it keeps the low-resolution logits
around the mask, and makes the mask at full size only when no better candidate can have replaced it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketsam.errors import PromptError
from pocketsam.runtime.candidates import Accepted, Candidate, Judge, is_gone, surely_gone
from pocketsam.runtime.components import remove_small_regions
from pocketsam.runtime.grid import Parameters, coarse_to_fine, crop_boxes
from pocketsam.runtime.masks import Box, compress, from_run_lengths, mask_bounds, run_lengths

if TYPE_CHECKING:
    from pocketsam.runtime.segmenter import Segmenter

POOL_BYTES = 256 * 2**20
"""Of candidates' logits, beyond which they are examined at once."""
EXPLAINED = 6
"""As many masks over a place make another click there superfluous to the adaptive order."""

Record = dict[str, Any]
Progress = Callable[[int, int], None]
"""Clicks done, clicks in all."""


class Search:
    """The clicks on one crop, and what they found.

    Args:
        judge: the crop's filters.
        parameters: of the whole search.
    """

    def __init__(self, judge: Judge, parameters: Parameters) -> None:
        self.judge, self.parameters = judge, parameters
        self._adaptive = parameters.order == "adaptive"
        self._pool: list[Candidate] = []
        self._examined: list[Accepted] = []
        self._masks_over = np.zeros(judge.upscaler.used, np.int64)

    def batches(self, grid: NDArray[np.float64]) -> Iterator[NDArray[np.intp]]:
        """Numbers of clicks, a call of the decoder's at a time."""
        size = self.parameters.points_per_batch
        coarse = self._adaptive or self.parameters.time_budget is not None
        for level in coarse_to_fine(grid) if coarse else [np.arange(len(grid))]:
            left = level
            while len(left):
                if self._adaptive:
                    left = left[~self._is_explained(grid[left])]
                yield left[:size]
                left = left[size:]

    def _is_explained(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """``[N]``, of points ``[N, 2]`` in 0..1."""
        rows, columns = self._masks_over.shape
        x = np.minimum((points[:, 0] * columns).astype(np.intp), columns - 1)
        y = np.minimum((points[:, 1] * rows).astype(np.intp), rows - 1)
        explained: NDArray[np.bool_] = self._masks_over[y, x] >= EXPLAINED
        return explained

    def add(
        self,
        clicks: NDArray[np.intp],
        points: NDArray[np.float64],
        scores: NDArray[np.float32],
        low_res: NDArray[np.float32],
    ) -> None:
        """Takes in what the decoder said to some clicks; see ``Judge.candidates``."""
        found = self.judge.candidates(clicks, points, scores, low_res)
        self._pool += found
        for one in found if self._adaptive else ():
            height, width = one.logits.shape
            rows, columns = slice(one.top, one.top + height), slice(one.left, one.left + width)
            self._masks_over[rows, columns] += one.logits > 0
        if sum(one.logits.nbytes for one in self._pool) > POOL_BYTES:
            examined = (self.judge.examine(one) for one in self._pool)
            self._examined += [one for one in examined if one is not None]
            self._pool = []

    def settle(self) -> list[Accepted]:
        """What stays after suppression, best first.

        Candidates are examined in the order of their scores, and not at all where a better one has
        certainly replaced them: only what was kept suppresses, so the result is the same.
        """
        kept: list[Accepted] = []
        boxes: list[Box] = []
        threshold = self.parameters.box_nms_thresh
        waiting: list[Candidate | Accepted] = [*self._pool, *self._examined]
        for one in sorted(waiting, key=lambda one: (-one.score, one.number)):
            examined: Accepted | None
            if isinstance(one, Accepted):
                examined = one
            elif surely_gone(one, boxes, threshold):
                continue
            else:
                examined = self.judge.examine(one)
            if examined and not is_gone(examined.box, boxes, threshold):
                kept.append(examined)
                boxes.append(examined.box)
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
    limit = np.inf if parameters.time_budget is None else start + parameters.time_budget
    for crop, layer in crops:
        if time.monotonic() >= limit:
            break
        x0, y0, x1, y1 = crop
        segmenter.set_image(np.ascontiguousarray(image[y0:y1, x0:x1]))
        judge = Judge(segmenter.upscaler, crop, size, parameters)
        search = Search(judge, parameters)
        points = grids[layer] * (x1 - x0, y1 - y0)
        for clicks in search.batches(grids[layer]):
            if time.monotonic() >= limit:
                break
            asked = points[clicks]
            scores, low_res = segmenter.predict_low_res(asked[:, None], np.ones((len(asked), 1)))
            search.add(clicks, asked, scores, low_res)
            progress(done + int(clicks.max()) + 1, total)
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
        if not is_gone(one.box, [other.box for other, _ in kept], threshold):
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
