"""Masks out: low-resolution logits to the original image's size, and COCO's run-length encoding."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketsam.runtime.contract import resized_shape


def _taps(inputs: int, outputs: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Bilinear interpolation of one axis, ``align_corners=False``: per output its two inputs, and the
    weight of the second. float32 throughout, as torch computes it.
    """
    scale = np.float32(inputs) / np.float32(outputs)
    centres = (np.arange(outputs, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    centres = np.maximum(centres, np.float32(0))
    first = np.minimum(centres.astype(np.intp), inputs - 1)
    return first, np.minimum(first + 1, inputs - 1), (centres - first).astype(np.float32)


def _axis_matrix(low: int, canvas: int, resized: int, original: int) -> NDArray[np.float32]:
    """``[original, low]``: one axis from low resolution to the canvas, cropped, to the original."""
    first, second, weight = _taps(low, canvas)
    up = np.zeros((canvas, low), np.float32)
    rows = np.arange(canvas)
    up[rows, first] += 1 - weight
    up[rows, second] += weight
    up = up[:resized]
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


def mask_box(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's ``[x, y, width, height]`` around a mask ``[H, W]``; zeros if the mask is empty."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return [0, 0, 0, 0]
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]


def _run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Lengths of alternating runs in column order; the first counts background, and may be 0."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate(([0], changes, [flat.size]))
    lengths: list[int] = np.diff(edges).tolist()
    return [0, *lengths] if flat.size and flat[0] else lengths


def to_rle(mask: NDArray[Any]) -> dict[str, Any]:
    """A mask ``[H, W]`` (bool, or 0 and 1) as COCO's compressed run-length encoding.

    Returns:
        ``{"size": [H, W], "counts": str}``, equal to ``pycocotools.mask.encode``. Each run length
        but the first three is stored less the one two before it, in groups of 5 bits, low ones first.

    Raises:
        ValueError: the mask is not two-dimensional.
    """
    if mask.ndim != 2:
        raise ValueError(f"mask must have the shape [H, W], not {list(mask.shape)}")
    lengths = _run_lengths(mask.astype(bool))
    out = bytearray()
    for i, length in enumerate(lengths):
        value = length - lengths[i - 2] if i > 2 else length
        while True:
            group, value = value & 31, value >> 5
            done = value == (-1 if group & 16 else 0)
            out.append(48 + (group if done else group | 32))
            if done:
                break
    return {"size": list(mask.shape), "counts": out.decode("ascii")}


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
    filled = np.arange(len(lengths)) % 2 == 1
    return np.repeat(filled, lengths).reshape((height, width), order="F")
