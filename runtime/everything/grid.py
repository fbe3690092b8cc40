"""Where the mask generator clicks: its parameters, the grids of points, the crops of an image."""

import contextlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from pocketsam.errors import PromptError
from pocketsam.runtime.rle import Box
from pocketsam.thresholds import Thresholds

MAX_SIDE = 256
"""Largest ``points_per_side``: 65,536 clicks, hours of work."""
OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
ORDERS = ("grid", "adaptive")


class ParameterOptions(TypedDict, total=False):
    """The parameters as keyword arguments; ``Parameters`` describes them."""

    points_per_side: int | None
    points_per_batch: int
    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    box_nms_thresh: float
    crop_n_layers: int
    crop_nms_thresh: float
    crop_overlap_ratio: float
    crop_n_points_downscale_factor: int
    point_grids: Sequence[NDArray[np.float64]] | None
    min_mask_region_area: int
    output_mode: Literal["binary_mask", "uncompressed_rle", "coco_rle"]
    order: Literal["grid", "adaptive"]
    time_budget: float | None


@dataclass(frozen=True)
class Parameters:
    """The mask generator's parameters: segment-anything's, with its defaults, and order, time_budget.

    Attributes:
        points_per_side: N for a grid of N x N clicks; None: ``point_grids`` has the clicks.
        points_per_batch: clicks that are examined together; between batches, ``progress`` is called and
            the time budget is checked. See ``decoder_batch`` for the decoder's calls.
        pred_iou_thresh: minimum predicted IoU, 0..1; 0 keeps all masks. Unless it is given,
            ``MaskGenerator`` takes it, and the next one, from the bundle's manifest.
        stability_score_thresh: minimum IoU, 0..1, of the mask at thresholds ± the offset.
        stability_score_offset: in logits.
        box_nms_thresh: IoU of boxes, within a crop, above which the mask with the lower score is
            suppressed.
        crop_n_layers: layers of crops that are searched as well; layer i has 4**i crops.
        crop_nms_thresh: IoU of boxes, between crops, above which the mask of the larger crop is
            suppressed.
        crop_overlap_ratio: overlap of the crops in the first layer, relative to the image's short side.
        crop_n_points_downscale_factor: divides ``points_per_side`` once per layer of crops.
        point_grids: for each layer ``[N, 2]`` in 0..1, instead of ``points_per_side``.
        min_mask_region_area: islands and holes of fewer pixels are removed.
        output_mode: ``segmentation`` as ``binary_mask``, ``uncompressed_rle`` or ``coco_rle``.
        order: "grid" makes all clicks, like segment-anything. "adaptive" makes coarse clicks first, and
            none where accepted masks already lie; see ``docs/everything.md`` for what it finds.
        time_budget: seconds after which no further click is made; None: unlimited; 0: no masks.

    Raises:
        PromptError: a value out of range.
    """

    points_per_side: int | None = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = Thresholds.pred_iou_thresh
    stability_score_thresh: float = Thresholds.stability_score_thresh
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
        """Checks the values."""
        if (self.points_per_side is None) == (self.point_grids is None):
            raise PromptError("give either points_per_side or point_grids")
        if self.points_per_side is not None:
            self._whole("points_per_side", 1, MAX_SIDE)
        self._whole("points_per_batch", 1, 4096)
        self._whole("crop_n_layers", 0, 4)
        self._whole("crop_n_points_downscale_factor", 1, MAX_SIDE)
        self._whole("min_mask_region_area", 0, 2**31)
        ratios = ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "crop_nms_thresh")
        for name in (*ratios, "crop_overlap_ratio"):
            if not 0 <= self._number(name) <= 1:
                raise PromptError(f"{name} must lie in 0..1, not {getattr(self, name)}")
        if not 0 <= self._number("stability_score_offset") < math.inf:
            raise PromptError(f"stability_score_offset must be >= 0, not {self.stability_score_offset}")
        for name, known in (("output_mode", OUTPUT_MODES), ("order", ORDERS)):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise PromptError(f"{name} must be {', '.join(known)}, not {_shown(value)}")
        if self.time_budget is not None and not 0 <= self._number("time_budget") < math.inf:
            raise PromptError(f"time_budget must be seconds >= 0, not {self.time_budget}")
        self._check_grids()

    def _check_grids(self) -> None:
        if isinstance(self.point_grids, np.ndarray) and not self.point_grids.ndim:
            raise PromptError("point_grids must be a list of grids, not a number")
        for number, grid in enumerate(self.grids()):
            if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid):
                raise PromptError(f"point_grids[{number}] must be [N, 2], not {list(grid.shape)}")
            if not ((grid >= 0) & (grid <= 1)).all():
                raise PromptError(f"point_grids[{number}] must lie in 0..1")

    def _whole(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not is_whole or not low <= value <= high:
            whole = f"a whole number from {low} to {high}"
            raise PromptError(f"{name} must be {whole}, not {_shown(value)}")
        object.__setattr__(self, name, int(value))  # of NumPy's, which JSON does not take

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        if isinstance(value, Real) and not isinstance(value, bool):  # NumPy's numbers are of Real
            with contextlib.suppress(OverflowError):  # an int beyond all floats
                return float(value)
        raise PromptError(f"{name} must be a number, not {_shown(value)}")

    def grids(self) -> list[NDArray[np.float64]]:
        """Returns, for each layer of crops, the clicks ``[N, 2]`` (x, y) in 0..1, row by row."""
        if self.point_grids is not None:
            if not isinstance(self.point_grids, Sequence | np.ndarray):
                raise PromptError(
                    f"point_grids must be a list of grids, not {_shown(self.point_grids)}"
                )
            if len(self.point_grids) != self.crop_n_layers + 1:
                raise PromptError(
                    f"point_grids has {len(self.point_grids)} grids; crop_n_layers "
                    f"{self.crop_n_layers} needs {self.crop_n_layers + 1}"
                )
            return [_as_grid(number, grid) for number, grid in enumerate(self.point_grids)]
        assert self.points_per_side is not None
        factor = self.crop_n_points_downscale_factor
        sides = [int(self.points_per_side / factor**layer) for layer in range(self.crop_n_layers + 1)]
        if not sides[-1]:
            raise PromptError(
                "crop_n_points_downscale_factor is so large that the last layer has no points"
            )
        return [point_grid(side) for side in sides]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _as_grid(number: int, grid: Any) -> NDArray[np.float64]:
    try:
        array = np.asarray(grid)
        if array.dtype.kind in "iuf":
            return array.astype(np.float64)
    except (TypeError, ValueError):  # rows of several lengths
        pass
    raise PromptError(f"point_grids[{number}] must be an array of numbers [N, 2], not {_shown(grid)}")


def make_parameters(**options: Unpack[ParameterOptions]) -> Parameters:
    """Returns the parameters.

    Raises:
        PromptError: an unknown name, or a value out of range.
    """
    known = [field.name for field in fields(Parameters)]
    unknown = sorted(set(options).difference(known))
    if unknown:
        raise PromptError(f"no parameter {', '.join(unknown)}; known are {', '.join(known)}")
    return Parameters(**options)


def point_grid(side: int) -> NDArray[np.float64]:
    """Returns the centres of side x side equal cells, ``[side², 2]`` (x, y) in 0..1."""
    offset = 1 / (2 * side)
    centres = np.linspace(offset, 1 - offset, side)
    return np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)


def crop_boxes(size: tuple[int, int], layers: int, overlap_ratio: float) -> list[tuple[Box, int]]:
    """Returns crops (x0, y0, x1, y1) of an image, each with its layer; the image itself is first.

    Layer i has 2**i crops a side, which overlap by ``overlap_ratio`` of the short side, halved with
    each layer (segment-anything's ``generate_crop_boxes``).

    Args:
        size: (height, width) of the image.
        layers: how many, besides the image itself.
        overlap_ratio: in the first layer.
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
    """Returns the indices of a grid's clicks in levels, each an even lattice twice as dense.

    Args:
        grid: clicks ``[N, 2]``; if they are not a ``point_grid``, they are a single level.
    """
    side = math.isqrt(len(grid))
    if not np.array_equal(grid, point_grid(side)):
        return [np.arange(len(grid))]
    row, column = np.divmod(np.arange(len(grid)), side)
    remaining = np.ones(len(grid), np.bool_)
    levels = []
    stride = 2 ** max(side.bit_length() - 3, 0)
    while stride:
        here = remaining & (row % stride == stride // 2) & (column % stride == stride // 2)
        levels.append(np.flatnonzero(here))
        remaining &= ~here
        stride //= 2
    return levels
