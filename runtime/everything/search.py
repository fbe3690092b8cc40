"""The search of one crop: which clicks to make, and which masks stay."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pocketsam.constants import MASK_THRESHOLD
from pocketsam.runtime.everything.candidates import (
    MASKS_PER_CLICK,
    Accepted,
    Candidate,
    MaskFilter,
    is_suppressed,
    is_surely_suppressed,
)
from pocketsam.runtime.everything.grid import Parameters, coarse_to_fine

POOL_BYTES = 256 * 2**20
"""Bytes of candidates' logits above which all candidates are examined at full size."""
COVERED_BY = 32
"""The adaptive order skips a click that the masks of at least this many clicks cover."""
SCORE_MARGIN = 0.1
"""The adaptive order makes a fine click if a neighbour's score misses the threshold by less."""
CLIMB_NMS = 0.8
"""In the adaptive order, of two masks whose boxes overlap by more than this IoU, only the better one is
climbed from."""


class Search:
    """The clicks on one crop, and the masks that they found.

    Args:
        mask_filter: the crop's filters.
        parameters: of the mask generator.
        grid: all clicks that may be made, ``[N, 2]`` (x, y) in 0..1.
    """

    def __init__(
        self, mask_filter: MaskFilter, parameters: Parameters, grid: NDArray[np.float64]
    ) -> None:
        self.mask_filter, self.parameters, self.grid = mask_filter, parameters, grid
        self._is_adaptive = parameters.order == "adaptive"
        self._pool: list[Candidate | Accepted] = []
        # at each low-resolution cell, the number of clicks whose masks cover it
        self._coverage = np.zeros(mask_filter.upscaler.used, np.int64)
        # each click's best score; NaN: not made
        self._scores = np.full(len(grid), np.nan)

    def batches(self) -> Iterator[NDArray[np.intp]]:
        """Yields the indices of the clicks to make, ``points_per_batch`` at a time.

        In the order "grid" without a time budget, row by row. Otherwise coarse to fine. "adaptive" also
        uses the scores that ``add`` received: it skips clicks that enough masks cover, and the finest
        clicks without a promising neighbour; then it climbs from each kept mask's click to its
        neighbours.
        """
        if not self._is_adaptive and self.parameters.time_budget is None:
            yield from self._in_batches(np.arange(len(self.grid)))
            return
        levels = coarse_to_fine(self.grid)
        for number, level in enumerate(levels, start=1):
            is_fine = self._is_adaptive and number > 1
            if is_fine and number == len(levels):
                level = level[self._is_promising(level)]
            yield from self._in_batches(level)
            if is_fine and number >= len(levels) - 1:
                while len(neighbours := self._beside_masks()):
                    yield from self._in_batches(neighbours, even_if_covered=True)

    def _in_batches(
        self, clicks: NDArray[np.intp], even_if_covered: bool = False
    ) -> Iterator[NDArray[np.intp]]:
        """Yields clicks in batches; in the adaptive order, without those made before or covered.

        What ``add`` receives between two batches counts for the second one.

        Args:
            clicks: their indices.
            even_if_covered: whether clicks that enough masks cover are made, too.
        """
        size = self.parameters.points_per_batch
        while True:
            if self._is_adaptive:
                clicks = clicks[np.isnan(self._scores[clicks])]
                if not even_if_covered:
                    clicks = clicks[~self._is_covered(clicks)]
            if not len(clicks):
                return
            yield clicks[:size]
            clicks = clicks[size:]

    def _is_covered(self, clicks: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Returns whether the masks of ``COVERED_BY`` clicks or more cover each of the clicks."""
        rows, columns = self._coverage.shape
        x, y = self.grid[clicks].T
        column = np.minimum((x * columns).astype(np.intp), columns - 1)
        row = np.minimum((y * rows).astype(np.intp), rows - 1)
        covered: NDArray[np.bool_] = self._coverage[row, column] >= COVERED_BY
        return covered

    def _is_promising(self, clicks: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Returns, for each click, whether a neighbour scored nearly enough, or none was clicked."""
        scores = np.where(np.isnan(self._scores), -np.inf, self._scores)
        best = np.array([scores[self._neighbourhood(click)].max() for click in clicks])
        enough = self.parameters.pred_iou_thresh - SCORE_MARGIN
        promising: NDArray[np.bool_] = (best > enough) | (best == -np.inf)
        return promising

    def _beside_masks(self) -> NDArray[np.intp]:
        """Returns the clicks not yet made that are neighbours of clicks whose masks would be kept."""
        kept = self._examine_pool(max(self.parameters.box_nms_thresh, CLIMB_NMS))
        clicks = {int(n) for mask in kept for n in self._neighbourhood(mask.number // MASKS_PER_CLICK)}
        return np.array(sorted(n for n in clicks if np.isnan(self._scores[n])), np.intp)

    def _neighbourhood(self, click: int) -> NDArray[np.intp]:
        """Returns the indices of a click of a square grid and of the eight around it.

        At the edge of the grid, some come twice.
        """
        side = math.isqrt(len(self.grid))
        row, column = divmod(click, side)
        steps = np.arange(-1, 2)
        rows, columns = (np.clip(middle + steps, 0, side - 1) for middle in (row, column))
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
        """Adds the results of B clicks.

        Args:
            clicks: ``[B]`` indices of the clicks.
            points: ``[B, 2]`` (x, y) in pixels of the crop.
            scores, kept, low_res: what ``Segmenter.predict_above`` returned.
        """
        self._scores[clicks] = scores.max(axis=1)
        found = self.mask_filter.candidates(clicks[kept], points[kept], scores[kept], low_res)
        self._pool += found
        if self._is_adaptive:
            for _, masks in itertools.groupby(found, lambda mask: mask.number // MASKS_PER_CLICK):
                covered = np.zeros(self._coverage.shape, np.bool_)
                for mask in masks:
                    height, width = mask.logits.shape
                    rows = slice(mask.top, mask.top + height)
                    columns = slice(mask.left, mask.left + width)
                    covered[rows, columns] |= mask.logits > MASK_THRESHOLD
                self._coverage += covered
        sizes = [mask.logits.nbytes for mask in self._pool if isinstance(mask, Candidate)]
        if sum(sizes) > POOL_BYTES:
            examined = (self._examine(mask) for mask in self._pool)
            self._pool = [mask for mask in examined if mask is not None]

    def _examine(self, mask: Candidate | Accepted) -> Accepted | None:
        """Returns the full-size mask; None if it fails a filter."""
        return mask if isinstance(mask, Accepted) else self.mask_filter.examine(mask)

    def result(self) -> list[Accepted]:
        """Returns the masks that remain after suppression (NMS), best first."""
        return self._examine_pool(self.parameters.box_nms_thresh)

    def _examine_pool(self, threshold: float) -> list[Accepted]:
        """Returns the masks that remain after NMS with a threshold of the boxes' IoU, best first.

        Candidates are examined in the order of their scores. A candidate that a better mask surely
        suppresses is not examined at all: it could suppress nothing itself, so the result is the same.

        The pool changes: an examined candidate's full-size mask replaces it, and a candidate that fails
        a filter is removed.
        """
        kept: list[Accepted] = []
        boxes = np.zeros((len(self._pool), 4))  # of those kept, first
        pool: list[Candidate | Accepted] = []
        for mask in sorted(self._pool, key=lambda mask: (-mask.score, mask.number)):
            better = boxes[: len(kept)]
            if isinstance(mask, Candidate) and is_surely_suppressed(mask, better, threshold):
                pool.append(mask)  # another threshold may keep it
                continue
            examined = self._examine(mask)
            if examined is None:
                continue
            pool.append(examined)
            if not is_suppressed(examined.box, better, threshold):
                boxes[len(kept)] = examined.box
                kept.append(examined)
        self._pool = pool
        return kept
