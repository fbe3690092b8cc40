"""Where "segment everything" clicks: its parameters, the grids of points, the crops of an image."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketsam.errors import PromptError
from pocketsam.runtime.masks import Box

MAX_SIDE = 256
"""Points a side: 65,536 clicks, hours of work."""
OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
ORDERS = ("grid", "adaptive")


@dataclass(frozen=True)
class Parameters:
    """The reference's, under its names and with its defaults, and three of ours.

    Attributes:
        points_per_side: the grid has its square of clicks; None: ``point_grids`` says them.
        points_per_batch: clicks per call of the decoder.
        pred_iou_thresh: least predicted IoU, 0..1.
        stability_score_thresh: least IoU of the mask at thresholds ± ``stability_score_offset``, 0..1.
        stability_score_offset: in logits.
        box_nms_thresh: IoU of boxes above which the lower score goes, within a crop.
        crop_n_layers: layer i of crops has 4**i of them, each with a grid of its own.
        crop_nms_thresh: likewise between crops; the smaller crop wins.
        crop_overlap_ratio: of the image's short side, in the first layer.
        crop_n_points_downscale_factor: the grid of layer i has this to the power i fewer points a side.
        point_grids: for each layer ``[N, 2]`` in 0..1, instead of ``points_per_side``.
        min_mask_region_area: islands and holes of fewer pixels are removed.
        output_mode: ``segmentation`` as array, as list of run lengths, or as COCO's RLE.
        order: "grid" clicks everywhere, as the reference. "adaptive" clicks coarsely first and leaves
            out what accepted masks already explain; see ``docs/everything.md`` for what it finds.
        time_budget: seconds after which no further click is made; None: no limit; 0: no masks.
    """

    points_per_side: int | None = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    point_grids: Sequence[NDArray[np.float64]] | None = None
    min_mask_region_area: int = 0
    output_mode: str = "binary_mask"
    order: str = "grid"
    time_budget: float | None = None

    def __post_init__(self) -> None:
        """Raises PromptError for a value that makes no sense."""
        if (self.points_per_side is None) == (self.point_grids is None):
            raise PromptError("give either points_per_side or point_grids")
        if self.points_per_side is not None:
            self._whole("points_per_side", 1, MAX_SIDE)
        self._whole("points_per_batch", 1, 4096)
        self._whole("crop_n_layers", 0, 4)
        self._whole("crop_n_points_downscale_factor", 1, MAX_SIDE)
        self._whole("min_mask_region_area", 0, 2**31)
        shares = ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "crop_nms_thresh")
        for name in (*shares, "crop_overlap_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise PromptError(f"{name} must lie in 0..1, not {getattr(self, name)}")
        if not 0 <= self.stability_score_offset < math.inf:
            raise PromptError(f"stability_score_offset must be >= 0, not {self.stability_score_offset}")
        for name, known in (("output_mode", OUTPUT_MODES), ("order", ORDERS)):
            if getattr(self, name) not in known:
                raise PromptError(f"{name} must be {', '.join(known)}, not {getattr(self, name)!r}")
        if self.time_budget is not None and not self.time_budget >= 0:
            raise PromptError(f"time_budget must be seconds >= 0, not {self.time_budget}")
        for number, grid in enumerate(self.grids()):
            if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid):
                raise PromptError(f"point_grids[{number}] must be [N, 2], not {list(grid.shape)}")
            if not ((grid >= 0) & (grid <= 1)).all():
                raise PromptError(f"point_grids[{number}] must lie in 0..1")

    def _whole(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or not low <= value <= high:
            raise PromptError(f"{name} must be a whole number from {low} to {high}, not {value}")

    def grids(self) -> list[NDArray[np.float64]]:
        """For each layer of crops the clicks ``[N, 2]`` (x, y) in 0..1, row by row."""
        if self.point_grids is not None:
            if len(self.point_grids) != self.crop_n_layers + 1:
                raise PromptError(
                    f"point_grids has {len(self.point_grids)} grids; crop_n_layers "
                    f"{self.crop_n_layers} wants {self.crop_n_layers + 1}"
                )
            return [np.asarray(grid, np.float64) for grid in self.point_grids]
        assert self.points_per_side is not None
        factor = self.crop_n_points_downscale_factor
        sides = [int(self.points_per_side / factor**layer) for layer in range(self.crop_n_layers + 1)]
        if not sides[-1]:
            raise PromptError("crop_n_points_downscale_factor leaves the last layer without points")
        return [point_grid(side) for side in sides]


def point_grid(side: int) -> NDArray[np.float64]:
    """``[side², 2]``: the centres of side x side equal cells."""
    offset = 1 / (2 * side)
    centres = np.linspace(offset, 1 - offset, side)
    return np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)


def crop_boxes(size: tuple[int, int], layers: int, overlap_ratio: float) -> list[tuple[Box, int]]:
    """Crops x0 y0 x1 y1 of an image of (height, width), each with its layer; the image itself first.

    Layer i has 2**i crops a side, which overlap by ``overlap_ratio`` of the short side, halved with
    each layer (``generate_crop_boxes`` of the reference).
    """
    height, width = size
    crops: list[tuple[Box, int]] = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        side = 2**layer
        overlap = int(overlap_ratio * min(size) * (2 / side))
        wide, high = (math.ceil((overlap * (side - 1) + length) / side) for length in (width, height))
        for column, row in itertools.product(range(side), repeat=2):
            x0, y0 = int((wide - overlap) * column), int((high - overlap) * row)
            crops.append(((x0, y0, min(x0 + wide, width), min(y0 + high, height)), layer))
    return crops


def coarse_to_fine(grid: NDArray[np.float64]) -> list[NDArray[np.intp]]:
    """Numbers of a ``point_grid``'s clicks in levels, each an even lattice twice as dense; another grid
    is a single level."""
    side = math.isqrt(len(grid))
    if not np.array_equal(grid, point_grid(side)):
        return [np.arange(len(grid))]
    row, column = np.divmod(np.arange(len(grid)), side)
    left = np.ones(len(grid), np.bool_)
    levels = []
    stride = 2 ** max(side.bit_length() - 3, 0)
    while stride:
        here = left & (row % stride == stride // 2) & (column % stride == stride // 2)
        levels.append(np.flatnonzero(here))
        left &= ~here
        stride //= 2
    return levels
