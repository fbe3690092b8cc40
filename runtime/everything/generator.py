"""Finds every object of an image, without a prompt: a grid of clicks, whose masks are filtered.

With ``order="grid"`` and no time budget the masks are those of segment-anything's
``SamAutomaticMaskGenerator``. During the search, a candidate keeps only its low-resolution logits;
masks are computed at full size one after another, and accepted ones are stored as run lengths.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from pocketsam.errors import ImageError
from pocketsam.images import Pixels, StrPath
from pocketsam.runtime.everything.candidates import Accepted, MaskFilter, is_suppressed
from pocketsam.runtime.everything.components import remove_small_regions
from pocketsam.runtime.everything.grid import (
    ParameterOptions,
    Parameters,
    crop_boxes,
    make_parameters,
)
from pocketsam.runtime.everything.search import Search
from pocketsam.runtime.image import ImageLike, as_pixels
from pocketsam.runtime.rle import Box, compress, from_run_lengths, mask_bounds, run_lengths
from pocketsam.runtime.segmenter import Segmenter

Progress = Callable[[int, int], None]
"""Receives the number of clicks done, and the number of all clicks."""


class MaskRecord(TypedDict):
    """A mask that the generator found, with the keys of segment-anything's records.

    ``segmentation`` is ``[H, W]`` bool, or RLE by ``output_mode``; ``area`` in pixels; ``bbox`` and
    ``crop_box`` are ``[x, y, width, height]``; ``point_coords`` ``[[x, y]]`` is the click.
    """

    segmentation: Any
    area: int
    bbox: list[int]
    predicted_iou: float
    point_coords: list[list[float]]
    stability_score: float
    crop_box: list[int]


@dataclass(frozen=True)
class _Found:
    """A mask in the whole image.

    Attributes:
        box: the mask's box in pixels of the image, (x0, y0, x1, y1).
        point: the click, (x, y) in pixels of the image.
        score, stability, lengths: as in ``Accepted``.
        crop: where the mask was found, (x0, y0, x1, y1).
    """

    box: Box
    point: NDArray[np.float64]
    score: np.float32
    stability: np.float32
    lengths: NDArray[np.int64]
    crop: Box


class MaskGenerator:
    """The runtime's counterpart of segment-anything's ``SamAutomaticMaskGenerator``.

    Args:
        segmenter: answers the clicks; or a bundle's directory, for a segmenter with defaults.
        parameters: keyword arguments, as ``grid.Parameters`` describes them: segment-anything's names
            and defaults, but for the two thresholds that the bundle's manifest gives.

    Attributes:
        parameters: all of them.
        best_score: highest predicted IoU of all masks that the last ``generate`` saw, also of those
            that did not pass; None if it made no click.

    Raises:
        PromptError: an unknown parameter, or a value out of range.

    Example:
        >>> generator = MaskGenerator(Segmenter("bundle"), points_per_side=16)
        >>> records = generator.generate("photo.jpg")
        >>> records[0]["area"], records[0]["segmentation"].shape
    """

    def __init__(self, segmenter: Segmenter | StrPath, **parameters: Unpack[ParameterOptions]) -> None:
        self.segmenter = segmenter if isinstance(segmenter, Segmenter) else Segmenter(segmenter)
        suitable = self.segmenter.manifest.thresholds
        parameters.setdefault("pred_iou_thresh", suitable.pred_iou_thresh)
        parameters.setdefault("stability_score_thresh", suitable.stability_score_thresh)
        self.parameters = make_parameters(**parameters)
        self.best_score: float | None = None

    def generate(self, image: ImageLike, *, progress: Progress | None = None) -> list[MaskRecord]:
        """Returns a record for each object of an image.

        The segmenter's image is this one afterwards, or the last crop of it.

        Args:
            image: ``[H, W, 3]`` uint8 RGB, or a PIL image or a path (see ``load_image``).
            progress: called after each batch with the number of clicks done, and the number of all
                clicks.

        Returns:
            A record for each mask, best first. With crops, the masks of smaller crops come first; with
            ``min_mask_region_area``, the masks that it changed come last.

        Raises:
            ImageError: the image cannot be read or used, or is too small for the crops.
        """
        start = time.monotonic()
        self.best_score = None
        budget = self.parameters.time_budget
        deadline = np.inf if budget is None else start + budget
        pixels = as_pixels(image)
        size = (pixels.shape[0], pixels.shape[1])
        crops = self._crops(size)
        grids = self.parameters.grids()
        total, done = sum(len(grids[layer]) for _, layer in crops), 0

        def report(before: int, made: int) -> None:
            if progress is not None:
                progress(before + made, total)

        found: list[_Found] = []
        for crop, layer in crops:
            if time.monotonic() >= deadline:
                break
            found += self._search_crop(pixels, crop, layer, deadline, partial(report, done))
            done += len(grids[layer])
        if len(crops) > 1:
            found.sort(key=lambda item: _area(item.crop))  # the mask of the smaller crop stays
            found = _suppress(found, self.parameters.crop_nms_thresh)
        if self.parameters.min_mask_region_area:
            found = _clean_small_regions(found, size, self.parameters)
        return [_record(item, size, self.parameters.output_mode) for item in found]

    def _crops(self, size: tuple[int, int]) -> list[tuple[Box, int]]:
        """Returns the crops of an image of (height, width), each with its layer."""
        layers = self.parameters.crop_n_layers
        crops = crop_boxes(size, layers, self.parameters.crop_overlap_ratio)
        if any(x1 <= x0 or y1 <= y0 for (x0, y0, x1, y1), _ in crops):
            raise ImageError(
                f"an image of {size[1]}x{size[0]} pixels is too small for {layers} layers of crops"
            )
        return crops

    def _search_crop(
        self, pixels: Pixels, crop: Box, layer: int, deadline: float, report: Callable[[int], None]
    ) -> list[_Found]:
        """Makes the clicks of a crop, and returns the masks that remain after NMS.

        Args:
            pixels: the whole image.
            crop: (x0, y0, x1, y1) in it.
            layer: the crop's layer, which has a grid of clicks.
            deadline: ``time.monotonic()`` after which no further batch is clicked.
            report: called after each batch with the number of clicks made in this crop.
        """
        x0, y0, x1, y1 = crop
        grid = self.parameters.grids()[layer]
        points = grid * (x1 - x0, y1 - y0)
        self.segmenter.set_image(np.ascontiguousarray(pixels[y0:y1, x0:x1]))
        size = (pixels.shape[0], pixels.shape[1])
        mask_filter = MaskFilter(self.segmenter.upscaler, crop, size, self.parameters)
        search = Search(mask_filter, self.parameters, grid)
        min_score = self.parameters.pred_iou_thresh or -np.inf  # 0 keeps all masks
        made = 0
        for clicks in search.batches():
            if time.monotonic() >= deadline:
                break
            batch = points[clicks]
            labels = np.ones((len(batch), 1))
            results = self.segmenter.predict_above(batch[:, None], labels, min_score)
            search.add(clicks, batch, *results)
            best = float(results[0].max())
            self.best_score = best if self.best_score is None else max(best, self.best_score)
            made += len(clicks)
            report(made)
        if made < len(grid):  # the others are not needed, or the time is over
            report(len(grid))
        return [_in_image(mask, crop) for mask in search.result()]


def _in_image(mask: Accepted, crop: Box) -> _Found:
    """Returns a crop's mask with box and point in pixels of the image."""
    left, top = crop[:2]
    x0, y0, x1, y1 = mask.box
    return _Found(
        box=(x0 + left, y0 + top, x1 + left, y1 + top),
        point=mask.point + np.array((left, top)),
        score=mask.score,
        stability=mask.stability,
        lengths=mask.lengths,
        crop=crop,
    )


