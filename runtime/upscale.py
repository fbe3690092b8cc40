"""Low-resolution logits to masks at the original image's size."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pocketsam.constants import MASK_THRESHOLD, resized_shape
from pocketsam.runtime.rle import Box
from pocketsam.traits import Traits

_BAND = 256
"""Rows of a mask whose logits are in memory."""


def _taps(inputs: int, outputs: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Returns, for each output of an axis, its two inputs and the weight of the second.

    Bilinear interpolation with ``align_corners=False``, in float32 like torch.
    """
    scale = np.float32(inputs) / np.float32(outputs)
    centres = (np.arange(outputs, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    centres = np.maximum(centres, np.float32(0))
    first = np.minimum(centres.astype(np.intp), inputs - 1)
    return first, np.minimum(first + 1, inputs - 1), (centres - first).astype(np.float32)


def resize_matrix(inputs: int, outputs: int) -> NDArray[np.float32]:
    """Returns bilinear interpolation of an axis, without antialiasing, as ``[outputs, inputs]``."""
    first, second, weight = _taps(inputs, outputs)
    matrix = np.zeros((outputs, inputs), np.float32)
    rows = np.arange(outputs)
    matrix[rows, first] += 1 - weight
    matrix[rows, second] += weight
    return matrix


def _axis_matrix(low: int, canvas: int, resized: int, original: int) -> NDArray[np.float32]:
    """Returns ``[original, low]``: scales an axis to the canvas, crops it, and scales it again."""
    up = resize_matrix(low, canvas)[:resized]
    first, second, weight = _taps(resized, original)
    out: NDArray[np.float32] = (
        up[first] * (np.float32(1) - weight)[:, None] + up[second] * weight[:, None]
    )
    return out


class Upscaler:
    """Scales low-resolution logits to the original image's size.

    Segment-anything's ``Sam.postprocess_masks`` interpolates to the canvas, crops the padding away, and
    interpolates to the original size. All of it is linear and separable: one matrix per axis, made
    once per image.

    Args:
        image_size: side of the canvas.
        original_size: (height, width) of the original image.
        low: side of the low-resolution logits; None: SAM's, a quarter of the canvas.
    """

    def __init__(self, image_size: int, original_size: tuple[int, int], low: int | None = None) -> None:
        height, width = resized_shape(*original_size, image_size)
        low = low or Traits().mask_side(image_size)
        self._rows = _axis_matrix(low, image_size, height, original_size[0])
        self._columns = np.ascontiguousarray(_axis_matrix(low, image_size, width, original_size[1]).T)

    def logits(self, low_res_mask: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns logits ``[S/4, S/4]`` scaled to ``[H, W]`` float32."""
        # multi_dot multiplies the short side first
        out: NDArray[np.float32] = np.linalg.multi_dot([self._rows, low_res_mask, self._columns])
        return out

    def mask(self, low_res_mask: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Returns the mask ``[H, W]`` of logits ``[S/4, S/4]``, some rows at a time."""
        out = np.empty((len(self._rows), self._columns.shape[1]), np.bool_)
        for top in range(0, len(out), _BAND):
            rows = slice(top, top + _BAND)
            logits = np.linalg.multi_dot([self._rows[rows], low_res_mask, self._columns])
            np.greater(logits, MASK_THRESHOLD, out=out[rows])
        return out

    @cached_property
    def _reach(self) -> "tuple[_Reach, _Reach]":
        """The cells that rows and columns depend on; ``logits`` does not need them."""
        return _Reach(self._rows), _Reach(self._columns.T)

    @property
    def used(self) -> tuple[int, int]:
        """Rows and columns of low-resolution cells that the image depends on; the rest is padding."""
        return self._reach[0].used, self._reach[1].used

    def region(
        self, logits: NDArray[np.float32], top: int, left: int
    ) -> tuple[int, int, NDArray[np.float32]]:
        """Returns the full-size logits that a region of the low-resolution logits decides.

        Args:
            logits: ``[h, w]`` of the region.
            top, left: its first row and column.

        Returns:
            The first row and column of the pixels that depend on the region alone, and their logits.
        """
        bottom, right = top + logits.shape[0], left + logits.shape[1]
        y0, y1 = self._reach[0].within(top, bottom)
        x0, x1 = self._reach[1].within(left, right)
        rows, columns = self._rows[y0:y1, top:bottom], self._columns[left:right, x0:x1]
        if not rows.size or not columns.size:
            return 0, 0, np.zeros((0, 0), np.float32)
        return y0, x0, np.linalg.multi_dot([rows, logits, columns])

    def count(self, cells: NDArray[np.bool_]) -> int:
        """Returns the number of pixels whose nearest cell is set in ``[used rows, used columns]``."""
        rows, columns = (reach.pixels for reach in self._reach)
        return int(rows @ cells.astype(np.float64) @ columns)

    def box(self, cells: NDArray[np.bool_]) -> Box | None:
        """Returns the box (x0, y0, x1, y1) of the pixels whose nearest cell is set; None: no pixel."""
        rows = np.flatnonzero(np.any(cells, axis=1)[self._reach[0].nearest])
        columns = np.flatnonzero(np.any(cells, axis=0)[self._reach[1].nearest])
        if not len(rows) or not len(columns):
            return None
        return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


class _Reach:
    """The cells that each pixel of an axis depends on: at most the nearest and its two neighbours.

    Args:
        matrix: ``[pixels, cells]``, see ``_axis_matrix``.

    Attributes:
        nearest: for each pixel, the cell with the largest weight.
        used: the number of cells that any pixel depends on.
        pixels: for each of these cells, the number of pixels whose nearest it is.
    """

    def __init__(self, matrix: NDArray[np.float32]) -> None:
        depends = matrix > 0
        self._first = depends.argmax(axis=1)
        self._last = matrix.shape[1] - 1 - depends[:, ::-1].argmax(axis=1)
        self.used = int(self._last.max()) + 1
        self.nearest = matrix.argmax(axis=1)
        self.pixels = np.bincount(self.nearest, minlength=self.used).astype(np.float64)

    def within(self, start: int, stop: int) -> tuple[int, int]:
        """Returns the range of pixels that depend only on the cells from ``start`` to ``stop``."""
        inside = np.flatnonzero((self._first >= start) & (self._last < stop))
        return (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
