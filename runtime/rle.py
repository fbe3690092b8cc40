"""Masks as COCO's run-length encoding, their boxes, and their IoU."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketsam.errors import MaskError

MAX_PIXELS = 2**32
"""Masks with as many pixels are refused: COCO's run lengths have 32 bits."""
Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels."""


def mask_bounds(mask: NDArray[np.bool_]) -> Box | None:
    """Returns (x0, y0, x1, y1) of a mask's outermost pixels; None if it is empty."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def mask_box(mask: NDArray[np.bool_]) -> list[int]:
    """Returns COCO's ``[x, y, width, height]`` of a mask ``[H, W]``; zeros if the mask is empty."""
    bounds = mask_bounds(mask)
    if bounds is None:
        return [0, 0, 0, 0]
    x0, y0, x1, y1 = bounds
    return [x0, y0, x1 - x0 + 1, y1 - y0 + 1]


def mask_iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Returns the IoU of two masks of the same shape, in 0..1; 1 if both are empty."""
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 1.0


def runs(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Returns row, first column, and column after the last of each horizontal run, in reading order."""
    width = mask.shape[1] + 1  # with an empty column between rows, where every run ends
    framed = np.zeros((mask.shape[0], width), np.bool_)
    framed[:, :-1] = mask
    flat = framed.ravel()
    change = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if len(flat) and flat[0]:
        change = np.concatenate([[0], change])
    rows, first = np.divmod(change[::2], width)
    return rows, first, change[1::2] - rows * width


def run_lengths(
    mask: NDArray[np.bool_], corner: tuple[int, int] = (0, 0), size: tuple[int, int] | None = None
) -> NDArray[np.int64]:
    """Returns lengths of alternating runs in column order; the first is background, and may be 0.

    Args:
        mask: ``[h, w]``.
        corner: (x, y) of the mask's first pixel in an image that is empty elsewhere.
        size: (H, W) of the image; None: the mask is the image.
    """
    height, width = size or mask.shape
    column, first, after = runs(mask.T)
    origin = (column + corner[0]) * height + corner[1]  # in the image's columns laid end to end
    starts, ends = origin + first, origin + after
    joined = np.flatnonzero(ends[:-1] == starts[1:])  # continues at the top of the next column
    starts, ends = np.delete(starts, joined + 1), np.delete(ends, joined)
    changes = np.stack([starts, ends], axis=1).ravel()
    lengths = np.diff(np.concatenate([[0], changes, [height * width]]))
    return lengths[:-1] if len(lengths) > 1 and not lengths[-1] else lengths


def from_run_lengths(
    lengths: Sequence[int] | NDArray[np.int64], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Returns the mask ``[H, W]`` of ``run_lengths``."""
    filled = np.arange(len(lengths)) % 2 == 1
    return np.repeat(filled, np.asarray(lengths, np.int64)).reshape(size, order="F")


def to_rle(mask: NDArray[Any]) -> dict[str, Any]:
    """Returns a mask ``[H, W]`` (bool, or 0 and 1) as COCO's compressed run-length encoding.

    Returns:
        ``{"size": [H, W], "counts": str}``, equal to ``pycocotools.mask.encode``.

    Raises:
        MaskError: the mask is not two-dimensional, or holds other numbers, as logits do.
    """
    if mask.ndim != 2:
        raise MaskError(f"mask must have the shape [H, W], not {list(mask.shape)}")
    if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
        raise MaskError("mask must be of bool, or 0 and 1; of logits, encode `logits > 0`")
    mask = mask.astype(bool, copy=False)
    x0, y0, x1, y1 = mask_bounds(mask) or (0, 0, -1, -1)  # the rest of a large picture costs nothing
    lengths = run_lengths(mask[y0 : y1 + 1, x0 : x1 + 1], (x0, y0), (mask.shape[0], mask.shape[1]))
    return compress(lengths.tolist(), mask.shape)


def compress(lengths: Sequence[int], size: Sequence[int]) -> dict[str, Any]:
    """Returns run lengths as COCO compresses them.

    From the fourth on, the difference to the length two before is stored, in groups of 5 bits, the
    lowest first.
    """
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
    """Returns the mask ``[H, W]`` bool of COCO's run-length encoding.

    Args:
        rle: ``size`` ``[H, W]``, and ``counts``: text, as ``to_rle`` gives, bytes, as pycocotools does,
            or a list of run lengths (``uncompressed_rle``).

    Raises:
        MaskError: another thing, or counts that are damaged or do not fill the size.
    """
    try:
        height, width = map(operator.index, rle["size"])
        counts = rle["counts"]
        is_compressed = isinstance(counts, str | bytes)
        listed = [] if is_compressed else [operator.index(length) for length in counts]
    except (TypeError, ValueError, LookupError):
        raise MaskError(
            'a mask in run-length encoding is {"size": [H, W], "counts": ...}, the counts as text, '
            "bytes or a list of whole numbers"
        ) from None
    lengths = _decompress(counts) if is_compressed else listed
    if min(height, width, *lengths, 0) < 0 or not sum(lengths) == height * width < MAX_PIXELS:
        raise MaskError(f"counts do not describe a mask of {height}x{width} pixels")
    return from_run_lengths(lengths, (height, width))


def _decompress(counts: str | bytes) -> list[int]:
    """Returns the run lengths that ``compress`` compressed.

    Raises:
        MaskError: a byte that does not occur, or an end in the middle of a number.
    """
    lengths: list[int] = []
    value = shift = 0
    for code in counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts:
        group = code - 48
        if not 0 <= group < 64:
            raise MaskError(
                f"counts holds the byte {code}, which does not occur in run-length encoding"
            )
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
            value = shift = 0
    if shift:
        raise MaskError("counts end in the middle of a number")
    return lengths