def _suppress(found: Sequence[_Found], threshold: float) -> list[_Found]:
    """Returns the items whose box overlaps no kept earlier box by more than the IoU threshold."""
    kept: list[_Found] = []
    for item in found:
        if not is_suppressed(item.box, [other.box for other in kept], threshold):
            kept.append(item)
    return kept


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _clean_small_regions(
    found: Sequence[_Found], size: tuple[int, int], parameters: Parameters
) -> list[_Found]:
    """Removes small holes and islands, then duplicates by NMS; unchanged masks win."""
    cleaned = []
    for item in found:
        mask = from_run_lengths(item.lengths, size)
        is_changed = False
        for mode in ("holes", "islands"):
            mask, changed = remove_small_regions(mask, parameters.min_mask_region_area, mode)
            is_changed |= changed
        if is_changed:
            box = mask_bounds(mask) or (0, 0, 0, 0)
            item = replace(item, lengths=run_lengths(mask), box=box)
        cleaned.append((is_changed, item))
    cleaned.sort(key=lambda entry: entry[0])
    threshold = max(parameters.box_nms_thresh, parameters.crop_nms_thresh)
    return _suppress([item for _, item in cleaned], threshold)


def _record(item: _Found, size: tuple[int, int], mode: str) -> MaskRecord:
    segmentation: Any
    if mode == "binary_mask":
        segmentation = from_run_lengths(item.lengths, size)
    elif mode == "coco_rle":
        segmentation = compress(item.lengths.tolist(), size)
    else:
        segmentation = {"size": list(size), "counts": item.lengths.tolist()}
    return {
        "segmentation": segmentation,
        "area": int(item.lengths[1::2].sum()),
        "bbox": _xywh(item.box),
        "predicted_iou": float(item.score),
        "point_coords": [item.point.tolist()],
        "stability_score": float(item.stability),
        "crop_box": _xywh(item.crop),
    }


def _xywh(box: Box) -> list[int]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
