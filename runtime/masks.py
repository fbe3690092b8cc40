"""Masks out: low-resolution logits to the original image's size, and COCO's run-length encoding."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketsam.constants import resized_shape

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels."""


def _taps(inputs: int, outputs: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Bilinear interpolation of one axis, ``align_corners=False``: per output its two inputs, and the
    weight of the second. float32 throughout, as torch computes it.
    """
    scale = np.float32(inputs) / np.float32(outputs)
    centres = (np.arange(outputs, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    centres = np.maximum(centres, np.float32(0))
    first = np.minimum(centres.astype(np.intp), inputs - 1)
    return first, np.minimum(first + 1, inputs - 1), (centres - first).astype(np.float32)


def resize_matrix(inputs: int, outputs: int) -> NDArray[np.float32]:
    """``[outputs, inputs]``: bilinear interpolation of one axis, without antialiasing."""
    first, second, weight = _taps(inputs, outputs)
    matrix = np.zeros((outputs, inputs), np.float32)
    rows = np.arange(outputs)
    matrix[rows, first] += 1 - weight
    matrix[rows, second] += weight
    return matrix


def _axis_matrix(low: int, canvas: int, resized: int, original: int) -> NDArray[np.float32]:
    """``[original, low]``: one axis from low resolution to the canvas, cropped, to the original."""
    up = resize_matrix(low, canvas)[:resized]
    first, second, weight = _taps(resized, original)
    out: NDArray[np.float32] = (
        up[first] * (np.float32(1) - weight)[:, None] + up[second] * weight[:, None]
    )
    return out


class Upscaler:
    """Low-resolution logits to the original image's size.

    ``Sam.postprocess_masks`` of the reference interpolates to the canvas, crops the padding away, and
    interpolates to the original size. All of it is linear and separable: one matrix per axis, made
    once per image.

    Args:
        image_size: side of the canvas; the logits have a quarter of it.
        original_size: (height, width) of the original image.
    """

    def __init__(self, image_size: int, original_size: tuple[int, int]) -> None:
        height, width = resized_shape(*original_size, image_size)
        low = image_size // 4
        self._rows = _axis_matrix(low, image_size, height, original_size[0])
        self._columns = np.ascontiguousarray(_axis_matrix(low, image_size, width, original_size[1]).T)

    def logits(self, low_res_mask: NDArray[np.float32]) -> NDArray[np.float32]:
        """``[S/4, S/4]`` to ``[H, W]`` float32."""
        # multi_dot multiplies the short side first
        out: NDArray[np.float32] = np.linalg.multi_dot([self._rows, low_res_mask, self._columns])
        return out

    @cached_property
    def _reach(self) -> "tuple[_Reach, _Reach]":
        """Of rows and columns; ``logits`` does without."""
        return _Reach(self._rows), _Reach(self._columns.T)

    @property
    def used(self) -> tuple[int, int]:
        """Rows and columns of cells that the image takes up; the rest is padding."""
        return self._reach[0].used, self._reach[1].used

    def region(
        self, logits: NDArray[np.float32], top: int, left: int
    ) -> tuple[int, int, NDArray[np.float32]]:
        """A part of low-resolution logits, with its place, to the pixels that it determines alone.

        Returns:
            The first row and column of those pixels, and their logits.
        """
        bottom, right = top + logits.shape[0], left + logits.shape[1]
        y0, y1 = self._reach[0].within(top, bottom)
        x0, x1 = self._reach[1].within(left, right)
        rows, columns = self._rows[y0:y1, top:bottom], self._columns[left:right, x0:x1]
        if not rows.size or not columns.size:
            return 0, 0, np.zeros((0, 0), np.float32)
        return y0, x0, np.linalg.multi_dot([rows, logits, columns])

    def count(self, cells: NDArray[np.bool_]) -> int:
        """How many pixels have their nearest cell among these ``[used rows, used columns]``."""
        rows, columns = (reach.pixels for reach in self._reach)
        return int(rows @ cells.astype(np.float64) @ columns)

    def box(self, cells: NDArray[np.bool_]) -> Box | None:
        """x0, y0, x1, y1 around the pixels whose nearest cell is among these; None: there are none."""
        rows = np.flatnonzero(np.any(cells, axis=1)[self._reach[0].nearest])
        columns = np.flatnonzero(np.any(cells, axis=0)[self._reach[1].nearest])
        if not len(rows) or not len(columns):
            return None
        return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


class _Reach:
    """Which cells the pixels of one axis are made of: at most the nearest and its two neighbours.

    Args:
        matrix: ``[pixels, cells]``, see ``_axis_matrix``.

    Attributes:
        nearest: of each pixel the cell that weighs most.
        used: how many cells have a weight at all.
        pixels: of each used cell, how many pixels have it as their nearest.
    """

    def __init__(self, matrix: NDArray[np.float32]) -> None:
        weighs = matrix > 0
        self._first = weighs.argmax(axis=1)
        self._last = matrix.shape[1] - 1 - weighs[:, ::-1].argmax(axis=1)
        self.used = int(self._last.max()) + 1
        self.nearest = matrix.argmax(axis=1)
        self.pixels = np.bincount(self.nearest, minlength=self.used).astype(np.float64)

    def within(self, start: int, stop: int) -> tuple[int, int]:
        """The pixels, as a range, that are made of these cells alone."""
        inside = np.flatnonzero((self._first >= start) & (self._last < stop))
        return (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)


def mask_bounds(mask: NDArray[np.bool_]) -> Box | None:
    """x0, y0, x1, y1 of a mask's outermost pixels; None if it is empty."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def mask_box(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's ``[x, y, width, height]`` around a mask ``[H, W]``; zeros if the mask is empty."""
    bounds = mask_bounds(mask)
    if bounds is None:
        return [0, 0, 0, 0]
    x0, y0, x1, y1 = bounds
    return [x0, y0, x1 - x0 + 1, y1 - y0 + 1]


def runs(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Row, first column, and column after the last of each horizontal run, in reading order."""
    width = mask.shape[1] + 1  # a column between rows, where no run goes on
    framed = np.zeros((mask.shape[0], width), np.bool_)
    framed[:, :-1] = mask
    flat = framed.ravel()
    change = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if len(flat) and flat[0]:
        change = np.concatenate([[0], change])
    rows, first = np.divmod(change[::2], width)
    return rows, first, change[1::2] - rows * width


def run_lengths(
    mask: NDArray[np.bool_], place: tuple[int, int] = (0, 0), size: tuple[int, int] | None = None
) -> NDArray[np.int64]:
    """Lengths of alternating runs in column order; the first counts background, and may be 0.

    Args:
        mask: ``[h, w]``.
        place: (x, y) of the mask in an image that is empty elsewhere.
        size: (H, W) of that image; None: the mask is the image.
    """
    height, width = size or mask.shape
    column, first, after = runs(mask.T)
    origin = (column + place[0]) * height + place[1]  # in the image's columns laid end to end
    starts, ends = origin + first, origin + after
    joined = np.flatnonzero(ends[:-1] == starts[1:])  # goes on at the top of the next column
    starts, ends = np.delete(starts, joined + 1), np.delete(ends, joined)
    places = np.stack([starts, ends], axis=1).ravel()
    lengths = np.diff(np.concatenate([[0], places, [height * width]]))
    return lengths[:-1] if len(lengths) > 1 and not lengths[-1] else lengths


def from_run_lengths(
    lengths: Sequence[int] | NDArray[np.int64], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """The inverse of ``run_lengths``: ``[H, W]`` bool."""
    filled = np.arange(len(lengths)) % 2 == 1
    return np.repeat(filled, np.asarray(lengths, np.int64)).reshape(size, order="F")


def to_rle(mask: NDArray[Any]) -> dict[str, Any]:
    """A mask ``[H, W]`` (bool, or 0 and 1) as COCO's compressed run-length encoding.

    Returns:
        ``{"size": [H, W], "counts": str}``, equal to ``pycocotools.mask.encode``.

    Raises:
        ValueError: the mask is not two-dimensional.
    """
    if mask.ndim != 2:
        raise ValueError(f"mask must have the shape [H, W], not {list(mask.shape)}")
    return compress(run_lengths(mask.astype(bool)).tolist(), mask.shape)


def compress(lengths: Sequence[int], size: Sequence[int]) -> dict[str, Any]:
    """Run lengths as COCO compresses them: each but the first three is stored less the one two before
    it, in groups of 5 bits, low ones first."""
    out = bytearray()
    for i, length in enumerate(lengths):
        value = length - lengths[i - 2] if i > 2 else length
        while True:
            group, value = value & 31, value >> 5
            done = value == (-1 if group & 16 else 0)
            out.append(48 + (group if done else group | 32))
            if done:
                break
    return {"size": list(size), "counts": out.decode("ascii")}


def from_rle(rle: dict[str, Any]) -> NDArray[np.bool_]:
    """The inverse of ``to_rle``: ``[H, W]`` bool.

    Raises:
        ValueError: the counts are damaged, or do not fill the size.
    """
    height, width = rle["size"]
    lengths: list[int] = []
    value = shift = 0
    for code in rle["counts"].encode("ascii"):
        group = code - 48
        if not 0 <= group < 64:
            raise ValueError(f"counts holds the byte {code}, which run-length encoding never writes")
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
            value = shift = 0
    if shift or min(lengths, default=0) < 0 or sum(lengths) != height * width:
        raise ValueError(f"counts do not describe a mask of {height}x{width} pixels")
    return from_run_lengths(lengths, (height, width))
